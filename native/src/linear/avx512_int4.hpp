// int4 weights by int8 rows, a scale and a zero (the nibble that means 0) per group of 32 inputs and output.
#pragma once

#include "linear/avx512_tile.hpp"

namespace stretto::avx512 {
namespace {

// A gathered group: [R][32 digits], [R] corrections, [R] scales. A correction is -8 times the sum of the digits, or
// with zeros the negative sum alone, of which the low 16 bits meet the zero by vpdpwssd (the high ones meet zeros).
template <int R, bool with_zeros>
STRETTO_INLINE void int4_half(__m512 (&sum)[R], const char* weights, const uint16_t* scales, const uint8_t* zeros,
                              const char* x) {
    const char* correction = x + 32 * R;
    const char* scale = correction + 4 * R;
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i dot[R];
    if constexpr (with_zeros) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros));
        const __m512i zero = _mm512_maskz_cvtepu8_epi32(0xffff, bytes);
        each<R>([&](auto m) STRETTO_LAMBDA {
            dot[m] = _mm512_dpwssd_epi32(_mm512_setzero_si512(), zero, spread_i(correction + 4 * m));
        });
    } else {
        each<R>([&](auto m) STRETTO_LAMBDA { dot[m] = spread_i(correction + 4 * m); });
    }
    each<4>([&](auto oct) STRETTO_LAMBDA {
        const __m512i both = _mm512_load_si512(weights + 64 * oct);
        bring_line<R>(weights + 64 * oct);
        const __m512i first = _mm512_and_si512(both, nibble);
        const __m512i second = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
        each<R>([&](auto m) STRETTO_LAMBDA { dot_bytes(dot[m], first, x + 32 * m + 8 * oct); });
        each<R>([&](auto m) STRETTO_LAMBDA { dot_bytes(dot[m], second, x + 32 * m + 8 * oct + 4); });
    });
    const __m512 step = _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales)));
    each<R>([&](auto m) STRETTO_LAMBDA {
        const __m512 both = _mm512_mul_ps(step, spread(scale + 4 * m));
        sum[m] = _mm512_fmadd_ps(_mm512_maskz_cvtepi32_ps(0xffff, dot[m]), both, sum[m]);
    });
}

template <int R, bool with_zeros>
void int4_tile(const Tile& tile) {
    __m512 low[R], high[R];
    load_sums(tile, low, high);
    const char *weights = tile.weights, *x = tile.rows, *ahead = tile.ahead;
    const uint16_t* scales = tile.scales;
    const uint8_t* zeros = tile.zeros;
    for (int64_t group = 0; group < tile.groups; ++group) {
        bring_lines<R>(ahead, tile.lines);
        _mm_prefetch(reinterpret_cast<const char*>(scales + 1024), _MM_HINT_T0);
        int4_half<R, with_zeros>(low, weights, scales, zeros, x);
        int4_half<R, with_zeros>(high, weights + 256, scales + 16, with_zeros ? zeros + 16 : nullptr, again(x));
        weights += 512;
        scales += 32;
        if constexpr (with_zeros) zeros += 32;
        x += 40 * R;
    }
    store_sums(tile, low, high);
}

}  // namespace
}  // namespace stretto::avx512
