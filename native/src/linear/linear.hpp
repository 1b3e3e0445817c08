// Packed linear layers: y[row] = W x[row] + bias, each row's bits independent of its company.
//
// A matrix [outputs, inputs] is cut into panels of 32 outputs (two halves of 16) and groups of 32 inputs, both padded
// with zeros, and stored panel after panel in the order in which a pass reads it. `depth` is the padded number of
// inputs:
//
//   fp32  [panel][depth]              [2 halves][16 outputs]                 float
//   bf16  [panel][depth/2]            [2 halves][16 outputs][2 inputs]       bfloat16
//   int8  [panel][depth/32][2 halves] [8 quads][16 outputs][4 inputs]        a byte of value + int8_offset
//   int4  [panel][depth/32][2 halves] [4 octs][16 outputs][4 bytes]          byte b: low nibble input b, high input b +
//   4
//
// Integer products of a group of 32 inputs are exact; groups add up in fp32 in ascending order, within each shard of
// the inputs; shards add up in index order. bf16 and fp32 add up in ascending order of the inputs, shards likewise.
#pragma once

#include <cstdint>

namespace stretto {

constexpr int64_t panel_width = 32;  // outputs of a panel
constexpr int64_t group_depth = 32;  // inputs of a quantization group
constexpr int max_shards = 8;

enum class WeightLayout : int32_t { fp32 = 0, bf16 = 1, int8 = 2, int4 = 3 };

// What a product reads its rows as.
enum class Activations : int32_t {
    fp32 = 0,
    bf16 = 1,      // rounded to nearest even
    int8 = 2,      // x = scale[group of 32] * digit
    int8_row = 3,  // x = scale[row] * digit ("int8-fast")
    int8x2 = 4,    // x = scale[group of 32] * (256 * high + low), 15 bits
};

struct Matrix {
    WeightLayout layout;
    Activations activations;
    int64_t outputs, inputs;       // true sizes
    int64_t panels, depth;         // outputs / 32 and inputs, rounded up
    const void* weights;           // 64-byte aligned, laid out as above
    const float* scales;           // int8: [panels * 32], one per output
    const uint16_t* group_scales;  // int4: fp16 [panels][depth / 32][32]
    const uint8_t* zeros;          // int4: [panels][depth / 32][32], the nibble that means 0; null: 8 everywhere
    const int16_t* group_sums;     // int8: [panels][depth / 32][32], see sum_groups; null: not asked for, or too large
    const float* bias;             // [panels * 32] or null
    int32_t shards;                // 1 to 8
    int64_t
        border[max_shards + 1];  // shard s holds the inputs [border[s], border[s + 1]); multiples of 32; may be empty
};

// Rows as a product reads them. Digits of int8x2 lie as two rows, the high one first: row r's are rows 2r and 2r + 1.
// Entries behind the true inputs are zeros.
struct Rows {
    int64_t depth;
    const float* fp32;      // [rows][depth]
    const uint16_t* bf16;   // [rows][depth]
    const int8_t* digits;   // [rows][depth], never -128; int8x2: [2 * rows][depth], the low ones may be
    const uint8_t* raised;  // the digits of int8 and int8_row plus 128, [rows][depth]; null: not asked for
    const float* scales;    // [rows][depth / 32], int8_row: [rows]
    const int32_t* sums;    // sum of the digits: [rows][depth / 32], int8x2: [2 * rows][depth / 32]
};

struct Product {
    const Matrix* matrix;
    Rows x;
    int64_t rows;
    float* out;  // [rows][stride], stride >= panels * 32, 64-byte aligned rows
    int64_t stride;
    bool add;  // out += instead of out = (the residual stream)
};

struct LinearKernels {
    // What the path wants added to int8 weights: 128 where it reads them as unsigned bytes, else 0.
    uint8_t int8_offset;
    // Whether the path has use for an int8 matrix's `group_sums` and for rows' `raised`.
    bool raises;
    // A product is computed in pieces that any thread may take in any order; the division never changes bits.
    int64_t (*pieces)(const Matrix&, int64_t rows, int threads);
    // `scratch`: linear_scratch bytes of the calling thread's own, 64-byte aligned.
    void (*run)(const Product&, int64_t piece, int64_t pieces, void* scratch);
    // Brings one row [inputs] to what products with these activations read, at row number `row` of the buffers in `to`
    // (whose pointers it writes through), with zeros up to the next multiple of 32. Pointers that begin at a later
    // group of their rows make it a part of a row.
    void (*prepare)(Activations, const float* x, int64_t inputs, int64_t row, const Rows& to);
};

constexpr int64_t linear_scratch = 1 << 20;

namespace generic {
extern const LinearKernels linear_kernels;
}
namespace avx2 {
extern const LinearKernels linear_kernels;
}
namespace avx512 {
extern const LinearKernels linear_kernels;
}

}  // namespace stretto
