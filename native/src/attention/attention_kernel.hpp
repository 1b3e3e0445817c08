// Attention of one path, see attention.hpp. Included after the path's lanes, tile sizes and dot_pairs.
#include "results.hpp"

namespace stretto::STRETTO_PATH {
namespace {

// Caps a line's scores, adds its bias and hides what it does not see.
void adjust(const Chunk& c, int64_t row, float* scores) {
    const float cap = c.call->cap;
    for (int64_t b = 0; b < c.count; ++b) {
        float* at = scores + b * block_slots;
        F32 score = load(at);
        if (cap > 0.0f) score = mul(all(cap), tanh(div(score, all(cap))));
        if (c.call->bias != nullptr) score = add(score, load(c.bias + row * group_lanes + b * block_slots));
        if (!c.whole[b]) score = select(mask_of(c.mask[b][row]), score, all(-INFINITY));
        store(at, score);
    }
}

template <bool bf16>
STRETTO_INLINE void store_block_weights(char* weights, int64_t block, F32 a) {
    if constexpr (bf16)
        store_weights(reinterpret_cast<uint16_t*>(weights) + block * block_slots, a);
    else
        store(reinterpret_cast<float*>(weights) + block * block_slots, a);
}

// Weights exp(score - max) of a line over `blocks` blocks; the sum is that of the weights before they are rounded.
template <bool bf16>
STRETTO_INLINE void weights_of(const float* scores, int64_t blocks, char* weights, float* top, float* total) {
    F32 highest = all(low);
    for (int64_t b = 0; b < blocks; ++b) highest = max(highest, load(scores + b * block_slots));
    *top = largest(highest);
    F32 lanes = zero();
    for (int64_t b = 0; b < blocks; ++b) {
        const F32 weight = exp(sub(load(scores + b * block_slots), all(*top)));
        lanes = add(lanes, weight);
        store_block_weights<bf16>(weights, b, weight);
    }
    *total = sum(lanes);
}

template <bool bf16>
void score_tile(const Chunk& c) {
    score_lines<bf16>(c.operand, c.count, c.query, c.lines, c.steps, c.scores);
    bool plain = c.call->cap == 0.0f && c.call->bias == nullptr;
    for (int64_t b = 0; b < c.count; ++b) plain &= c.whole[b];
    if (plain) return;
    for (int64_t line = 0; line < c.lines; ++line) adjust(c, line / c.heads, c.scores + line * group_lanes);
}

// out += weights x values of a block that some row does not see whole, row by row.
template <bool bf16>
void weigh_masked(const Chunk& c, int64_t b, float* out) {
    constexpr int64_t word_bytes = bf16 ? 2 : 4;
    for (int64_t row = 0; row < c.rows; ++row) {
        const uint32_t mask = c.mask[b][row];
        const int64_t line = row * c.heads;
        const char* weights = c.weights + line * group_lanes * 4 + b * block_slots * word_bytes;
        float* to = out + line * c.stride;
        if (mask == 0) continue;
        if (mask == 0xffff) {
            weigh_lines<bf16, false>(c.operand + b, 1, c.size, weights, nullptr, c.heads, to, c.stride);
            continue;
        }
        int32_t words[block_slots];
        for (int step = 0; step < block_slots; ++step) {
            if constexpr (bf16) {
                const uint32_t pair = mask >> 2 * step & 3;
                words[step] = static_cast<int32_t>((pair & 1 ? 0xffffu : 0u) | (pair & 2 ? 0xffff0000u : 0u));
            } else {
                words[step] = mask >> step & 1 ? -1 : 0;
            }
        }
        weigh_lines<bf16, true>(c.operand + b, 1, c.size, weights, words, c.heads, to, c.stride);
    }
}

// Computes the result of the tile at hand.
template <bool bf16>
void compute_tile(const Chunk& c, const Result& result) {
    score_tile<bf16>(c);
    for (int64_t line = 0; line < c.lines; ++line) {
        const float* scores = c.scores + line * group_lanes;
        char* weights = c.weights + line * group_lanes * 4;
        if (c.count == group_blocks)
            weights_of<bf16>(scores, group_blocks, weights, result.top + line, result.sum + line);
        else
            weights_of<bf16>(scores, c.count, weights, result.top + line, result.sum + line);
    }
    for (int64_t b = 0; b < c.count;) {
        int64_t stop = b;
        while (stop < c.count && c.whole[stop]) ++stop;
        if (stop == b) {
            weigh_masked<bf16>(c, b, result.out);
            ++b;
            continue;
        }
        const char* weights = c.weights + b * block_slots * (bf16 ? 2 : 4);
        weigh_lines<bf16, false>(c.operand + b, stop - b, c.size, weights, nullptr, c.lines, result.out, c.stride);
        b = stop;
    }
}

float* partial_of(const Chunk& c, int64_t line, int64_t group) {
    const int64_t row = c.row + line / c.heads, head = c.head + line % c.heads;
    return c.call->partial + ((row * c.call->heads + head) * c.call->groups + group) * (2 + c.size);
}

void write_partials(const Chunk& c, const Result& result, int64_t group) {
    for (int64_t line = 0; line < c.lines; ++line) {
        float* to = partial_of(c, line, group);
        to[0] = result.top[line], to[1] = result.sum[line];
        for (int64_t d = 0; d < c.size; d += 16) {
            const int64_t n = c.size - d < 16 ? c.size - d : 16;
            store(to + 2 + d, plain_zero(load(result.out + line * c.stride + d)), n);
        }
    }
}

// Adds each line's normalised weights of the tile at hand to the row's mass, head after head.
void add_mass(const Chunk& c) {
    for (int64_t line = 0; line < c.lines; ++line) {
        const int64_t row = line / c.heads;
        float* mass = c.call->mass + ((c.row + row) * c.call->storage.kv_heads + c.kv_head) * c.view->entries;
        for (int64_t b = 0; b < c.count; ++b) {
            const Block& block = *c.block[b];
            const uint32_t mask = c.whole[b] ? 0xffff : c.mask[b][row];
            const F32 score = load(c.scores + line * group_lanes + b * block_slots);
            alignas(64) float weight[block_slots];
            store(weight, div(exp(sub(score, all(c.all.top[line]))), all(c.all.sum[line])));
            for (int lane = 0; lane < block_slots; ++lane)
                if (mask >> lane & 1)
                    mass[block.lanes < 0 ? block.entry + lane : c.plan->lanes[block.lanes].entry[lane]] += weight[lane];
        }
    }
}

template <bool bf16>
void attend(Chunk& c) {
    load_queries<bf16>(c);
    clear(c.all, c.lines, c.stride);
    clear(c.tile, 0, c.stride);
    const Tile *tile = c.plan->tiles + c.view->tiles, *stop = c.plan->tiles + c.view->stop;
    while (tile < stop && (tile->group + 1) * group_lanes - 1 <= c.lowest) ++tile;
    const Tile* first = tile;
    if (c.call->partial != nullptr) {
        clear(c.group, c.lines, c.stride);
        for (int64_t group = 0; group < c.call->groups; ++group) write_partials(c, c.group, group);
    }
    while (tile < stop) {
        const int64_t group = tile->group;
        bool found = false;
        for (; tile < stop && tile->group == group; ++tile) {
            look<bf16>(c, *tile);
            if (c.count == 0) continue;
            if (tile + 1 < stop) look_ahead(c, tile[1]);
            const Result& result = found ? c.tile : c.group;
            clear(result, c.lines, c.stride);
            compute_tile<bf16>(c, result);
            if (found) merge_results(c.group, c.tile, c.lines, c.stride);
            found = true;
        }
        if (!found) continue;
        if (c.call->partial != nullptr)
            write_partials(c, c.group, group);
        else
            merge_results(c.all, c.group, c.lines, c.stride);
    }
    if (c.call->partial != nullptr) return;
    for (int64_t line = 0; line < c.lines; ++line) {
        const int64_t row = c.view->first + c.row + line / c.heads, head = c.head + line % c.heads;
        float* to = c.call->out + row * c.call->out_stride + head * c.size;
        finish_line(c.all.out + line * c.stride, c.all.sum[line], c.size, to);
    }
    if (c.call->mass == nullptr) return;
    for (tile = first; tile < stop; ++tile) {
        look<bf16>(c, *tile);
        if (c.count == 0) continue;
        score_tile<bf16>(c);
        add_mass(c);
    }
}

// How a call is cut into pieces: a view into chunks of 1 << rows rows, the heads of a K/V head's group into `heads`
// parts, so that a chunk's lines fit. With mass one piece has all heads of a group, which add to the same sums.
struct Cut {
    int rows;
    int64_t heads, parts;  // parts: pieces per chunk of rows

