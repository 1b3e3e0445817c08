// Rows of a tile side by side, group by group, so that a tile reads them as one stream at constant distances; rows at
// their own places lie whole powers of two apart and would share a few sets of the cache.
#pragma once

#include "linear/avx512_tile.hpp"

namespace stretto::avx512 {
namespace {

enum class Kind { fp32, bf16, int8, int8_row, int8x2, int4, int4_zeros };

constexpr int kinds = 7;

constexpr Kind kind_of(const Matrix& matrix) {
    switch (matrix.layout) {
        case WeightLayout::fp32:
            return Kind::fp32;
        case WeightLayout::bf16:
            return Kind::bf16;
        case WeightLayout::int4:
            return matrix.zeros ? Kind::int4_zeros : Kind::int4;
        default:
            break;
    }
    switch (matrix.activations) {
        case Activations::int8_row:
            return Kind::int8_row;
        case Activations::int8x2:
            return Kind::int8x2;
        default:
            return Kind::int8;
    }
}

// Bytes of a group of 32 inputs in the weights of one panel.
constexpr int64_t weight_bytes(Kind kind) {
    switch (kind) {
        case Kind::fp32:
            return 4096;
        case Kind::bf16:
            return 2048;
        case Kind::int4:
        case Kind::int4_zeros:
            return 512;
        default:
            return 1024;
    }
}

// Bytes of a group of 32 inputs in one gathered row.
constexpr int64_t row_bytes(Kind kind) {
    switch (kind) {
        case Kind::fp32:
            return 128;
        case Kind::bf16:
            return 64;
        case Kind::int8_row:
            return 36;
        case Kind::int8x2:
            return 72;
        default:
            return 40;
    }
}

template <int bytes>
STRETTO_INLINE void copy(char* to, const void* from) {
    each<bytes / 32>([&](auto part) STRETTO_LAMBDA {
        const __m256i* source = static_cast<const __m256i*>(from) + part;
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to) + part, _mm256_loadu_si256(source));
    });
}

// What a group's sum of products lacks, from the sum of its digits.
constexpr int32_t correction(Kind kind, int32_t sum) {
    return (kind == Kind::int4 ? -8 : kind == Kind::int4_zeros ? -1 : -128) * sum;
}

// Rows [first, first + count), groups [begin, end).
template <Kind kind>
void gather(const Rows& x, int64_t first, int64_t count, int64_t begin, int64_t end, char* to) {
    constexpr int digits = kind == Kind::int8x2 ? 64 : 32;
    const int64_t groups = x.depth / group_depth;
    for (int64_t row = 0; row < count; ++row) {
        const int64_t from = first + row;
        char* target = to;
        for (int64_t group = begin; group < end; ++group, target += row_bytes(kind) * count) {
            if constexpr (kind == Kind::fp32) {
                copy<128>(target + 128 * row, x.fp32 + from * x.depth + 32 * group);
            } else if constexpr (kind == Kind::bf16) {
                copy<64>(target + 64 * row, x.bf16 + from * x.depth + 32 * group);
            } else {
                int32_t* corrections = reinterpret_cast<int32_t*>(target + digits * count);
                if constexpr (kind == Kind::int8x2) {
                    const int64_t high = 2 * from, low = high + 1;
                    copy<32>(target + 64 * row, x.digits + high * x.depth + 32 * group);
                    copy<32>(target + 64 * row + 32, x.digits + low * x.depth + 32 * group);
                    const int32_t sum = 256 * x.sums[high * groups + group] + x.sums[low * groups + group];
                    corrections[row] = correction(kind, sum);
                } else {
                    copy<32>(target + 32 * row, x.digits + from * x.depth + 32 * group);
                    corrections[row] = correction(kind, x.sums[from * groups + group]);
                }
                if constexpr (kind != Kind::int8_row) {
                    reinterpret_cast<float*>(corrections + count)[row] = x.scales[from * groups + group];
                }
            }
        }
    }
}

}  // namespace
}  // namespace stretto::avx512
