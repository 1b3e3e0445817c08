// The two products of attention, in tiles of lines whose sums stay in registers. A line is one row's query of one head.
//
// Both read storage as 4-byte words, 16 to a register: fp32 numbers, or pairs of bf16 that a product adds up in one
// step. A path defines before: dot_pairs, which adds such pairs up, and how large its tiles are: `query_lines` (4 or 8)
// x `query_blocks` and `value_lines` x `value_registers`. A line's bits do not depend on them: every sum runs over
// ascending dimensions or positions in one register.
#pragma once

#include <cstring>
#include <utility>

#include "plan.hpp"

#if defined(__GNUC__)
#define STRETTO_LAMBDA __attribute__((always_inline))
#else
#define STRETTO_LAMBDA
#endif

namespace stretto::STRETTO_PATH {
namespace {

constexpr int64_t most_lines = 32;  // of a chunk, in whose scratch the lines' state lies
constexpr int64_t group_blocks = group_lanes / block_slots;

// Calls f(0) ... f(n - 1) with constants: arrays indexed by them become registers, which loops do not guarantee.
template <int n, class F>
STRETTO_INLINE void unrolled(F f) {
    [&]<int... i>(std::integer_sequence<int, i...>)
        STRETTO_LAMBDA { (f(std::integral_constant<int, i>{}), ...); }(std::make_integer_sequence<int, n>{});
}

// Brings a line to the second level: a tile's keys and values would push each other out of the first.
STRETTO_INLINE void fetch(const char* address) {
#if defined(__GNUC__)
    __builtin_prefetch(address, 0, 2);
#else
    (void)address;
#endif
}

template <bool bf16>
STRETTO_INLINE F32 dot(F32 sum, I32 words, I32 line) {
    if constexpr (bf16)
        return dot_pairs(sum, words, line);
    else
        return fma(as_float(words), as_float(line), sum);
}

STRETTO_INLINE I32 word_at(const char* p) {
    int32_t word;
    std::memcpy(&word, p, sizeof word);
    return all_i(word);
}

// A block as the products read it.
struct Operand {
    const char* keys;    // [steps][16] words
    const char* values;  // [8 or 16 steps][head_size] words
    const char* ahead;   // keys to bring near while these values are read, or null
};

// Scores of `lines` lines with `blocks` blocks. Queries lie step by step, query_lines words each.
template <bool bf16, int lines, int blocks>
void score(const Operand* block, const char* query, int64_t steps, bool fetching, float* scores) {
    F32 sum[lines][blocks];
    unrolled<lines>([&](auto l)
                        STRETTO_LAMBDA { unrolled<blocks>([&](auto b) STRETTO_LAMBDA { sum[l][b] = zero(); }); });
    for (int64_t at = 0; at < steps * 64; at += 64) {
        I32 key[blocks];
        unrolled<blocks>([&](auto b) STRETTO_LAMBDA {
            key[b] = load_i(reinterpret_cast<const int32_t*>(block[b].keys + at));
            if (fetching) fetch(block[b].values + at);
        });
        unrolled<lines>([&](auto l) STRETTO_LAMBDA {
            const I32 word = word_at(query + 4 * l);
            unrolled<blocks>([&](auto b) STRETTO_LAMBDA { sum[l][b] = dot<bf16>(sum[l][b], key[b], word); });
        });
        query += 4 * query_lines;
    }
    unrolled<lines>([&](auto l) STRETTO_LAMBDA {
        unrolled<blocks>([&](auto b) STRETTO_LAMBDA { store(scores + l * group_lanes + b * block_slots, sum[l][b]); });
    });
}

template <bool bf16, int lines>
void score_blocks(const Operand* block, int64_t count, const char* query, int64_t steps, bool fetching, float* scores) {
    int64_t b = 0;
    for (; b + query_blocks <= count; b += query_blocks)
        score<bf16, lines, query_blocks>(block + b, query, steps, fetching, scores + b * block_slots);
    for (; b < count; ++b) score<bf16, lines, 1>(block + b, query, steps, fetching, scores + b * block_slots);
}

// How many lines one call of score takes of `left`: a power of two, with lines of zeros behind the last.
STRETTO_INLINE int64_t lines_at_once(int64_t left) {
    int64_t lines = 1;
    while (lines < left && lines < query_lines) lines *= 2;
    return lines;
}

// Scores [lines][128] of all blocks of a tile.
template <bool bf16>
void score_lines(const Operand* block, int64_t count, const char* query, int64_t lines, int64_t steps, float* scores) {
    for (int64_t first = 0; first < count; first += query_blocks) {
        const int64_t blocks = count - first < query_blocks ? count - first : query_blocks;
        for (int64_t line = 0; line < lines; line += query_lines) {
            const char* words = query + line * steps * 4;
            float* to = scores + line * group_lanes + first * block_slots;
            const int64_t at_once = lines_at_once(lines - line);
            const bool fetching = line == 0;
            if (at_once == query_lines)
                score_blocks<bf16, query_lines>(block + first, blocks, words, steps, fetching, to);
            else if (at_once == 4)
                score_blocks<bf16, 4>(block + first, blocks, words, steps, fetching, to);
            else if (at_once == 2)
                score_blocks<bf16, 2>(block + first, blocks, words, steps, fetching, to);
            else
                score_blocks<bf16, 1>(block + first, blocks, words, steps, fetching, to);
        }
    }
}

// The columns of the values that a call reads: `last` of the last register's.
struct Columns {
    int64_t head_size, first, last;
};

// out += weights x values over `count` blocks. Of masked blocks (one at a time) `mask` [steps] tells which halves of
// the words count; what lies in the others may be NaN.
template <bool bf16, bool masked, int lines, int registers>
void weigh(const Operand* block, int64_t count, Columns columns, const char* weights, const int32_t* mask, float* out,
           int64_t stride) {
    constexpr int64_t steps = bf16 ? block_slots / 2 : block_slots;
    const int64_t row = columns.head_size * 4;
    F32 sum[lines][registers];
    unrolled<lines>([&](auto l) STRETTO_LAMBDA {
        unrolled<registers>([&](auto r) STRETTO_LAMBDA { sum[l][r] = load(out + l * stride + r * 16); });
    });
    for (int64_t b = 0; b < count; ++b) {
        const char* values = block[b].values + columns.first * 4;
        const char* ahead = block[b].ahead != nullptr ? block[b].ahead + columns.first * 4 : nullptr;
        for (int64_t step = 0; step < steps; ++step) {
            I32 word[registers];
            unrolled<registers>([&](auto r) STRETTO_LAMBDA {
                const char* from = values + r * 64;
                if constexpr (r + 1 < registers)
                    word[r] = load_i(reinterpret_cast<const int32_t*>(from));
                else
                    word[r] = as_int(load(reinterpret_cast<const float*>(from), columns.last));
                if constexpr (masked) word[r] = and_i(word[r], all_i(mask[step]));
                if (ahead != nullptr) fetch(ahead + r * 64);
            });
            unrolled<lines>([&](auto l) STRETTO_LAMBDA {
                const I32 weight = word_at(weights + l * group_lanes * 4);
                unrolled<registers>([&](auto r) STRETTO_LAMBDA { sum[l][r] = dot<bf16>(sum[l][r], word[r], weight); });
            });
            values += row;
            weights += 4;
            if (ahead != nullptr) ahead += row;
        }
    }
    unrolled<lines>([&](auto l) STRETTO_LAMBDA {
        unrolled<registers>([&](auto r) STRETTO_LAMBDA { store(out + l * stride + r * 16, sum[l][r]); });
    });
}

template <bool bf16, bool masked, int lines, int registers>
void weigh_registers(int64_t wanted, const Operand* block, int64_t count, Columns columns, const char* weights,
                     const int32_t* mask, float* out, int64_t stride) {
    if constexpr (registers > 1)
        if (wanted < registers)
            return weigh_registers<bf16, masked, lines, registers - 1>(wanted, block, count, columns, weights, mask,
                                                                       out, stride);
    weigh<bf16, masked, lines, registers>(block, count, columns, weights, mask, out, stride);
}

// out [lines][stride] += weights [lines][128 words] x values, in ascending order of the positions.
template <bool bf16, bool masked>
void weigh_lines(const Operand* block, int64_t count, int64_t head_size, const char* weights, const int32_t* mask,
                 int64_t lines, float* out, int64_t stride) {
    const int64_t parts = (head_size + 15) / 16, sweeps = (parts + value_registers - 1) / value_registers;
    for (int64_t sweep = 0; sweep < sweeps; ++sweep) {
        const int64_t first = parts * sweep / sweeps, wanted = parts * (sweep + 1) / sweeps - first;
        const int64_t left = head_size - (first + wanted - 1) * 16;
        const Columns columns{head_size, first * 16, left < 16 ? left : 16};
        int64_t line = 0;
        const auto go = [&](auto at_once) {
            for (; line + at_once <= lines; line += at_once)
                weigh_registers<bf16, masked, at_once, value_registers>(wanted, block, count, columns,
                                                                        weights + line * group_lanes * 4, mask,
                                                                        out + line * stride + first * 16, stride);
        };
        go(std::integral_constant<int, value_lines>{});
        go(std::integral_constant<int, 2>{});
        go(std::integral_constant<int, 1>{});
    }
}

}  // namespace
}  // namespace stretto::STRETTO_PATH
