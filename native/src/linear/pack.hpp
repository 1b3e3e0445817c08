// From row-major weights to the layout of linear.hpp. Called at load, by several threads at once on different panels.
#pragma once

#include "linear.hpp"

namespace stretto {

int64_t packed_bytes(WeightLayout, int64_t panels, int64_t depth);

// Packs the panels [first, last) of a matrix [outputs, inputs] given row-major:
//   fp32: float; bf16: uint16_t; int8: int8_t, stored plus `int8_offset`; int4: uint8_t, one nibble value 0 to 15 a byte.
// Outputs and inputs behind the true ones become zeros (int4: the nibble 8).
void pack_panels(WeightLayout, const void* row_major, int64_t outputs, int64_t inputs, int64_t depth, int64_t first,
                 int64_t last, uint8_t int8_offset, void* packed);

// Group scales (fp16) or zeros row-major [outputs, depth / 32] -> [panels][depth / 32][32], panels [first, last);
// `fill` stands behind the true outputs.
void pack_groups(const uint16_t* row_major, int64_t outputs, int64_t groups, int64_t first, int64_t last, uint16_t fill,
                 uint16_t* packed);
void pack_groups(const uint8_t* row_major, int64_t outputs, int64_t groups, int64_t first, int64_t last, uint8_t fill,
                 uint8_t* packed);

// Sums of each group's int8 weights, [panels][depth / 32][32], panels [first, last). Returns whether the weights of
// inputs 2i and 2i + 1 never add up to more than 128 with one sign: their products with two bytes from 0 to 255 then add
// up within 16 bits.
bool sum_groups(const int8_t* row_major, int64_t outputs, int64_t inputs, int64_t depth, int64_t first, int64_t last,
                int16_t* sums);

// Row `output` of a packed fp32 or bf16 matrix, as float or uint16_t [inputs]: what lookups in a tied head read.
void unpack_row(const Matrix&, int64_t output, void* row);

}  // namespace stretto
