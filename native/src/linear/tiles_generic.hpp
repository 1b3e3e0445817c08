// Products of a few rows with a panel's groups, for any machine. A group's weights are unpacked to fp32
// [input][output], once for all rows of the tile, and so are digits: whole numbers, whose products with a group stay
// below 2^24 and are exact in fp32 as well. One loop serves every layout. Included inside the generic path's namespace.

#if defined(__GNUC__)
typedef float Four __attribute__((vector_size(16)));  // becomes the vectors of the machine, whatever they are
#else
struct Four {
    float v[4];
};
STRETTO_INLINE Four operator+(Four a, Four b) {
    return {a.v[0] + b.v[0], a.v[1] + b.v[1], a.v[2] + b.v[2], a.v[3] + b.v[3]};
}
STRETTO_INLINE Four operator-(Four a, Four b) {
    return {a.v[0] - b.v[0], a.v[1] - b.v[1], a.v[2] - b.v[2], a.v[3] - b.v[3]};
}
STRETTO_INLINE Four operator*(Four a, float b) { return {a.v[0] * b, a.v[1] * b, a.v[2] * b, a.v[3] * b}; }
#endif

using Group = float[group_depth][panel_width];

STRETTO_INLINE Four load_four(const float* from) {
    Four to;
    std::memcpy(&to, from, sizeof to);
    return to;
}

// sums[output] += weights[input][output] * x[input] in ascending order of the inputs. Sums with names of their own stay
// in registers, where an array would not.
static void multiply(const Group& weights, const float* x, float* sums) {
    Four a = load_four(sums), b = load_four(sums + 4), c = load_four(sums + 8), d = load_four(sums + 12);
    Four e = load_four(sums + 16), f = load_four(sums + 20), g = load_four(sums + 24), h = load_four(sums + 28);
    for (int k = 0; k < group_depth; ++k) {
        const float* const w = weights[k];
        const float factor = x[k];
        a = a + load_four(w) * factor, b = b + load_four(w + 4) * factor;
        c = c + load_four(w + 8) * factor, d = d + load_four(w + 12) * factor;
        e = e + load_four(w + 16) * factor, f = f + load_four(w + 20) * factor;
        g = g + load_four(w + 24) * factor, h = h + load_four(w + 28) * factor;
    }
    const Four sum[] = {a, b, c, d, e, f, g, h};
    std::memcpy(sums, sum, sizeof sum);
}

// ---- weights --------------------------------------------------------------------------------------------------------

// The same field of four words, less what means 0.
STRETTO_INLINE void unpack_field(const uint32_t* words, int shift, uint32_t mask, Four zeros, float* to) {
    const auto field = [=](int i) { return static_cast<float>(static_cast<int32_t>(words[i] >> shift & mask)); };
    const Four values = Four{field(0), field(1), field(2), field(3)} - zeros;
    std::memcpy(to, &values, sizeof values);
}

static void unpack_bf16(const uint8_t* from, Group& to) {
    for (int pair = 0; pair < group_depth; pair += 2)
        for (int i = 0; i < panel_width; ++i, from += 4) {
            uint32_t both;
            std::memcpy(&both, from, sizeof both);
            to[pair][i] = same_bits<float>(both << 16);
            to[pair + 1][i] = same_bits<float>(both & 0xffff0000);
        }
}

static void unpack_int8(const uint8_t* from, Group& to) {
    const Four zeros = {128.0f, 128.0f, 128.0f, 128.0f};
    for (int half = 0; half < panel_width; half += 16)
        for (int quad = 0; quad < group_depth; quad += 4)
            for (int i = half; i < half + 16; i += 4, from += 16) {
                uint32_t words[4];
                std::memcpy(words, from, sizeof words);
                for (int k = 0; k < 4; ++k) unpack_field(words, 8 * k, 255, zeros, to[quad + k] + i);
            }
}

static void unpack_int4(const uint8_t* from, const uint8_t* packed_zeros, Group& to) {
    float zeros[panel_width];
    for (int i = 0; i < panel_width; ++i) zeros[i] = packed_zeros ? packed_zeros[i] : 8.0f;
    for (int half = 0; half < panel_width; half += 16)
        for (int oct = 0; oct < group_depth; oct += 8)
            for (int i = half; i < half + 16; i += 4, from += 16) {
                uint32_t words[4];
                std::memcpy(words, from, sizeof words);
                for (int k = 0; k < 4; ++k) {
                    unpack_field(words, 8 * k, 15, load_four(zeros + i), to[oct + k] + i);
                    unpack_field(words, 8 * k + 4, 15, load_four(zeros + i), to[oct + 4 + k] + i);
                }
            }
}

