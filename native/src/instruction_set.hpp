// What the machine this process runs on can execute.
#pragma once

namespace stretto {

// "avx512" (F, BW, DQ and VL), "avx2" (AVX2 and FMA) or "generic"; both the processor and the operating system must agree.
const char* instruction_set() noexcept;

}  // namespace stretto
