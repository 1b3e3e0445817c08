// bf16 and fp32: one sum per row and output, inputs in ascending order. A gathered group: [R][32 inputs].
#pragma once

#include "linear/avx512_tile.hpp"

namespace stretto::avx512 {
namespace {

template <int R>
void bf16_tile(const Tile& tile) {
    __m512 low[R], high[R];
    load_sums(tile, low, high);
    const char *weights = tile.weights, *x = tile.rows, *ahead = tile.ahead;
    for (int64_t group = 0; group < tile.groups; ++group) {
        bring_lines<R>(ahead, tile.lines);
        each<16>([&](auto pair) STRETTO_LAMBDA {
            const __m512i w0 = _mm512_load_si512(weights + 128 * pair);
            const __m512i w1 = _mm512_load_si512(weights + 128 * pair + 64);
            bring_line<R>(weights + 128 * pair);
            bring_line<R>(weights + 128 * pair + 64);
            each<R>([&](auto m) STRETTO_LAMBDA {
                const __m512i values = spread_i(x + 64 * m + 4 * pair);
                dot_pair(low[m], w0, values);
                dot_pair(high[m], w1, values);
            });
        });
        weights += 2048;
        x += 64 * R;
    }
    store_sums(tile, low, high);
}

template <int R>
void fp32_tile(const Tile& tile) {
    __m512 low[R], high[R];
    load_sums(tile, low, high);
    const char *weights = tile.weights, *x = tile.rows, *ahead = tile.ahead;
    for (int64_t group = 0; group < tile.groups; ++group) {
        bring_lines<R>(ahead, tile.lines);
        for (int part = 0; part < 4; ++part) {
            each<8>([&](auto k) STRETTO_LAMBDA {
                const __m512 w0 = _mm512_load_ps(weights + 128 * k);
                const __m512 w1 = _mm512_load_ps(weights + 128 * k + 64);
                bring_line<R>(weights + 128 * k);
                bring_line<R>(weights + 128 * k + 64);
                each<R>([&](auto m) STRETTO_LAMBDA {
                    const __m512 value = spread(x + 128 * m + 4 * k);
                    low[m] = _mm512_fmadd_ps(w0, value, low[m]);
                    high[m] = _mm512_fmadd_ps(w1, value, high[m]);
                });
            });
            weights += 1024;
            x += 32;
        }
        x += 128 * (R - 1);
    }
    store_sums(tile, low, high);
}

}  // namespace
}  // namespace stretto::avx512
