// 16 lanes of fp32 or int32 in two AVX2 registers; the vocabulary is described in avx512.hpp.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "inline.hpp"

#define STRETTO_PATH avx2
#define STRETTO_FUNCTION STRETTO_INLINE  // exp and the like
#define STRETTO_KERNEL STRETTO_FLATTEN   // a kernel that calls them

namespace stretto::avx2 {

struct F32 {
    __m256 low, high;
};
struct I32 {
    __m256i low, high;
};
struct Mask {
    __m256 low, high;
};

STRETTO_INLINE I32 first_lanes(int64_t n) {
    const __m256i end = _mm256_set1_epi32(static_cast<int>(n));
    return {_mm256_cmpgt_epi32(end, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)),
            _mm256_cmpgt_epi32(end, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15))};
}

STRETTO_INLINE F32 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
STRETTO_INLINE F32 all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
STRETTO_INLINE I32 all_i(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }

STRETTO_INLINE F32 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
STRETTO_INLINE F32 load(const float* p, int64_t n) {
    const I32 lanes = first_lanes(n);
    return {_mm256_maskload_ps(p, lanes.low), _mm256_maskload_ps(p + 8, lanes.high)};
}
STRETTO_INLINE void store(float* p, F32 a) { _mm256_storeu_ps(p, a.low), _mm256_storeu_ps(p + 8, a.high); }
STRETTO_INLINE void store(float* p, F32 a, int64_t n) {
    const I32 lanes = first_lanes(n);
    _mm256_maskstore_ps(p, lanes.low, a.low);
    _mm256_maskstore_ps(p + 8, lanes.high, a.high);
}
STRETTO_INLINE __m256i load_256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
STRETTO_INLINE void store_256(void* p, __m256i a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a); }
STRETTO_INLINE I32 load_i(const int32_t* p) { return {load_256(p), load_256(p + 8)}; }
STRETTO_INLINE void store_i(int32_t* p, I32 a) { store_256(p, a.low), store_256(p + 8, a.high); }

STRETTO_INLINE F32 add(F32 a, F32 b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
STRETTO_INLINE F32 sub(F32 a, F32 b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
STRETTO_INLINE F32 mul(F32 a, F32 b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
STRETTO_INLINE F32 div(F32 a, F32 b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
STRETTO_INLINE F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
STRETTO_INLINE F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
STRETTO_INLINE F32 fma(F32 a, F32 b, F32 c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
STRETTO_INLINE F32 neg_fma(F32 a, F32 b, F32 c) {
    return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}
STRETTO_INLINE F32 sqrt(F32 a) { return {_mm256_sqrt_ps(a.low), _mm256_sqrt_ps(a.high)}; }
STRETTO_INLINE F32 neg(F32 a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_xor_ps(a.low, sign), _mm256_xor_ps(a.high, sign)};
}
STRETTO_INLINE F32 abs(F32 a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
}
STRETTO_INLINE F32 round(F32 a) {
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.low, nearest), _mm256_round_ps(a.high, nearest)};
}

STRETTO_INLINE Mask less(F32 a, F32 b) {
    return {_mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ), _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ)};
}
STRETTO_INLINE Mask equal(F32 a, F32 b) {
    return {_mm256_cmp_ps(a.low, b.low, _CMP_EQ_OQ), _mm256_cmp_ps(a.high, b.high, _CMP_EQ_OQ)};
}
STRETTO_INLINE __m256 less_u(__m256i a, __m256i b) {
    const __m256i sign = _mm256_set1_epi32(INT32_MIN);  // there is only a comparison with sign
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_xor_si256(b, sign), _mm256_xor_si256(a, sign)));
}
STRETTO_INLINE Mask less_u(I32 a, I32 b) { return {less_u(a.low, b.low), less_u(a.high, b.high)}; }
STRETTO_INLINE Mask is_nan(F32 a) {
    return {_mm256_cmp_ps(a.low, a.low, _CMP_UNORD_Q), _mm256_cmp_ps(a.high, a.high, _CMP_UNORD_Q)};
}
STRETTO_INLINE F32 select(Mask m, F32 yes, F32 no) {
    return {_mm256_blendv_ps(no.low, yes.low, m.low), _mm256_blendv_ps(no.high, yes.high, m.high)};
}
STRETTO_INLINE uint32_t mask_bits(Mask m) {
    return static_cast<uint32_t>(_mm256_movemask_ps(m.low)) | static_cast<uint32_t>(_mm256_movemask_ps(m.high)) << 8;
}
STRETTO_INLINE Mask mask_of(uint32_t bits) {
    const __m256i all = _mm256_set1_epi32(static_cast<int>(bits));
    const __m256i low = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), high = _mm256_slli_epi32(low, 8);
    return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, low), low)),
            _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, high), high))};
}

