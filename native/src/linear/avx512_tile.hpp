// What the AVX-512 tiles have in common. A tile is up to 8 rows by one panel: every 64 bytes of weights are loaded once
// and serve all rows; the accumulators stay in registers for a whole segment of the inputs.
#pragma once

#include <cstdint>
#include <utility>

#include "lanes/avx512.hpp"
#include "linear/linear.hpp"

#if defined(__GNUC__)
#define STRETTO_LAMBDA __attribute__((always_inline))
#else
#define STRETTO_LAMBDA
#endif

namespace stretto::avx512 {
namespace {

constexpr int most_rows = 8;  // of a tile: 16 sums, 8 integer sums of a group and the weights fit 32 registers

// One call of a tile: `groups` groups of 32 inputs.
struct Tile {
    const char* weights;
    const uint16_t* scales;  // int4: of the panel's first group here
    const uint8_t* zeros;
    const char* rows;  // gathered rows (avx512_gather.hpp)
    int64_t groups;
    float* partial;     // [rows][32]: sums so far, in and out; int8_row: int32
    bool fresh;         // the sums start at zero
    const char* ahead;  // what to bring into the cache meanwhile, `lines` lines of 64 bytes a group
    int64_t lines;
};

// Calls f(0) ... f(n - 1) with constants: arrays indexed by them become registers, which loops do not guarantee.
template <int n, class F>
STRETTO_INLINE void each(F f) {
    [&]<int... i>(std::integer_sequence<int, i...>)
        STRETTO_LAMBDA { (f(std::integral_constant<int, i>{}), ...); }(std::make_integer_sequence<int, n>{});
}

// The same pointer, of which the compiler does not know that it is: else it keeps what the first half of a panel loaded
// for the second half, in registers that the sums need.
STRETTO_INLINE const char* again(const char* pointer) {
#if defined(__GNUC__)
    asm("" : "+r"(pointer));
#endif
    return pointer;
}

// sum += the 4 products of each lane: unsigned bytes of `weights` by the 4 signed bytes at `x`. The compiler's own
// choice for the broadcast is a separate instruction and register.
STRETTO_INLINE void dot_bytes(__m512i& sum, __m512i weights, const char* x) {
#if defined(__GNUC__)
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(weights), "m"(*reinterpret_cast<const int32_t*>(x)));
#else
    sum = _mm512_dpbusd_epi32(sum, weights, _mm512_set1_epi32(*reinterpret_cast<const int32_t*>(x)));
#endif
}

// The same with digits that are spread over a register already.
STRETTO_INLINE void dot_bytes(__m512i& sum, __m512i weights, __m512i x) {
#if defined(__GNUC__)
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(x));
#else
    sum = _mm512_dpbusd_epi32(sum, weights, x);
#endif
}

// sum += products of the bfloat16 pair in each lane of `x`, the even one first.
STRETTO_INLINE void dot_pair(__m512& sum, __m512i weights, __m512i x) {
#if defined(__GNUC__)
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(x));
#else
    sum = _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)x);
#endif
}

STRETTO_INLINE __m512 spread(const char* x) { return _mm512_set1_ps(*reinterpret_cast<const float*>(x)); }
STRETTO_INLINE __m512i spread_i(const char* x) { return _mm512_set1_epi32(*reinterpret_cast<const int32_t*>(x)); }

// Up to four rows wait for memory alone: each line of weights is asked for a little before it is read. More rows have
// time for arithmetic, and gain when `lines` lines a group come to the second level from further ahead.
constexpr bool streams(int rows) { return rows <= 4; }

constexpr int64_t stream_ahead = 3072, block_ahead = 8192;

template <int R>
STRETTO_INLINE void bring_line(const char* weights) {
    if constexpr (streams(R)) _mm_prefetch(weights + stream_ahead, _MM_HINT_T0);
}

template <int R>
STRETTO_INLINE void bring_lines(const char*& ahead, int64_t lines) {
    if constexpr (streams(R)) return;
    for (int64_t line = 0; line < lines; ++line) _mm_prefetch(ahead + 64 * line, _MM_HINT_T1);
    ahead += 64 * lines;
}

template <int R>
STRETTO_INLINE void load_sums(const Tile& tile, __m512 (&low)[R], __m512 (&high)[R]) {
    each<R>([&](auto m) STRETTO_LAMBDA {
        low[m] = tile.fresh ? _mm512_setzero_ps() : _mm512_load_ps(tile.partial + 32 * m);
        high[m] = tile.fresh ? _mm512_setzero_ps() : _mm512_load_ps(tile.partial + 32 * m + 16);
    });
}

template <int R>
STRETTO_INLINE void store_sums(const Tile& tile, const __m512 (&low)[R], const __m512 (&high)[R]) {
    each<R>([&](auto m) STRETTO_LAMBDA {
        _mm512_store_ps(tile.partial + 32 * m, low[m]);
        _mm512_store_ps(tile.partial + 32 * m + 16, high[m]);
    });
}

}  // namespace
}  // namespace stretto::avx512
