// One row of activations to what products read. Included inside the namespace of each path, behind linear.hpp and the
// path's lanes.

struct GroupOf32 {
    F32 low, high;
};

// The group at `x` of which `left` inputs are there; zeros stand for the others.
static inline GroupOf32 load_group(const float* x, int64_t left) {
    if (left >= group_depth) return {load(x), load(x + 16)};
    const int64_t low = left < 0 ? 0 : left < 16 ? left : 16, high = left < 16 ? 0 : left - 16;
    return {low > 0 ? load(x, low) : zero(), high > 0 ? load(x + 16, high) : zero()};
}

// A NaN may get lost here; the digits will tell.
static inline float largest_of(GroupOf32 x) { return largest(max(abs(x.low), abs(x.high))); }

// The steps of the next 16 groups, or of one row, at once. Digits reach from -digits to digits; inputs too small for a
// finite 1 / largest count as zeros.
struct Steps {
    float largest[16], per_unit[16];

    void store_scales(float digits, float* scales, int64_t n) {
        const F32 a = load(largest);
        const Mask small = less(a, all(0x1p-100f));
        store(scales, select(small, zero(), div(a, all(digits))), n);
        store(per_unit, select(small, zero(), div(all(digits), a)));
    }
};

static inline Steps steps_of_groups(const float* x, int64_t inputs, int64_t groups, float digits, float* scales) {
    Steps steps = {};
    if (groups > 16) groups = 16;
    for (int64_t g = 0; g < groups; ++g)
        steps.largest[g] = largest_of(load_group(x + g * group_depth, inputs - g * group_depth));
    steps.store_scales(digits, scales, groups);
    return steps;
}

// A float from 2^23 on has no fraction: adding this rounds to nearest even and leaves the whole number in the low bits.
constexpr float rounding = 12582912.0f;  // 1.5 * 2^23

static inline F32 whole(F32 rounded) { return sub(rounded, all(rounding)); }

// |x| * per_unit exceeds the largest digit by rounding errors only, hence not at all as a whole number. NaN and
// infinity become NaN: an infinity makes per_unit zero.
static inline GroupOf32 in_steps(GroupOf32 x, float per_unit) {
    const F32 factor = all(per_unit);
    return {add(mul(x.low, factor), all(rounding)), add(mul(x.high, factor), all(rounding))};
}

// Stores the bytes of 32 rounded numbers and returns their sum, which is exact, or NaN where one of them is.
static inline float store_digits(int8_t* to, GroupOf32 rounded) {
    float floats[group_depth];
    store(floats, rounded.low);
    store(floats + 16, rounded.high);
    for (int i = 0; i < group_depth; ++i) to[i] = static_cast<int8_t>(__builtin_bit_cast(int32_t, floats[i]));
    return sum(add(whole(rounded.low), whole(rounded.high)));
}

// floor((value + 128) / 256), so that what remains lies in -128 to 127.
static inline F32 high_digits(F32 value) { return add(mul(add(value, all(0.5f)), all(1.0f / 256)), all(rounding)); }

static inline F32 low_digits(F32 value, F32 high) {
    return add(neg_fma(whole(high), all(256.0f), value), all(rounding));
}

// What a row keeps of groups of which an input is not finite: a NaN in `scale`, which reaches every output of this row
// and no other row.
static inline void lose(float* scale, int8_t* digits, int32_t* sums, int64_t groups) {
    *scale = sum(as_float(all_i(0x7fc00000)));
    for (int64_t i = 0; i < groups * group_depth; ++i) digits[i] = 0;
    for (int64_t g = 0; g < groups; ++g) sums[g] = 0;
}

static inline void prepare_int8(const float* x, int64_t inputs, int64_t groups, float* scales, int8_t* digits,
                                int32_t* sums) {
    Steps steps;
    for (int64_t g = 0; g < groups; ++g, x += group_depth, inputs -= group_depth, digits += group_depth) {
        if (g % 16 == 0) steps = steps_of_groups(x, inputs, groups - g, 127.0f, scales + g);
        const float sum = store_digits(digits, in_steps(load_group(x, inputs), steps.per_unit[g % 16]));
        if (sum == sum)
            sums[g] = static_cast<int32_t>(sum);
        else
            lose(scales + g, digits, sums + g, 1);
    }
}