STRETTO_INLINE I32 to_int(F32 a) { return {_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high)}; }
STRETTO_INLINE F32 to_float(I32 a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
STRETTO_INLINE I32 as_int(F32 a) { return {_mm256_castps_si256(a.low), _mm256_castps_si256(a.high)}; }
STRETTO_INLINE F32 as_float(I32 a) { return {_mm256_castsi256_ps(a.low), _mm256_castsi256_ps(a.high)}; }
STRETTO_INLINE I32 add_i(I32 a, I32 b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
STRETTO_INLINE I32 sub_i(I32 a, I32 b) { return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)}; }
STRETTO_INLINE I32 mul_i(I32 a, I32 b) {
    return {_mm256_mullo_epi32(a.low, b.low), _mm256_mullo_epi32(a.high, b.high)};
}
STRETTO_INLINE I32 and_i(I32 a, I32 b) { return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)}; }
STRETTO_INLINE I32 or_i(I32 a, I32 b) { return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)}; }
STRETTO_INLINE I32 xor_i(I32 a, I32 b) { return {_mm256_xor_si256(a.low, b.low), _mm256_xor_si256(a.high, b.high)}; }
template <int N>
STRETTO_INLINE I32 shift_left(I32 a) {
    return {_mm256_slli_epi32(a.low, N), _mm256_slli_epi32(a.high, N)};
}
template <int N>
STRETTO_INLINE I32 shift_right(I32 a) {
    return {_mm256_srli_epi32(a.low, N), _mm256_srli_epi32(a.high, N)};
}

STRETTO_INLINE float sum(F32 a) {
    const __m256 eight = _mm256_add_ps(a.low, a.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
STRETTO_INLINE float largest(F32 a) {
    const __m256 eight = _mm256_max_ps(a.low, a.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

STRETTO_INLINE __m256 widen(__m128i bf16) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bf16), 16));
}
STRETTO_INLINE F32 load_bf16(const uint16_t* p) {
    const __m256i a = load_256(p);
    return {widen(_mm256_castsi256_si128(a)), widen(_mm256_extracti128_si256(a, 1))};
}
STRETTO_INLINE F32 load_bf16(const uint16_t* p, int64_t n) {
    uint16_t padded[16] = {};
    std::memcpy(padded, p, static_cast<size_t>(n) * sizeof *p);
    return load_bf16(padded);
}
STRETTO_INLINE __m256i narrow(__m256 a) {
    const __m256i bits = _mm256_castps_si256(a), high = _mm256_srli_epi32(bits, 16);
    const __m256i even = _mm256_add_epi32(_mm256_and_si256(high, _mm256_set1_epi32(1)), _mm256_set1_epi32(0x7fff));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, even), 16);
    const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    return _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)));
}
STRETTO_INLINE void store_bf16(uint16_t* p, F32 a) {
    // packus works within halves of 128 bits: its result comes as 0 2 1 3 quarters.
    store_256(p, _mm256_permute4x64_epi64(_mm256_packus_epi32(narrow(a.low), narrow(a.high)), 0xd8));
}
STRETTO_INLINE void store_bf16(uint16_t* p, F32 a, int64_t n) {
    uint16_t padded[16];
    store_bf16(padded, a);
    std::memcpy(p, padded, static_cast<size_t>(n) * sizeof *p);
}
STRETTO_INLINE F32 load_f16(const uint16_t* p) {
    const __m256i a = load_256(p);
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(a)), _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1))};
}

}  // namespace stretto::avx2

#include "functions_by_bits.hpp"
#include "functions.hpp"
