// A packed matrix with its numbers in double precision, and prepared rows likewise.
#pragma once

#include "check.hpp"
#include "linear/pack.hpp"

namespace stretto::selftest {

struct Format {
    const char* name;
    WeightLayout layout;
    Activations activations;
    bool zeros;
};

constexpr Format formats[] = {
    {"fp32", WeightLayout::fp32, Activations::fp32, false},
    {"bf16", WeightLayout::bf16, Activations::bf16, false},
    {"int8", WeightLayout::int8, Activations::int8, false},
    {"int8-fast", WeightLayout::int8, Activations::int8_row, false},
    {"int8x2", WeightLayout::int8, Activations::int8x2, false},
    {"int4", WeightLayout::int4, Activations::int8, false},
    {"int4 with zeros", WeightLayout::int4, Activations::int8, true},
};

struct Shape {
    int64_t outputs, inputs;
    int32_t shards;
    bool bias;
    bool extreme;  // numbers at the ends of their range only
};

struct LinearCase {
    LinearCase(const LinearKernels&, const Format&, const Shape&, Random&);
    LinearCase(const LinearCase&) = delete;  // matrix points into it

    const Format& format;
    const Shape shape;
    const uint8_t int8_offset;
    const bool raises;
    std::vector<double> weights;  // [outputs][depth], what the layout stands for
    Buffer<char> packed;
    Buffer<float> scales, bias;
    Buffer<uint16_t> group_scales;
    Buffer<uint8_t> zeros;
    Buffer<int16_t> group_sums;
    Matrix matrix;

    std::string name() const;
};

// Rows prepared for a product, all of whose buffers are exactly as long as their rows.
struct PreparedRows {
    PreparedRows(Activations, int64_t rows, int64_t depth, bool raises);
    Activations activations;
    bool raises;
    int64_t rows, depth;
    Buffer<float> fp32;
    Buffer<uint16_t> bf16;
    Buffer<int8_t> digits;
    Buffer<uint8_t> raised;
    Buffer<float> scales;
    Buffer<int32_t> sums;

    Rows view() const {
        const uint8_t* const up = raises ? raised.data() : nullptr;
        return {depth, fp32.data(), bf16.data(), digits.data(), up, scales.data(), sums.data()};
    }
    // A copy of some rows, which have no company in memory either.
    PreparedRows slice(int64_t first, int64_t count) const;
    // What row and input stand for.
    double value(int64_t row, int64_t input) const;
    int64_t digit_rows() const { return activations == Activations::int8x2 ? 2 : 1; }
};

// Rows [rows][inputs] of random size brought to what the format reads by the kernels under test.
PreparedRows random_rows(const LinearKernels&, const LinearCase&, int64_t rows, Random&);
// Rows whose digits are at the ends of what a product may meet, -128 and 127, set by hand.
PreparedRows extreme_rows(const LinearCase&, int64_t rows, Random&);

// The result of all rows: pieces for so many threads, in a random order, over what `out` holds.
void multiply(const LinearKernels&, const LinearCase&, const PreparedRows&, int threads, bool add, Random&,
              Buffer<float>& out, int64_t stride);

}  // namespace stretto::selftest