static inline void prepare_int8_row(const float* x, int64_t inputs, int64_t groups, float* scale, int8_t* digits,
                                    int32_t* sums) {
    F32 largest_lanes = zero();
    for (int64_t g = 0; g < groups; ++g) {
        const GroupOf32 group = load_group(x + g * group_depth, inputs - g * group_depth);
        largest_lanes = max(max(abs(group.low), abs(group.high)), largest_lanes);
    }
    Steps steps = {{largest(largest_lanes)}, {}};
    steps.store_scales(127.0f, scale, 1);
    for (int64_t g = 0; g < groups; ++g) {
        const GroupOf32 group = load_group(x + g * group_depth, inputs - g * group_depth);
        const float sum = store_digits(digits + g * group_depth, in_steps(group, steps.per_unit[0]));
        if (sum != sum) return lose(scale, digits, sums, groups);
        sums[g] = static_cast<int32_t>(sum);
    }
}

static inline void prepare_int8x2(const float* x, int64_t inputs, int64_t groups, int64_t groups_of_row, float* scales,
                                  int8_t* high_row, int32_t* sums) {
    constexpr float largest_value = 256 * 127 + 127;
    Steps steps;
    for (int64_t g = 0; g < groups; ++g, x += group_depth, inputs -= group_depth) {
        int8_t* const high_to = high_row + g * group_depth;
        int8_t* const low_to = high_to + groups_of_row * group_depth;
        if (g % 16 == 0) steps = steps_of_groups(x, inputs, groups - g, largest_value, scales + g);
        const GroupOf32 rounded = in_steps(load_group(x, inputs), steps.per_unit[g % 16]);
        const GroupOf32 value = {whole(rounded.low), whole(rounded.high)};
        const GroupOf32 high = {high_digits(value.low), high_digits(value.high)};
        const GroupOf32 low = {low_digits(value.low, high.low), low_digits(value.high, high.high)};
        const float high_sum = store_digits(high_to, high), low_sum = store_digits(low_to, low);
        if (high_sum == high_sum) {
            sums[g] = static_cast<int32_t>(high_sum);
            sums[groups_of_row + g] = static_cast<int32_t>(low_sum);
        } else {
            lose(scales + g, high_to, sums + g, 1);
            lose(scales + g, low_to, sums + groups_of_row + g, 1);
        }
    }
}

// Both are a multiple of 32 long. 128 is the sign's bit, whatever it was.
static inline void raise(const int8_t* digits, int64_t size, uint8_t* raised) {
    if (raised == nullptr) return;
    for (int64_t i = 0; i < size; ++i) raised[i] = static_cast<uint8_t>(digits[i] ^ 0x80);
}

static void prepare(Activations activations, const float* x, int64_t inputs, int64_t row, const Rows& to) {
    const int64_t depth = to.depth, groups_of_row = depth / group_depth;
    const int64_t groups = (inputs + group_depth - 1) / group_depth, padded = groups * group_depth;
    float* const scales = const_cast<float*>(to.scales);
    int8_t* const digits = const_cast<int8_t*>(to.digits);
    int32_t* const sums = const_cast<int32_t*>(to.sums);
    uint8_t* const raised = to.raised ? const_cast<uint8_t*>(to.raised) + row * depth : nullptr;
    switch (activations) {
        case Activations::fp32:
            for (int64_t i = 0; i < padded; i += group_depth) {
                float* const out = const_cast<float*>(to.fp32) + row * depth + i;
                const GroupOf32 group = load_group(x + i, inputs - i);
                store(out, group.low), store(out + 16, group.high);
            }
            break;
        case Activations::bf16:
            for (int64_t i = 0; i < padded; i += group_depth) {
                uint16_t* const out = const_cast<uint16_t*>(to.bf16) + row * depth + i;
                const GroupOf32 group = load_group(x + i, inputs - i);
                store_bf16(out, group.low), store_bf16(out + 16, group.high);
            }
            break;
        case Activations::int8:
            prepare_int8(x, inputs, groups, scales + row * groups_of_row, digits + row * depth,
                         sums + row * groups_of_row);
            raise(digits + row * depth, padded, raised);
            break;
        case Activations::int8_row:
            prepare_int8_row(x, inputs, groups, scales + row, digits + row * depth, sums + row * groups_of_row);
            raise(digits + row * depth, padded, raised);
            break;
        case Activations::int8x2:
            prepare_int8x2(x, inputs, groups, groups_of_row, scales + row * groups_of_row, digits + 2 * row * depth,
                           sums + 2 * row * groups_of_row);
            break;
    }
}
