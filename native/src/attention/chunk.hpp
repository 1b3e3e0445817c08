// A chunk: what one piece of work computes at a time, at most 32 lines, and its state in the thread's scratch.
#pragma once

#include <cmath>
#include <cstring>

#include "products.hpp"

namespace stretto::STRETTO_PATH {
namespace {

constexpr float low = -1e30f;  // maximum of nothing: finite, so that no difference of two is NaN

// Result of some positions for each line: maximum of the scores, sum of exp(score - max) and of that times the values.
struct Result {
    float* top;  // [32]
    float* sum;  // [32]
    float* out;  // [32][stride]
};

struct Chunk {
    const Attend* call;
    const AttentionPlan::Impl* plan;
    const View* view;
    int64_t kv_head, head, heads;  // heads head...head + heads - 1, all of kv_head's group; line = row * heads + head
    int64_t row, rows;             // in the view

    int64_t lines, size, stride, steps;
    int64_t floor[most_lines];  // each row sees indices above
    int64_t lowest, highest;    // of the floors
    int64_t reach, furthest;    // orders that the first and the last row see

    int64_t share_bytes;  // of one K/V head's keys or values in a block

    char* query;              // see score
    Result all, group, tile;  // of all groups so far, of the group at hand and of one more tile of it
    float* scores;            // [lines][128]
    char* weights;            // [lines][128] words
    float* bias;              // [rows][128]
    char* copies;             // [8][2][share_bytes]: gathered keys and values of its blocks