static void unpack(const Matrix& m, int64_t panel, int64_t group, Group& to) {
    const int64_t index = panel * (m.depth / group_depth) + group;
    const auto* const from = static_cast<const uint8_t*>(m.weights) + index * packed_bytes(m.layout, 1, group_depth);
    switch (m.layout) {
        case WeightLayout::fp32:
            std::memcpy(to, from, sizeof to);
            break;
        case WeightLayout::bf16:
            unpack_bf16(from, to);
            break;
        case WeightLayout::int8:
            unpack_int8(from, to);
            break;
        case WeightLayout::int4:
            unpack_int4(from, m.zeros ? m.zeros + index * panel_width : nullptr, to);
            break;
    }
}

// int4 has scales of its groups; int8's are those of the outputs, which the whole sum meets.
static void unpack_scales(const Matrix& m, int64_t panel, int64_t group, float* to) {
    const int64_t at = (panel * (m.depth / group_depth) + group) * panel_width;
    const bool int4 = m.layout == WeightLayout::int4;
    for (int i = 0; i < panel_width; ++i) to[i] = int4 ? from_f16(m.group_scales[at + i]) : 1.0f;
}

// ---- rows -----------------------------------------------------------------------------------------------------------

static void add_floats(const Product& p, const Group& weights, int64_t row, int64_t group, float* sums) {
    const int64_t at = row * p.x.depth + group * group_depth;
    if (p.matrix->activations == Activations::fp32) return multiply(weights, p.x.fp32 + at, sums);
    float x[group_depth];
    for (int k = 0; k < group_depth; ++k) x[k] = widen(p.x.bf16[at + k]);
    multiply(weights, x, sums);
}

static void multiply_digits(const Group& weights, const int8_t* digits, float* products) {
    float x[group_depth];
    for (int k = 0; k < group_depth; ++k) x[k] = digits[k];
    for (int i = 0; i < panel_width; ++i) products[i] = 0.0f;
    multiply(weights, x, products);
}

static void add_digits(const Product& p, const Group& weights, const float* scales, int64_t row, int64_t group,
                       float* sums) {
    const Matrix& m = *p.matrix;
    const int64_t depth = p.x.depth, groups = depth / group_depth;
    const bool two = m.activations == Activations::int8x2;
    const int8_t* const digits = p.x.digits + (two ? 2 * row : row) * depth + group * group_depth;
    float products[panel_width], of_low_digits[panel_width];
    multiply_digits(weights, digits, products);
    if (two) {  // one rounding, as if the whole number had been converted
        multiply_digits(weights, digits + depth, of_low_digits);
        for (int i = 0; i < panel_width; ++i) products[i] = products[i] * 256.0f + of_low_digits[i];
    }
    if (sums_are_integers(m)) {
        for (int i = 0; i < panel_width; ++i)
            sums[i] = same_bits<float>(same_bits<int32_t>(sums[i]) + static_cast<int32_t>(products[i]));
        return;
    }
    const float scale = p.x.scales[m.activations == Activations::int8_row ? row : row * groups + group];
    for (int i = 0; i < panel_width; ++i) sums[i] += products[i] * (scales[i] * scale);
}

static int64_t tile_rows(const Matrix&) { return 16; }

static void tile(const Product& p, int64_t panel, int64_t row, int64_t rows, int64_t first, int64_t last, Sums sums) {
    const bool bytes = p.matrix->layout == WeightLayout::int8 || p.matrix->layout == WeightLayout::int4;
    Group weights;
    float scales[panel_width];
    for (int64_t group = first; group < last; ++group) {
        unpack(*p.matrix, panel, group, weights);
        if (bytes) unpack_scales(*p.matrix, panel, group, scales);
        for (int64_t r = 0; r < rows; ++r)
            if (bytes)
                add_digits(p, weights, scales, row + r, group, sums[r]);
            else
                add_floats(p, weights, row + r, group, sums[r]);
    }
}
