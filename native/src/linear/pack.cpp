#include "pack.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace stretto {
namespace {

constexpr int64_t half_width = panel_width / 2;

// Every layout moves in words of 4 bytes (int4: of 8 nibbles), so that packing is a transposition of words.
uint32_t word(const uint8_t* from) {
    uint32_t result;
    std::memcpy(&result, from, sizeof result);
    return result;
}

struct Fp32 {
    using Element = float;
    static constexpr Element nothing = 0.0f;
    static constexpr int64_t group_bytes = group_depth * panel_width * 4;

    static void pack(const Element* group, int64_t output, uint8_t* to) {
        for (int64_t input = 0; input < group_depth; ++input)
            std::memcpy(to + 4 * (input * panel_width + output), group + input, 4);
    }
};

struct Bf16 {
    using Element = uint16_t;
    static constexpr Element nothing = 0;
    static constexpr int64_t group_bytes = group_depth * panel_width * 2;

    static void pack(const Element* group, int64_t output, uint8_t* to) {
        for (int64_t pair = 0; pair < group_depth / 2; ++pair)
            std::memcpy(to + 4 * (pair * panel_width + output), group + 2 * pair, 4);
    }
};

// `flip`: 0x80 in each byte adds 128 to it.
template <uint32_t flip>
struct Int8 {
    using Element = uint8_t;
    static constexpr Element nothing = 0;
    static constexpr int64_t group_bytes = group_depth * panel_width;

    static void pack(const Element* group, int64_t output, uint8_t* to) {
        to += output / half_width * (group_bytes / 2) + 4 * (output % half_width);
        for (int64_t quad = 0; quad < group_depth / 4; ++quad) {
            const uint32_t shifted = word(group + 4 * quad) ^ flip;
            std::memcpy(to + 4 * half_width * quad, &shifted, 4);
        }
    }
};

struct Int4 {
    using Element = uint8_t;
    static constexpr Element nothing = 8;
    static constexpr int64_t group_bytes = group_depth * panel_width / 2;

    static void pack(const Element* group, int64_t output, uint8_t* to) {
        to += output / half_width * (group_bytes / 2) + 4 * (output % half_width);
        for (int64_t oct = 0; oct < group_depth / 8; ++oct) {
            const uint32_t nibbles = word(group + 8 * oct) | word(group + 8 * oct + 4) << 4;
            std::memcpy(to + 4 * half_width * oct, &nibbles, 4);
        }
    }
};

template <class Layout>
void pack_as(const void* row_major, int64_t outputs, int64_t inputs, int64_t depth, int64_t first, int64_t last,
             void* packed) {
    using Element = typename Layout::Element;
    const auto* const matrix = static_cast<const Element*>(row_major);
    Element padded[group_depth];
    for (int64_t panel = first; panel < last; ++panel)
        for (int64_t input = 0; input < depth; input += group_depth) {
            const int64_t group_index = (panel * depth + input) / group_depth;
            auto* const to = static_cast<uint8_t*>(packed) + group_index * Layout::group_bytes;
            for (int64_t i = 0; i < panel_width; ++i) {
                const int64_t output = panel * panel_width + i;
                const int64_t left = output < outputs ? inputs - input : 0;
                const Element* group = matrix + output * inputs + input;
                if (left < group_depth) {
                    for (int64_t k = 0; k < group_depth; ++k) padded[k] = k < left ? group[k] : Layout::nothing;
                    group = padded;
                }
                Layout::pack(group, i, to);
            }
        }
}

template <class Element>
void pack_groups_as(const Element* row_major, int64_t outputs, int64_t groups, int64_t first, int64_t last,
                    Element fill, Element* packed) {
    for (int64_t panel = first; panel < last; ++panel)
        for (int64_t group = 0; group < groups; ++group)
            for (int64_t i = 0; i < panel_width; ++i) {
                const int64_t output = panel * panel_width + i;
                packed[(panel * groups + group) * panel_width + i] =
                    output < outputs ? row_major[output * groups + group] : fill;
            }
}

}  // namespace

int64_t packed_bytes(WeightLayout layout, int64_t panels, int64_t depth) {
    const int64_t weights = panels * panel_width * depth;
    switch (layout) {
        case WeightLayout::fp32:
            return weights * 4;
        case WeightLayout::bf16:
            return weights * 2;
        case WeightLayout::int8:
            return weights;
        case WeightLayout::int4:
            return weights / 2;
    }
    return 0;
}

void pack_panels(WeightLayout layout, const void* row_major, int64_t outputs, int64_t inputs, int64_t depth,
                 int64_t first, int64_t last, uint8_t int8_offset, void* packed) {
    switch (layout) {
        case WeightLayout::fp32:
            return pack_as<Fp32>(row_major, outputs, inputs, depth, first, last, packed);
        case WeightLayout::bf16:
            return pack_as<Bf16>(row_major, outputs, inputs, depth, first, last, packed);
        case WeightLayout::int8:
            if (int8_offset == 0) return pack_as<Int8<0>>(row_major, outputs, inputs, depth, first, last, packed);
            return pack_as<Int8<0x80808080>>(row_major, outputs, inputs, depth, first, last, packed);
        case WeightLayout::int4:
            return pack_as<Int4>(row_major, outputs, inputs, depth, first, last, packed);
    }
}

void pack_groups(const uint16_t* row_major, int64_t outputs, int64_t groups, int64_t first, int64_t last, uint16_t fill,
                 uint16_t* packed) {
    pack_groups_as(row_major, outputs, groups, first, last, fill, packed);
}

void pack_groups(const uint8_t* row_major, int64_t outputs, int64_t groups, int64_t first, int64_t last, uint8_t fill,
                 uint8_t* packed) {
    pack_groups_as(row_major, outputs, groups, first, last, fill, packed);
}

bool sum_groups(const int8_t* row_major, int64_t outputs, int64_t inputs, int64_t depth, int64_t first, int64_t last,
                int16_t* sums) {
    constexpr int most = 128;
    bool narrow = true;
    for (int64_t panel = first; panel < last; ++panel)
        for (int64_t input = 0; input < depth; input += group_depth)
            for (int64_t i = 0; i < panel_width; ++i) {
                const int64_t output = panel * panel_width + i;
                const int64_t there = output >= outputs ? 0 : std::min(group_depth, inputs - input);
                const int8_t* const group = row_major + output * inputs + input;
                int sum = 0;
                for (int64_t k = 0; k < there; k += 2) {
                    const int one = group[k], other = k + 1 < there ? group[k + 1] : 0;
                    sum += one + other;
                    narrow &= std::abs(one + other) <= most;  // of two signs, no sum is larger
                }
                sums[(panel * depth + input) / group_depth * panel_width + i] = static_cast<int16_t>(sum);
            }
    return narrow;
}

void unpack_row(const Matrix& matrix, int64_t output, void* row) {
    const int64_t panel = output / panel_width, place = output % panel_width;
    if (matrix.layout == WeightLayout::fp32) {
        const float* at = static_cast<const float*>(matrix.weights) + panel * matrix.depth * panel_width + place;
        for (int64_t k = 0; k < matrix.inputs; k++) static_cast<float*>(row)[k] = at[k * panel_width];
    } else {
        const uint16_t* at =
            static_cast<const uint16_t*>(matrix.weights) + panel * matrix.depth * panel_width + 2 * place;
        for (int64_t k = 0; k < matrix.inputs; k++)
            static_cast<uint16_t*>(row)[k] = at[k / 2 * 2 * panel_width + k % 2];
    }
}

}  // namespace stretto
