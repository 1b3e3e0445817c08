// Random packed layers of every format and rows for them.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "machine/kernels.hpp"

namespace stretto {

struct Format {
    const char* name;
    WeightLayout layout;
    Activations activations;
    bool zeros;
    double bytes;  // of one weight, scales aside
    int peak;      // measure.hpp
};

inline const Format formats[] = {
    {"int8", WeightLayout::int8, Activations::int8, false, 1, 2},
    {"int8x2", WeightLayout::int8, Activations::int8x2, false, 1, 2},
    {"int8-fast", WeightLayout::int8, Activations::int8_row, false, 1, 2},
    {"int4", WeightLayout::int4, Activations::int8, false, 0.5, 2},
    {"int4-zeros", WeightLayout::int4, Activations::int8, true, 0.5, 2},
    {"bf16", WeightLayout::bf16, Activations::bf16, false, 2, 1},
    {"fp32", WeightLayout::fp32, Activations::fp32, false, 4, 0},
};

// 64-byte aligned memory, in huge pages where the system has them.
struct Pages {
    explicit Pages(size_t bytes) : bytes((bytes + (2 << 20)) >> 21 << 21) {
        data = std::aligned_alloc(2 << 20, this->bytes);
#if defined(__linux__)
        madvise(data, this->bytes, MADV_HUGEPAGE);
#endif
        std::memset(data, 0, this->bytes);
    }
    ~Pages() { std::free(data); }
    Pages(const Pages&) = delete;
    size_t bytes;
    void* data;
};

struct Random {
    uint64_t state;
    uint64_t operator()() {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        return state * 0x2545f4914f6cdd1d;
    }
    float unit() { return float(int64_t((*this)() >> 40) - (1 << 23)) / (1 << 23); }  // in [-1, 1)
};

inline int64_t padded(int64_t n) { return (n + 31) / 32 * 32; }

// Random weights of the right kind, anywhere in the layout: each place is as good as another.
inline void fill(const Format& format, void* weights, int64_t count, Random random) {
    for (int64_t i = 0; i < count; ++i) {
        const uint64_t bits = random();
        switch (format.layout) {
            case WeightLayout::fp32: static_cast<float*>(weights)[i] = random.unit(); break;
            case WeightLayout::bf16: static_cast<uint16_t*>(weights)[i] = uint16_t((bits & 0x80ff) | 0x3d00); break;
            case WeightLayout::int8:  // -64 to 64, of which any two fit together
                static_cast<uint8_t*>(weights)[i] = uint8_t(bits % 129 - 64 + kernels().linear.int8_offset);
                break;
            case WeightLayout::int4: if (i % 2 == 0) static_cast<uint8_t*>(weights)[i / 2] = uint8_t(bits); break;
        }
    }
}

// A matrix whose weights lie at `weights`, and rows of activations for it.
struct Layer {
    Layer(const Format& format, int64_t outputs, int64_t inputs, int shards, const void* weights, Random random) {
        matrix = {format.layout, format.activations, outputs, inputs, padded(outputs) / 32, padded(inputs), weights,
                  nullptr, nullptr, nullptr, nullptr, nullptr, shards, {}};
        const int64_t groups = matrix.panels * matrix.depth;  // scales of int4, 32 outputs a group of 32 inputs
        if (format.layout == WeightLayout::int8) {
            for (int64_t i = 0; i < matrix.panels * 32; ++i) scales.push_back(0.01f + 0.001f * random.unit());
            matrix.scales = scales.data();
            if (kernels().linear.raises && format.activations != Activations::int8x2) sum_groups();
        }
        if (format.layout == WeightLayout::int4) {
            for (int64_t i = 0; i < groups; ++i) group_scales.push_back(uint16_t(0x2000 + random() % 1024));
            matrix.group_scales = group_scales.data();
        }
        if (format.zeros) {
            for (int64_t i = 0; i < groups; ++i) zeros.push_back(uint8_t(random() % 16));
            matrix.zeros = zeros.data();
        }
        for (int shard = 0; shard <= shards; ++shard) matrix.border[shard] = matrix.depth / 32 * shard / shards * 32;
    }
    double bytes(const Format& format) const {
        const double weights = matrix.panels * 32 * double(matrix.depth) * format.bytes;
        return weights + scales.size() * 4.0 + group_scales.size() * 2.0 + zeros.size() + group_sums.size() * 2.0;
    }
    // From the layout: a group's bytes lie as [2 halves][8 quads][16 outputs][4].
    void sum_groups() {
        const auto* const weights = static_cast<const int8_t*>(matrix.weights);
        group_sums.resize(matrix.panels * matrix.depth);
        for (int64_t i = 0; i < matrix.panels * matrix.depth * 32; ++i)
            group_sums[i / 1024 * 32 + i % 1024 / 512 * 16 + i % 64 / 4] += weights[i];
        matrix.group_sums = group_sums.data();
    }
    Matrix matrix;
    std::vector<int16_t> group_sums;
    std::vector<float> scales;
    std::vector<uint16_t> group_scales;
    std::vector<uint8_t> zeros;
};

// Buffers that a product reads `rows` rows of `depth` from.
struct Prepared {
    Prepared(int64_t rows, int64_t depth)
        : fp32(rows * depth), bf16(rows * depth), digits(2 * rows * depth), scales(rows * depth / 32),
          sums(2 * rows * depth / 32),
          raised(rows * depth),
          x{depth, fp32.data(), bf16.data(), digits.data(), raised.data(), scales.data(), sums.data()} {}
    std::vector<float> fp32;
    std::vector<uint16_t> bf16;
    std::vector<int8_t> digits;
    std::vector<float> scales;
    std::vector<int32_t> sums;
    std::vector<uint8_t> raised;
    Rows x;
};

}  // namespace stretto
