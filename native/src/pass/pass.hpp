// One pass: the rows that it computes and the memory that its ops hand each other.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "attention/attention.hpp"
#include "linear/linear.hpp"
#include "machine/arena.hpp"
#include "machine/kernels.hpp"

namespace stretto {

constexpr int64_t round_up(int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }

// Memory of a lane, bound once: layer after layer of keys, and of values.
struct LaneMemory {
    std::byte* keys = nullptr;
    std::byte* values = nullptr;
    int64_t layer_bytes = 0;
    bool bf16 = false;
    int64_t kv_heads = 0, head_size = 0;

    LayerStorage layer(int64_t place) const {
        return {keys + place * layer_bytes, values + place * layer_bytes, bf16, kv_heads, head_size};
    }
};

// What a pass reads and writes in one lane.
struct LaneRows {
    std::vector<int64_t> slots;         // per row: where its key and value go
    std::optional<AttentionPlan> plan;  // absent: no row of the pass attends through it
};

// Cosines and sines by position, computed once in pages.
class RopeTable {
public:
    // `inverse`: radians per position, one per pair, for one variant after the other; `factor` multiplies cosine and
    // sine. Angles are rounded to fp32 as published models were trained with; their cosines are exact to fp32.
    // Position p in variant v has number variants * p + v.
    RopeTable(std::vector<float> inverse, int variants, double factor)
        : inverse_(std::move(inverse)), variants_(variants), factor_(factor) {}
    void grow(int64_t largest);
    int64_t pairs() const { return static_cast<int64_t>(inverse_.size()) / variants_; }
    const float* cosine(int64_t number) const { return pages_[number / page].get() + number % page * 2 * pairs(); }
    const float* sine(int64_t number) const { return cosine(number) + pairs(); }

private:
    static constexpr int64_t page = 256;
    std::vector<float> inverse_;
    int64_t variants_;
    double factor_;
    std::vector<std::unique_ptr<float[]>> pages_;
};

// A buffer of rows [rows][stride] in fp32.
struct Buffer {
    int64_t width = 0, stride = 0;
    Memory memory;
    float* row(int64_t number) const { return memory.as<float>() + number * stride; }
};

// Rows brought to what products read. The largest of any product fits.
struct Prepared {
    int64_t deepest = 0, capacity = 0;
    Memory values, scales, sums;
    void reserve(int64_t rows);
    // The buffers as products with rows of that depth see them.
    Rows rows(int64_t depth) const;
};

struct Pass {
    const Kernels& kernels = stretto::kernels();
    int64_t rows = 0;
    std::vector<int64_t> tokens, rope, index;
    std::vector<LaneRows> lanes;
    std::vector<LaneMemory> memory;
    std::vector<RopeTable> ropes;
    std::vector<Buffer> buffers;
    Prepared prepared, routed;    // `routed`: the rows of one expert
    std::vector<int64_t> wanted;  // rows whose logits are wanted
    float* logits = nullptr;      // [wanted][stride of the head]
    int64_t capacity = 0;

    // Makes the buffers hold `count` rows.
    void reserve(int64_t count);
};

}  // namespace stretto
