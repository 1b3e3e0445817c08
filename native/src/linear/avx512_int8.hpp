// int8 weights by int8 rows. Weights are unsigned (value + 128), so each group's integer sum is too large by 128 times
// the sum of the row's digits; gathered rows carry that correction.
#pragma once

#include "linear/avx512_tile.hpp"

namespace stretto::avx512 {
namespace {

// A gathered group: [R][32 digits] or, with two digits, [R][32 high, 32 low], then [R] corrections and [R] scales.
template <int R, bool two>
STRETTO_INLINE void int8_half(__m512 (&sum)[R], const char* weights, const char* x) {
    constexpr int digits = two ? 64 : 32;
    const char* correction = x + digits * R;
    const char* scale = correction + 4 * R;
    __m512i dot[R];
    each<R>([&](auto m) STRETTO_LAMBDA { dot[m] = two ? _mm512_setzero_si512() : spread_i(correction + 4 * m); });
    each<8>([&](auto quad) STRETTO_LAMBDA {
        const __m512i w = _mm512_load_si512(weights + 64 * quad);
        bring_line<R>(weights + 64 * quad);
        each<R>([&](auto m) STRETTO_LAMBDA { dot_bytes(dot[m], w, x + digits * m + 4 * quad); });
    });
    if constexpr (two) {
        weights = again(weights);
        each<R>([&](auto m) STRETTO_LAMBDA {
            dot[m] = _mm512_add_epi32(_mm512_maskz_slli_epi32(0xffff, dot[m], 8), spread_i(correction + 4 * m));
        });
        each<8>([&](auto quad) STRETTO_LAMBDA {
            const __m512i w = _mm512_load_si512(weights + 64 * quad);
            each<R>([&](auto m) STRETTO_LAMBDA { dot_bytes(dot[m], w, x + digits * m + 32 + 4 * quad); });
        });
    }
    each<R>([&](auto m) STRETTO_LAMBDA {
        sum[m] = _mm512_fmadd_ps(_mm512_maskz_cvtepi32_ps(0xffff, dot[m]), spread(scale + 4 * m), sum[m]);
    });
}

// Whether a tile multiplies both halves of a panel at once: digits that are spread over a register serve two products
// then, where loads are what holds the multipliers up. Fewer rows wait for memory, which is best read in order, unless
// the panel is `shared` with another tile and lies in the cache; the sums of more do not fit the registers.
constexpr bool both_halves(int rows, bool shared) { return rows <= 6 && (rows > 4 || shared); }

// `low` and `high` += the products of a group's 32 inputs with the halves of a panel.
template <int R>
STRETTO_INLINE void dot_group(__m512i (&low)[R], __m512i (&high)[R], const char* weights, const char* x) {
    each<8>([&](auto quad) STRETTO_LAMBDA {
        const __m512i first = _mm512_load_si512(weights + 64 * quad);
        const __m512i second = _mm512_load_si512(weights + 512 + 64 * quad);
        each<R>([&](auto m) STRETTO_LAMBDA {
            const __m512i digits = spread_i(x + 32 * m + 4 * quad);
            dot_bytes(low[m], first, digits);
            dot_bytes(high[m], second, digits);
        });
    });
}

template <int R>
STRETTO_INLINE void int8_group(__m512 (&low)[R], __m512 (&high)[R], const char* weights, const char* x) {
    const char *correction = x + 32 * R, *scale = correction + 4 * R;
    __m512i first[R], second[R];
    each<R>([&](auto m) STRETTO_LAMBDA { first[m] = second[m] = spread_i(correction + 4 * m); });
    dot_group<R>(first, second, weights, x);
    each<R>([&](auto m) STRETTO_LAMBDA {
        const __m512 factor = spread(scale + 4 * m);
        low[m] = _mm512_fmadd_ps(_mm512_maskz_cvtepi32_ps(0xffff, first[m]), factor, low[m]);
        high[m] = _mm512_fmadd_ps(_mm512_maskz_cvtepi32_ps(0xffff, second[m]), factor, high[m]);
    });
}

template <int R, bool two, bool shared>
void int8_tile(const Tile& tile) {
    __m512 low[R], high[R];
    load_sums(tile, low, high);
    const char *weights = tile.weights, *x = tile.rows, *ahead = tile.ahead;
    for (int64_t group = 0; group < tile.groups; ++group) {
        bring_lines<shared ? most_rows : R>(ahead, tile.lines);
        if constexpr (!two && both_halves(R, shared)) {
            int8_group<R>(low, high, weights, x);
        } else {
            int8_half<R, two>(low, weights, x);
            int8_half<R, two>(high, weights + 512, again(x));
        }
        weights += 1024;
        x += (two ? 72 : 40) * R;
    }
    store_sums(tile, low, high);
}

// One scale per row: the integers add up over the whole shard. A gathered group: [R][32 digits], then [R] corrections.
template <int R>
STRETTO_INLINE void int8_row_half(__m512i (&sum)[R], const char* weights, const char* x) {
    each<8>([&](auto quad) STRETTO_LAMBDA {
        const __m512i w = _mm512_load_si512(weights + 64 * quad);
        bring_line<R>(weights + 64 * quad);
        each<R>([&](auto m) STRETTO_LAMBDA { dot_bytes(sum[m], w, x + 32 * m + 4 * quad); });
    });
    each<R>([&](auto m) STRETTO_LAMBDA { sum[m] = _mm512_add_epi32(sum[m], spread_i(x + 32 * R + 4 * m)); });
}

template <int R>
STRETTO_INLINE void int8_row_group(__m512i (&low)[R], __m512i (&high)[R], const char* weights, const char* x) {
    dot_group<R>(low, high, weights, x);
    each<R>([&](auto m) STRETTO_LAMBDA {
        const __m512i correction = spread_i(x + 32 * R + 4 * m);
        low[m] = _mm512_add_epi32(low[m], correction);
        high[m] = _mm512_add_epi32(high[m], correction);
    });
}

template <int R>
void int8_row_tile(const Tile& tile) {
    __m512i low[R], high[R];
    each<R>([&](auto m) STRETTO_LAMBDA {
        low[m] = tile.fresh ? _mm512_setzero_si512() : _mm512_load_si512(tile.partial + 32 * m);
        high[m] = tile.fresh ? _mm512_setzero_si512() : _mm512_load_si512(tile.partial + 32 * m + 16);
    });
    const char *weights = tile.weights, *x = tile.rows, *ahead = tile.ahead;
    for (int64_t group = 0; group < tile.groups; ++group) {
        bring_lines<R>(ahead, tile.lines);
        if constexpr (R > 4) {  // the sums of all rows are integers, for which there is room
            int8_row_group<R>(low, high, weights, x);
        } else {
            int8_row_half<R>(low, weights, x);
            int8_row_half<R>(high, weights + 512, again(x));
        }
        weights += 1024;
        x += 36 * R;
    }
    each<R>([&](auto m) STRETTO_LAMBDA {
        _mm512_store_si512(tile.partial + 32 * m, low[m]);
        _mm512_store_si512(tile.partial + 32 * m + 16, high[m]);
    });
}

}  // namespace
}  // namespace stretto::avx512
