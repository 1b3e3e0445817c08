// The bits of every row alone and in company, whatever the pieces, and values against a double-precision loop.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "bench_linear_layers.hpp"

namespace stretto {

inline float from_bf16(uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

inline double from_fp16(uint16_t bits) {  // normal and positive
    return std::ldexp(1.0 + (bits & 1023) / 1024.0, (bits >> 10) - 15);
}

// The weight of one output and input, out of the packed layout.
inline double weight_at(const Matrix& matrix, int64_t output, int64_t input) {
    const int64_t panel = output / 32, half = output / 16 % 2, lane = output % 16, group = input / 32, k = input % 32;
    const int64_t before = panel * (matrix.depth / 32) + group;
    switch (matrix.layout) {
        case WeightLayout::fp32:
            return static_cast<const float*>(matrix.weights)[(panel * matrix.depth + input) * 32 + output % 32];
        case WeightLayout::bf16: {
            const int64_t pair = (panel * matrix.depth / 2 + input / 2) * 32 + output % 32;
            return from_bf16(static_cast<const uint16_t*>(matrix.weights)[pair * 2 + input % 2]);
        }
        case WeightLayout::int8: {
            const int64_t at = before * 1024 + half * 512 + k / 4 * 64 + lane * 4 + k % 4;
            const int byte = static_cast<const uint8_t*>(matrix.weights)[at];
            return static_cast<int8_t>(byte - kernels().linear.int8_offset) * double(matrix.scales[output]);
        }
        case WeightLayout::int4: break;
    }
    const int64_t at = before * 512 + half * 256 + k / 8 * 64 + lane * 4 + k % 4;
    const int byte = static_cast<const uint8_t*>(matrix.weights)[at];
    const int zero = matrix.zeros ? matrix.zeros[before * 32 + output % 32] : 8;
    return ((k % 8 < 4 ? byte & 15 : byte >> 4) - zero) * from_fp16(matrix.group_scales[before * 32 + output % 32]);
}

inline double input_at(const Rows& x, Activations activations, int64_t row, int64_t k) {
    const int64_t at = row * x.depth + k;
    switch (activations) {
        case Activations::fp32: return x.fp32[at];
        case Activations::bf16: return from_bf16(x.bf16[at]);
        case Activations::int8: return double(x.digits[at]) * x.scales[at / 32];
        case Activations::int8_row: return double(x.digits[at]) * x.scales[row];
        case Activations::int8x2: break;
    }
    return (256.0 * x.digits[2 * row * x.depth + k] + x.digits[(2 * row + 1) * x.depth + k]) * x.scales[at / 32];
}

inline bool check(const Format& format, int64_t outputs, int64_t inputs, int shards, bool bias, bool add) {
    const LinearKernels& linear = kernels().linear;
    Random random{uint64_t(outputs * 7919 + inputs * 31 + shards)};
    constexpr int64_t most = 300;
    Pages weights(size_t(padded(outputs) * padded(inputs) * format.bytes)), scratch(linear_scratch);
    fill(format, weights.data, padded(outputs) * padded(inputs), random);
    Layer layer(format, outputs, inputs, shards, weights.data, random);
    Matrix& matrix = layer.matrix;
    for (int shard = 1; shard < shards; ++shard) {
        matrix.border[shard] = int64_t(random() % (matrix.depth / 32 + 1)) * 32;
    }
    std::sort(matrix.border, matrix.border + shards + 1);
    std::vector<float> biases;
    for (int64_t i = 0; i < padded(outputs); ++i) biases.push_back(random.unit());
    if (bias) matrix.bias = biases.data();
    Prepared prepared(most, matrix.depth);
    for (int64_t row = 0; row < most; ++row) {
        std::vector<float> x(inputs);
        for (float& value : x) value = random.unit();
        linear.prepare(format.activations, x.data(), inputs, row, prepared.x);
    }
    const int64_t stride = padded(outputs) + 16;
    Pages before(most * stride * 4), alone(most * stride * 4), together(most * stride * 4);
    for (int64_t i = 0; i < most * stride; ++i) static_cast<float*>(before.data)[i] = random.unit();
    const auto run = [&](Pages& out, int64_t first, int64_t rows, int64_t pieces) {
        Rows x = prepared.x;
        const int64_t step = format.activations == Activations::int8x2 ? 2 : 1, groups = matrix.depth / 32;
        x.fp32 += first * x.depth, x.bf16 += first * x.depth;
        x.digits += step * first * x.depth, x.raised += first * x.depth, x.sums += step * first * groups;
        x.scales += format.activations == Activations::int8_row ? first : first * groups;
        const Product product{&matrix, x, rows, static_cast<float*>(out.data) + first * stride, stride, add};
        for (int64_t piece = pieces; piece-- > 0;) linear.run(product, piece, pieces, scratch.data);
    };
    std::memcpy(alone.data, before.data, before.bytes);
    for (int64_t row = 0; row < most; ++row) run(alone, row, 1, linear.pieces(matrix, 1, 2));
    bool good = true;
    for (const int64_t rows : {2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 17, 24, 31, 32, 33, 40, 65, 127, 129, 200,
                               300}) {
        for (const int threads : {1, 2, 3, 0}) {
            std::memcpy(together.data, before.data, before.bytes);
            const int64_t first = most - rows;
            run(together, first, rows, threads ? linear.pieces(matrix, rows, threads) : 1 + int64_t(random() % 7));
            const size_t from = size_t(first * stride) * 4;
            const char *one = static_cast<char*>(alone.data) + from, *other = static_cast<char*>(together.data) + from;
            if (std::memcmp(one, other, size_t(rows * stride) * 4)) {
                std::printf("FAILED: %s %lld x %lld, %d shards: %lld rows, threads %d, are not each row alone\n",
                            format.name, (long long)outputs, (long long)inputs, shards, (long long)rows, threads);
                good = false;
            }
        }
    }
    double worst = 0;
    for (int64_t row = 0; row < most; row += 53) {
        for (int64_t output = 0; output < outputs; ++output) {
            double sum = 0, size = 0;
            for (int64_t k = 0; k < matrix.depth; ++k) {
                const double product = weight_at(matrix, output, k) * input_at(prepared.x, format.activations, row, k);
                sum += product, size += std::fabs(product);
            }
            if (bias) sum += biases[output];
            if (add) sum += static_cast<float*>(before.data)[row * stride + output];
            const double got = static_cast<float*>(alone.data)[row * stride + output];
            worst = std::max(worst, std::fabs(sum - got) / (size + 1));
        }
    }
    if (!(worst < 1e-6)) good = false;
    uint64_t bits = 0;
    for (int64_t i = 0; i < most * stride; ++i) bits = bits * 0x100000001b3 + static_cast<uint32_t*>(alone.data)[i];
    std::printf("%s: %-10s %5lld x %5lld, %d shards%s%s: error %.1e of the sum of magnitudes, bits %016llx\n",
                good ? "good" : "FAILED", format.name, (long long)outputs, (long long)inputs, shards, bias ? ", bias" : "",
                add ? ", added" : "", worst,
                static_cast<unsigned long long>(bits));
    std::fflush(stdout);
    return good;
}

inline bool check(const Format& format) {
    bool good = true;
    good &= check(format, 50, 32, 1, false, false);
    good &= check(format, 256, 256, 8, true, true);
    good &= check(format, 97, 1000, 3, true, false);
    good &= check(format, 300, 2048, 8, false, true);
    good &= check(format, 70, 11008, 8, false, false);
    good &= check(format, 40, 14336, 1, true, true);
    return good;
}

}  // namespace stretto
