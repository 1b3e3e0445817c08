#include "machine/instruction_set.hpp"

#if defined(_MSC_VER) && defined(_M_X64)
#include <immintrin.h>
#include <intrin.h>
#endif

namespace stretto {
namespace {

struct Features {
    bool avx2 = false;
    bool avx512 = false;
};

#if defined(_MSC_VER) && defined(_M_X64)

Features detect() noexcept {
    constexpr int fma = 1 << 12, osxsave = 1 << 27;                                 // leaf 1, ecx
    constexpr int avx2 = 1 << 5;                                                    // leaf 7, ebx
    constexpr unsigned avx512 = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);  // F, DQ, BW, VL
    constexpr int vnni = 1 << 11, bf16 = 1 << 5, f16c = 1 << 29;                    // leaf 7 ecx, 7.1 eax, 1 ecx
    constexpr unsigned long long ymm_state = 0x6, zmm_state = 0xe6;                 // XCR0

    int leaf1[4], leaf7[4], leaf7_1[4];
    __cpuid(leaf1, 0);
    if (leaf1[0] < 7) return {};
    __cpuid(leaf1, 1);
    __cpuidex(leaf7, 7, 0);
    __cpuidex(leaf7_1, 7, 1);
    if (!(leaf1[2] & osxsave)) return {};
    const unsigned long long saved = _xgetbv(0);

    Features found;
    found.avx2 = (saved & ymm_state) == ymm_state && (leaf1[2] & fma) && (leaf1[2] & f16c) && (leaf7[1] & avx2);
    found.avx512 = (saved & zmm_state) == zmm_state && (static_cast<unsigned>(leaf7[1]) & avx512) == avx512 &&
                   (leaf7[2] & vnni) && (leaf7_1[0] & bf16);
    return found;
}

#elif defined(__x86_64__)

// The compiler's own run-time check also asks whether the operating system saves the wide registers.
Features detect() noexcept {
    __builtin_cpu_init();
    Features found;
    found.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    found.avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
    return found;
}

#else

Features detect() noexcept { return {}; }

#endif

}  // namespace

const char* instruction_set() noexcept {
    static const Features found = detect();
    if (found.avx512 && found.avx2) return "avx512";
    return found.avx2 ? "avx2" : "generic";
}

}  // namespace stretto
