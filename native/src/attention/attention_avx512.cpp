#include "../lanes/avx512.hpp"

namespace stretto::avx512 {
namespace {

constexpr int query_lines = 8, query_blocks = 2;
constexpr int value_lines = 4, value_registers = 4;

// The instruction takes denormals for zero.
STRETTO_INLINE F32 dot_pairs(F32 sum, I32 a, I32 b) { return {_mm512_dpbf16_ps(sum.v, (__m512bh)a.v, (__m512bh)b.v)}; }

STRETTO_INLINE void store_weights(uint16_t* p, F32 a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(a.v));
}

}  // namespace
}  // namespace stretto::avx512

#include "attention_kernel.hpp"