    // The blocks of the tile at hand of which some line sees something.
    int64_t count;
    Operand operand[group_blocks];
    const Block* block[group_blocks];
    bool whole[group_blocks];                 // all lines see all of it
    uint32_t mask[group_blocks][most_lines];  // what each row sees of it; not set where whole
};

STRETTO_INLINE char* take(char*& scratch, int64_t bytes) {
    char* taken = scratch;
    scratch += (bytes + 63) / 64 * 64;
    return taken;
}

STRETTO_INLINE float* take_floats(char*& scratch, int64_t count) {
    return reinterpret_cast<float*>(take(scratch, count * 4));
}

STRETTO_INLINE Result take_result(char*& scratch, int64_t stride) {
    float *top = take_floats(scratch, most_lines), *sum = take_floats(scratch, most_lines);
    return {top, sum, take_floats(scratch, most_lines * stride)};
}

constexpr int64_t largest_head = 256;
static_assert(most_lines * largest_head * 4 + 3 * most_lines * (largest_head + 2) * 4 +
                      3 * most_lines * group_lanes * 4 + group_blocks * 2 * block_slots * largest_head * 4 <=
                  attention_scratch,
              "queries and three results, scores, weights and bias, gathered blocks");

// Completes a chunk of which the members up to `rows` are set.
void start(Chunk& c, char* scratch) {
    const LayerStorage& storage = c.call->storage;
    c.lines = c.rows * c.heads;
    c.size = storage.head_size;
    c.stride = (c.size + 15) / 16 * 16;
    c.steps = storage.bf16 ? c.size / 2 : c.size;
    c.share_bytes = block_slots * c.size * (storage.bf16 ? 2 : 4);
    c.lowest = INT64_MAX, c.highest = INT64_MIN;
    for (int64_t r = 0; r < c.rows; ++r) {
        const int64_t index = c.plan->index[c.view->first + c.row + r];
        c.floor[r] = c.call->window > 0 ? index - c.call->window : -1;
        if (c.floor[r] < c.lowest) c.lowest = c.floor[r];
        if (c.floor[r] > c.highest) c.highest = c.floor[r];
    }
    c.reach = c.view->mutual ? INT32_MAX : c.row;
    c.furthest = c.view->mutual ? INT32_MAX : c.row + c.rows - 1;
    c.query = take(scratch, most_lines * c.steps * 4);
    c.all = take_result(scratch, c.stride);
    c.group = take_result(scratch, c.stride);
    c.tile = take_result(scratch, c.stride);
    c.scores = take_floats(scratch, most_lines * group_lanes);
    c.weights = take(scratch, most_lines * group_lanes * 4);
    c.bias = take_floats(scratch, most_lines * group_lanes);
    c.copies = scratch;
}

// Brings the scaled queries to the order in which score reads them; lines that fill a tile up are zeros.
template <bool bf16>
void load_queries(const Chunk& c) {
    const int64_t rest = c.lines % query_lines, padded = c.lines - rest + (rest > 0 ? lines_at_once(rest) : 0);
    for (int64_t line = 0; line < padded; ++line) {
        char* to = c.query + (line / query_lines * c.steps * query_lines + line % query_lines) * 4;
        if (line >= c.lines) {
            for (int64_t step = 0; step < c.steps; ++step) std::memset(to + step * query_lines * 4, 0, 4);
            continue;
        }
        const float* from = c.call->query + (c.view->first + c.row + line / c.heads) * c.call->query_stride +
                            (c.head + line % c.heads) * c.size;
        for (int64_t d = 0; d < c.size; d += 16) {
            const int64_t n = c.size - d < 16 ? c.size - d : 16;
            const F32 scaled = mul(load(from + d, n), all(c.call->scale));
            alignas(64) char words[64];
            if constexpr (bf16)
                store_bf16(reinterpret_cast<uint16_t*>(words), scaled);
            else
                store(reinterpret_cast<float*>(words), scaled);
            const int64_t count = bf16 ? n / 2 : n, first = bf16 ? d / 2 : d;
            for (int64_t i = 0; i < count; ++i) std::memcpy(to + (first + i) * query_lines * 4, words + 4 * i, 4);
        }
    }
}

STRETTO_INLINE const char* share(const void* data, const Chunk& c, int64_t place) {
    return static_cast<const char*>(data) + (place * c.call->storage.kv_heads + c.kv_head) * c.share_bytes;
}

// Copies a block's entries to their lanes; lanes without one are zeros.
template <bool bf16>
Operand gather(const Chunk& c, const Block& block, int64_t number) {
    char* keys = c.copies + 2 * number * c.share_bytes;
    char* values = keys + c.share_bytes;
    std::memset(keys, 0, static_cast<size_t>(2 * c.share_bytes));
    const Lanes& lanes = c.plan->lanes[block.lanes];
    for (int64_t lane = 0; lane < block_slots; ++lane) {
        if (!(block.present >> lane & 1)) continue;
        const int64_t place = lanes.slot[lane] / block_slots, slot = lanes.slot[lane] % block_slots;
        const char* key = share(c.call->storage.keys, c, place) + slot * 4;
        for (int64_t step = 0; step < c.steps; ++step) std::memcpy(keys + step * 64 + lane * 4, key + step * 64, 4);
        const char* value = share(c.call->storage.values, c, place);
        if constexpr (bf16) {
            const char* from = value + slot / 2 * c.size * 4 + slot % 2 * 2;
            char* to = values + lane / 2 * c.size * 4 + lane % 2 * 2;
            for (int64_t d = 0; d < c.size; ++d) std::memcpy(to + d * 4, from + d * 4, 2);
        } else {
            std::memcpy(values + lane * c.size * 4, value + slot * c.size * 4, static_cast<size_t>(c.size) * 4);
        }
    }
    return {keys, values, nullptr};
}

// Which lanes of a block a row sees. Where there is a bias it is noted down, and -inf hides.
uint32_t seen(const Chunk& c, const Block& block, int64_t row, float* bias) {
    const int64_t reach = c.view->mutual ? INT32_MAX : c.row + row, hidden = c.floor[row] - block.first + 1;
    const Lanes* lanes = block.lanes >= 0 ? c.plan->lanes + block.lanes : nullptr;
    uint32_t mask = block.present;
    if (block.most > reach)
        for (int lane = 0; lane < block_slots; ++lane)
            mask &= ~(static_cast<uint32_t>(lanes->order[lane] > reach) << lane);
    if (hidden > 0) mask &= hidden < block_slots ? 0xffffffffu << hidden : 0u;
    if (c.call->bias == nullptr) return mask;
    const int64_t bias_head = c.call->bias_heads == 1 ? 0 : c.kv_head;
    const float* from = c.call->bias + ((c.row + row) * c.call->bias_heads + bias_head) * c.view->entries;
    for (int lane = 0; lane < block_slots; ++lane) {
        bias[lane] = 0.0f;
        if (!(mask >> lane & 1)) continue;
        bias[lane] = from[lanes != nullptr ? lanes->entry[lane] : block.entry + lane];
        if (bias[lane] == -INFINITY) mask &= ~(1u << lane);
    }
    return mask;
}

STRETTO_INLINE bool reached(const Chunk& c, const Block& block) {
    return block.least <= c.furthest && block.first + block_slots - 1 > c.lowest;
}

// Finds what the chunk's rows see of a tile.
template <bool bf16>
void look(Chunk& c, const Tile& tile) {
    c.count = 0;
    for (int32_t b = 0; b < tile.blocks; ++b) {
        const Block& block = c.plan->blocks[tile.first + b];
        if (!reached(c, block)) continue;
        const int64_t n = c.count;
        bool whole = block.present == 0xffff && block.most <= c.reach && block.first > c.highest;
        whole &= c.call->bias == nullptr;
        if (!whole) {
            uint32_t any = 0, every = 0xffff;
            for (int64_t r = 0; r < c.rows; ++r) {
                const uint32_t mask = seen(c, block, r, c.bias + r * group_lanes + n * block_slots);
                c.mask[n][r] = mask, any |= mask, every &= mask;
            }
            if (any == 0) continue;
            whole = every == 0xffff;
        }
        c.block[n] = &block;
        c.whole[n] = whole;
        const LayerStorage& storage = c.call->storage;
        if (block.place == gathered)
            c.operand[n] = gather<bf16>(c, block, n);
        else
            c.operand[n] = {share(storage.keys, c, block.place), share(storage.values, c, block.place), nullptr};
        ++c.count;
    }
}

// While the values at hand are read, brings the keys of the next tile near.
void look_ahead(Chunk& c, const Tile& next) {
    for (int64_t n = 0; n < c.count && n < next.blocks; ++n) {
        const Block& block = c.plan->blocks[next.first + n];
        if (block.place == gathered || !reached(c, block)) continue;
        c.operand[n].ahead = share(c.call->storage.keys, c, block.place);
    }
}

}  // namespace
}  // namespace stretto::STRETTO_PATH
