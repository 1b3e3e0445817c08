// 16 lanes of fp32 or int32 in an AVX-512 register, and the vocabulary in which kernels are written once for all paths:
//
//   zero() all(x) all_i(x) load(p) load(p, n) store(p, a) store(p, a, n) load_i store_i
//                  n: the first 0 to 16 lanes; the rest are read as 0 and not written, and their memory is not touched
//   add sub mul div max min sqrt neg abs round    max, min: the second where one is NaN; round: to nearest even
//   fma(a, b, c) = a * b + c    neg_fma(a, b, c) = c - a * b    one rounding (generic: two)
//   less equal is_nan less_u (integers without sign) -> Mask    select(mask, yes, no) mask_bits mask_of
//   to_int (nearest even) to_float as_int as_float add_i sub_i mul_i and_i or_i xor_i
//   shift_left<N> shift_right<N> (logical)
//   sum largest    in one fixed order: 8 + 8 lanes, 4 + 4, 2 + 2, 1 + 1
//   load_bf16 store_bf16 (to nearest even, NaN stays NaN) load_f16
//   exp log log1p tanh erf (functions.hpp)
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the deliberately undefined operands inside its own intrinsics for mistakes.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif

#include <cstdint>

#include "inline.hpp"

#define STRETTO_PATH avx512
#define STRETTO_FUNCTION STRETTO_INLINE  // exp and the like
#define STRETTO_KERNEL STRETTO_FLATTEN   // a kernel that calls them

namespace stretto::avx512 {

struct F32 {
    __m512 v;
};
struct I32 {
    __m512i v;
};
struct Mask {
    __mmask16 v;
};

STRETTO_INLINE __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }

STRETTO_INLINE F32 zero() { return {_mm512_setzero_ps()}; }
STRETTO_INLINE F32 all(float x) { return {_mm512_set1_ps(x)}; }
STRETTO_INLINE I32 all_i(int32_t x) { return {_mm512_set1_epi32(x)}; }

STRETTO_INLINE F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
STRETTO_INLINE F32 load(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
STRETTO_INLINE void store(float* p, F32 a) { _mm512_storeu_ps(p, a.v); }
STRETTO_INLINE void store(float* p, F32 a, int64_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), a.v); }
STRETTO_INLINE I32 load_i(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
STRETTO_INLINE void store_i(int32_t* p, I32 a) { _mm512_storeu_si512(p, a.v); }

STRETTO_INLINE F32 add(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
STRETTO_INLINE F32 sub(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
STRETTO_INLINE F32 mul(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
STRETTO_INLINE F32 div(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
STRETTO_INLINE F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
STRETTO_INLINE F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
STRETTO_INLINE F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
STRETTO_INLINE F32 neg_fma(F32 a, F32 b, F32 c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
STRETTO_INLINE F32 sqrt(F32 a) { return {_mm512_sqrt_ps(a.v)}; }
STRETTO_INLINE F32 neg(F32 a) { return {_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))}; }
STRETTO_INLINE F32 abs(F32 a) { return {_mm512_andnot_ps(_mm512_set1_ps(-0.0f), a.v)}; }
STRETTO_INLINE F32 round(F32 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }

STRETTO_INLINE Mask less(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
STRETTO_INLINE Mask equal(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
STRETTO_INLINE Mask less_u(I32 a, I32 b) { return {_mm512_cmplt_epu32_mask(a.v, b.v)}; }
STRETTO_INLINE Mask is_nan(F32 a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
STRETTO_INLINE F32 select(Mask m, F32 yes, F32 no) { return {_mm512_mask_blend_ps(m.v, no.v, yes.v)}; }
STRETTO_INLINE uint32_t mask_bits(Mask m) { return m.v; }
STRETTO_INLINE Mask mask_of(uint32_t bits) { return {static_cast<__mmask16>(bits)}; }

STRETTO_INLINE I32 to_int(F32 a) { return {_mm512_cvtps_epi32(a.v)}; }
STRETTO_INLINE F32 to_float(I32 a) { return {_mm512_cvtepi32_ps(a.v)}; }
STRETTO_INLINE I32 as_int(F32 a) { return {_mm512_castps_si512(a.v)}; }
STRETTO_INLINE F32 as_float(I32 a) { return {_mm512_castsi512_ps(a.v)}; }
STRETTO_INLINE I32 add_i(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
STRETTO_INLINE I32 sub_i(I32 a, I32 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
STRETTO_INLINE I32 mul_i(I32 a, I32 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
STRETTO_INLINE I32 and_i(I32 a, I32 b) { return {_mm512_and_si512(a.v, b.v)}; }
STRETTO_INLINE I32 or_i(I32 a, I32 b) { return {_mm512_or_si512(a.v, b.v)}; }
STRETTO_INLINE I32 xor_i(I32 a, I32 b) { return {_mm512_xor_si512(a.v, b.v)}; }
template <int N>
STRETTO_INLINE I32 shift_left(I32 a) {
    return {_mm512_slli_epi32(a.v, N)};
}
template <int N>
STRETTO_INLINE I32 shift_right(I32 a) {
    return {_mm512_srli_epi32(a.v, N)};
}

STRETTO_INLINE float sum(F32 a) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
STRETTO_INLINE float largest(F32 a) {
    const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

STRETTO_INLINE F32 widen(__m256i bf16) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16))};
}
STRETTO_INLINE F32 load_bf16(const uint16_t* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
STRETTO_INLINE F32 load_bf16(const uint16_t* p, int64_t n) {
    return widen(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
// In integers, because the instruction for it takes denormals for zero.
STRETTO_INLINE __m256i narrow(F32 a) {
    const __m512i bits = _mm512_castps_si512(a.v), high = _mm512_srli_epi32(bits, 16);
    const __m512i even = _mm512_add_epi32(_mm512_and_si512(high, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7fff));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, even), 16);
    const __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(is_nan(a).v, rounded, quiet));
}
STRETTO_INLINE void store_bf16(uint16_t* p, F32 a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(a)); }
STRETTO_INLINE void store_bf16(uint16_t* p, F32 a, int64_t n) {
    _mm256_mask_storeu_epi16(p, first_lanes(n), narrow(a));
}
STRETTO_INLINE F32 load_f16(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}

// x * 2^n of a whole n
STRETTO_INLINE F32 times_power(F32 x, F32 n) { return {_mm512_scalef_ps(x.v, n.v)}; }

// x = mantissa * 2^exponent with the mantissa in [0.75, 1.5); of 0 and infinity the exponent is -inf and +inf, the
// mantissa 1; of NaN and negative x the mantissa is NaN.
STRETTO_INLINE F32 split(F32 x, F32& exponent) {
    const __m512 mantissa = _mm512_getmant_ps(x.v, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_nan);
    const __m512 floor = _mm512_getexp_ps(x.v), one = _mm512_set1_ps(1.0f);
    const __mmask16 halved = _mm512_cmp_ps_mask(mantissa, one, _CMP_LT_OQ);
    exponent = {_mm512_mask_add_ps(floor, halved, floor, one)};
    return {mantissa};
}

}  // namespace stretto::avx512

#include "functions.hpp"
