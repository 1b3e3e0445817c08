// What the machine this process runs on can execute.
#pragma once

namespace stretto {

// "avx512" (F, BW, DQ, VL, VNNI and BF16), "avx2" (AVX2, FMA and F16C) or "generic"; both the processor and the
// operating system must agree.
const char* instruction_set() noexcept;

}  // namespace stretto