    int64_t pieces(const AttentionPlan::Impl& plan) const { return plan.chunks[rows][plan.view_count] * parts; }
};

STRETTO_INLINE Cut coarsest(const Attend& call) {
    const int64_t group = call.heads / call.storage.kv_heads, heads = (group + most_lines - 1) / most_lines;
    Cut cut{0, heads, call.storage.kv_heads * (call.mass != nullptr ? 1 : heads)};
    while (cut.rows + 1 < row_sizes && group << (cut.rows + 1) <= most_lines) ++cut.rows;
    return cut;
}

int64_t pieces(const Attend& call, int threads) {
    const AttentionPlan::Impl& plan = call.plan->impl();
    Cut cut = coarsest(call);
    while (cut.rows > 0 && cut.pieces(plan) < 2 * threads) --cut.rows;
    return cut.pieces(plan);
}

void run(const Attend& call, int64_t piece, int64_t pieces, void* scratch) {
    const AttentionPlan::Impl& plan = call.plan->impl();
    Cut cut = coarsest(call);
    while (cut.pieces(plan) != pieces) --cut.rows;
    const int64_t* starts = plan.chunks[cut.rows];
    int64_t v = 0;
    for (int64_t end = plan.view_count; end - v > 1;) {
        const int64_t middle = (v + end) / 2;
        (starts[middle] * cut.parts <= piece ? v : end) = middle;
    }
    const View& view = plan.views[v];
    const int64_t chunks = starts[v + 1] - starts[v], within = piece - starts[v] * cut.parts;
    const int64_t part = within / chunks, number = chunks - 1 - within % chunks;  // a view's last rows see the most
    const int64_t group = call.heads / call.storage.kv_heads, left = view.rows - (number << cut.rows);
    const bool all_heads = call.mass != nullptr;
    Chunk chunk;
    chunk.call = &call, chunk.plan = &plan, chunk.view = &view;
    chunk.row = number << cut.rows;
    chunk.rows = left < 1 << cut.rows ? left : 1 << cut.rows;
    chunk.kv_head = all_heads ? part : part / cut.heads;
    for (int64_t h = all_heads ? 0 : part % cut.heads, stop = all_heads ? cut.heads : h + 1; h < stop; ++h) {
        chunk.head = chunk.kv_head * group + group * h / cut.heads;
        chunk.heads = group * (h + 1) / cut.heads - group * h / cut.heads;
        start(chunk, static_cast<char*>(scratch));
        call.storage.bf16 ? attend<true>(chunk) : attend<false>(chunk);
    }
}

void write(const LayerStorage& storage, int64_t slot, const float* key, const float* value) {
    const int64_t size = storage.head_size, offset = slot % block_slots;
    const int64_t share = block_slots * size * (storage.bf16 ? 2 : 4), first = slot / block_slots * storage.kv_heads;
    for (int64_t head = 0; head < storage.kv_heads; ++head, key += size, value += size) {
        char* keys = static_cast<char*>(storage.keys) + (first + head) * share + offset * 4;
        char* values = static_cast<char*>(storage.values) + (first + head) * share;
        if (!storage.bf16) {
            for (int64_t d = 0; d < size; ++d) std::memcpy(keys + d * 64, key + d, 4);
            std::memcpy(values + offset * size * 4, value, static_cast<size_t>(size) * 4);
            continue;
        }
        values += offset / 2 * size * 4 + offset % 2 * 2;
        for (int64_t d = 0; d < size; d += 16) {
            const int64_t n = size - d < 16 ? size - d : 16;
            uint16_t rounded[16];
            store_bf16(rounded, load(key + d, n));
            for (int64_t i = 0; i < n; i += 2) std::memcpy(keys + (d + i) / 2 * 64, rounded + i, 4);
            store_bf16(rounded, load(value + d, n));
            for (int64_t i = 0; i < n; ++i) std::memcpy(values + (d + i) * 4, rounded + i, 2);
        }
    }
}

}  // namespace

const AttentionKernels attention_kernels = {pieces, run, write, merge_groups};

}  // namespace stretto::STRETTO_PATH
