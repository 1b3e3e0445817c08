#!/usr/bin/env bash
# Builds the selftest and runs it: at -O2 and -O3, whose results must have the same bits; under the address and
# undefined-behaviour sanitizers; and for arm64 where there is a cross compiler (and, to run it, an emulator).
#
#   run.sh [SEED]
set -euo pipefail

native=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
seed=${1:-1}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

build() { # NAME, OPTION...
  local name=$1 start=$SECONDS
  shift
  cmake -S "$native" -B "$work/$name" -DSTRETTO_PYTHON=OFF -DSTRETTO_SELFTEST=ON -DCMAKE_BUILD_TYPE=Release "$@" >/dev/null
  cmake --build "$work/$name" --parallel 2 --target stretto_selftest >"$work/$name.log" 2>&1 ||
    { cat "$work/$name.log"; return 1; }
  ! grep -A4 "warning:" "$work/$name.log" || { echo "$name: compiled with warnings"; return 1; }
  echo "built $name in $((SECONDS - start)) s"
}

check() { # NAME, COMMAND...: the report is kept, and what failed is said
  local name=$1 start=$SECONDS
  shift
  "$@" >"$work/$name.report" 2>&1 || { cat "$work/$name.report"; echo "FAILED: $name"; return 1; }
  echo "$name passed in $((SECONDS - start)) s"
}

selftest() { echo "$work/$1/selftest/stretto_selftest"; }

build O2 -DCMAKE_CXX_FLAGS_RELEASE=-O2
build O3 -DCMAKE_CXX_FLAGS_RELEASE=-O3
build sanitizers -DSTRETTO_SANITIZE=ON
arm64=
if command -v aarch64-linux-gnu-g++ >/dev/null; then
  build arm64 -DCMAKE_CXX_FLAGS_RELEASE=-O2 -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
  arm64=$(command -v qemu-aarch64-static || command -v qemu-aarch64 || true)
  [[ -n $arm64 ]] || echo "arm64 is compiled only: there is no qemu-aarch64 on this machine"
else
  echo "arm64 is left out: there is no aarch64-linux-gnu-g++ on this machine"
fi

check sanitizers "$(selftest sanitizers)" --seed "$seed" --quick &
sanitizers=$!
check O2 "$(selftest O2)" --seed "$seed" --digest "$work/O2.digest"
check O3 "$(selftest O3)" --seed "$seed" --digest "$work/O3.digest"
# Emulated it is slow; the controls judge the checks and not the machine.
[[ -z $arm64 ]] || check arm64 "$arm64" -L /usr/aarch64-linux-gnu "$(selftest arm64)" --seed "$seed" --quick --skip controls
wait "$sanitizers"

cat "$work/O2.report"
if ! diff "$work/O2.digest" "$work/O3.digest"; then
  echo "FAILED: -O2 and -O3 give other bits"
  exit 1
fi
echo "-O2 and -O3 give the same bits"

# What the processor says that it can, asked in another way than the program asks.
flags=" $(grep -m 1 '^flags' /proc/cpuinfo 2>/dev/null || true) "
missing() { # PATH, FLAG...: whether the machine has all flags, and the report lacks the path
  local path=$1 flag
  shift
  for flag in "$@"; do [[ $flags == *" $flag "* ]] || return 1; done
  ! grep -q "^$path *linear: values" "$work/O2.report"
}
if [[ -z ${STRETTO_ISA:-} ]] && { missing generic || missing avx2 avx2 fma f16c ||
  missing avx512 avx512f avx512bw avx512dq avx512vl avx512_vnni avx512_bf16; }; then
  echo "FAILED: a path that this machine has was skipped"
  exit 1
fi
