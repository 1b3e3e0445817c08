// What prepare makes of a row, to the bit, and what packing makes of a matrix, byte by byte as linear.hpp pictures it.
#include <algorithm>
#include <cmath>

#include "linear_case.hpp"

namespace stretto::selftest {
namespace {

constexpr float smallest = 0x1p-100f;  // a group whose values are all smaller reads as zeros

struct Whole {  // a group, or a row, as whole numbers
    float scale;
    std::vector<int> numbers;
};

// scale = peak / limit, number = x * (limit / peak) rounded to nearest, halves to even; all in fp32.
Whole whole_numbers(const float* x, int64_t count, float limit) {
    Whole result{0.0f, std::vector<int>(static_cast<size_t>(count), 0)};
    float peak = 0.0f;
    for (int64_t i = 0; i < count; ++i) {
        if (!std::isfinite(x[i])) return result.scale = NAN, result;
        peak = std::fmax(peak, std::fabs(x[i]));
    }
    if (peak < smallest) return result;
    result.scale = peak / limit;
    const float per_unit = limit / peak;
    for (int64_t i = 0; i < count; ++i)
        result.numbers[static_cast<size_t>(i)] = static_cast<int>(std::nearbyintf(x[i] * per_unit));
    return result;
}

// Integers as floats, so that one comparison serves all.
void same_numbers(Check& check, const auto* got, const std::vector<int>& want) {
    for (size_t i = 0; i < want.size(); ++i) check.near(got[i], want[i], 0);
}

void compare_digits(Check& check, const PreparedRows& to, int64_t row, const Buffer<float>& x) {
    const int64_t inputs = x.size(), depth = to.depth, groups = depth / 32;
    Buffer<float> padded(depth);
    for (int64_t k = 0; k < depth; ++k) padded[k] = k < inputs ? x[k] : 0.0f;
    const bool twice = to.activations == Activations::int8x2, whole_row = to.activations == Activations::int8_row;
    const int64_t size = whole_row ? depth : 32;
    for (int64_t first = 0; first < depth; first += size) {
        const Whole whole = whole_numbers(padded.data() + first, size, twice ? 32639.0f : 127.0f);
        const float scale = to.scales[whole_row ? row : row * groups + first / 32];
        check.near(scale, whole.scale, 0);
        std::vector<int> high, low;
        for (const int number : whole.numbers) {
            high.push_back(static_cast<int>(std::floor((number + 128) / 256.0)));
            low.push_back(number - 256 * high.back());
        }
        const int64_t digit_row = twice ? 2 * row : row;
        same_numbers(check, to.digits.data() + digit_row * depth + first, twice ? high : whole.numbers);
        if (twice) same_numbers(check, to.digits.data() + (digit_row + 1) * depth + first, low);
    }
    for (int64_t k = row * depth; to.raises && k < (row + 1) * depth; ++k)
        check.near(to.raised[k], to.digits[k] + 128, 0);
    for (int64_t r = row * to.digit_rows(); r < (row + 1) * to.digit_rows(); ++r)
        for (int64_t g = 0; g < groups; ++g) {
            int sum = 0;
            for (int64_t k = 0; k < 32; ++k) sum += to.digits[r * depth + g * 32 + k];
            check.near(to.sums[r * groups + g], sum, 0);
        }
}

void compare_row(Check& check, const PreparedRows& to, int64_t row, const Buffer<float>& x) {
    const int64_t inputs = x.size();
    for (int64_t k = 0; k < to.depth; ++k) {
        const float value = k < inputs ? x[k] : 0.0f;
        if (to.activations == Activations::fp32) check.same(to.fp32.data() + row * to.depth + k, &value, 1);
        const float rounded = from_bf16(to_bf16(value));
        if (to.activations != Activations::bf16) continue;
        const float got = from_bf16(to.bf16[row * to.depth + k]);
        check.same(&got, &rounded, 1);
    }
    if (to.digits.size() > 0) compare_digits(check, to, row, x);
}

// Rows whose groups are of very different sizes, at the borders of rounding, tiny, zero or not finite.
void fill_hard(Buffer<float>& x, Random& random) {
    for (int64_t first = 0; first < x.size(); first += 32) {
        const int64_t kind = random.below(8);
        const float size = std::ldexp(1.0f + 0.5f * random.unit(), static_cast<int>(random.between(-10, 10)));
        for (int64_t k = first; k < std::min(first + 32, x.size()); ++k) {
            x[k] = size * random.normal();
            if (kind == 0) x[k] = 0.0f;
            if (kind == 1)
                x[k] = static_cast<float>(random.between(-254, 254)) * 0.5f;  // halves, where 127 is the peak
            if (kind == 2) x[k] = std::ldexp(random.unit(), static_cast<int>(random.between(-149, -95)));
            if (kind == 3) x[k] = std::ldexp(random.unit(), 127);
            if (kind == 4) x[k] = random.one_in(2) ? size : -size;
        }
        if (kind == 1) x[first] = 127.0f;
        if (kind == 5 && random.one_in(4))
            x[random.between(first, std::min(first + 31, x.size() - 1))] = random.one_in(2) ? NAN : -INFINITY;
    }
}

// Where linear.hpp says that a weight lies.
int64_t place_of(WeightLayout layout, int64_t depth, int64_t o, int64_t k, int& high) {
    const int64_t panel = o / 32, half = o % 32 / 16, lane = o % 16, group = panel * (depth / 32) + k / 32, in = k % 32;
    switch (layout) {
        case WeightLayout::fp32:
            return ((panel * depth + k) * 32 + half * 16 + lane) * 4;
        case WeightLayout::bf16:
            return (((panel * depth / 2 + k / 2) * 32 + half * 16 + lane) * 2 + k % 2) * 2;
        case WeightLayout::int8:
            return (((group * 2 + half) * 8 + in / 4) * 16 + lane) * 4 + in % 4;
        case WeightLayout::int4:
            break;
    }
    high = in % 8 >= 4;
    return (((group * 2 + half) * 4 + in / 8) * 16 + lane) * 4 + in % 4;
}

template <class T>
void check_pack(Check& check, WeightLayout layout, Random& random) {
    const int64_t outputs = random.between(1, 100), inputs = random.between(1, 150), panels = (outputs + 31) / 32;
    const int64_t depth = (inputs + 31) / 32 * 32, split = random.between(0, panels),
                  size = packed_bytes(layout, panels, depth);
    Buffer<T> matrix(outputs * inputs);
    for (T& value : matrix) {
        if constexpr (sizeof(T) == 4) value = random.normal();
        if constexpr (sizeof(T) == 2) value = static_cast<T>(random.bits());
        if constexpr (sizeof(T) == 1)
            value = static_cast<T>(layout == WeightLayout::int4 ? random.below(16) : random.between(-128, 127));
    }
    const auto offset = static_cast<uint8_t>(128 * random.below(2));
    Buffer<unsigned char> packed(size), want(size);
    std::memset(want.data(), 0, want.bytes());
    pack_panels(layout, matrix.data(), outputs, inputs, depth, split, panels, offset, packed.data());
    pack_panels(layout, matrix.data(), outputs, inputs, depth, 0, split, offset, packed.data());
    for (int64_t o = 0; o < panels * 32; ++o)
        for (int64_t k = 0; k < depth; ++k) {
            const bool there = o < outputs && k < inputs;
            const T value = there ? matrix[o * inputs + k] : static_cast<T>(layout == WeightLayout::int4 ? 8 : 0);
            int high = 0;
            unsigned char* const to = want.data() + place_of(layout, depth, o, k, high);
            if (layout == WeightLayout::int8)
                *to = static_cast<unsigned char>(static_cast<int>(value) + offset);
            else if (layout == WeightLayout::int4)
                *to = static_cast<unsigned char>(*to | static_cast<int>(value) << 4 * high);
            else
                std::memcpy(to, &value, sizeof value);
        }
    check.about(text("layout %d, %lld outputs, %lld inputs", static_cast<int>(layout), static_cast<long long>(outputs),
                     static_cast<long long>(inputs)));
    check.same_bytes(packed.data(), want.data(), want.bytes());
}

void check_sums(Check& check, Random& random) {
    const int64_t outputs = random.between(1, 70), inputs = random.between(1, 100), panels = (outputs + 31) / 32;
    const int64_t groups = (inputs + 31) / 32;
    Buffer<int8_t> matrix(outputs * inputs);
    for (int8_t& value : matrix) value = static_cast<int8_t>(random.between(-64, 64));
    // One pair that fits only just, or does not.
    const int64_t at = random.below(outputs) * inputs + 2 * random.below((inputs + 1) / 2);
    const int sign = random.one_in(2) ? 1 : -1;
    const bool paired = at % inputs + 1 < inputs, narrow = !paired || random.one_in(2);
    matrix[at] = static_cast<int8_t>(sign * random.between(64, 127));
    if (paired) matrix[at + 1] = static_cast<int8_t>(sign * ((narrow ? 128 : 129) - std::abs(matrix[at])));
    Buffer<int16_t> sums(panels * groups * 32), want = sums;
    for (int64_t o = 0; o < panels * 32; ++o)
        for (int64_t g = 0; g < groups; ++g) {
            int sum = 0;
            for (int64_t k = g * 32; o < outputs && k < std::min(g * 32 + 32, inputs); ++k)
                sum += matrix[o * inputs + k];
            want[(o / 32 * groups + g) * 32 + o % 32] = static_cast<int16_t>(sum);
        }
    check.about(text("%lld outputs, %lld inputs", static_cast<long long>(outputs), static_cast<long long>(inputs)));
    check.that(sum_groups(matrix.data(), outputs, inputs, groups * 32, 0, panels, sums.data()) == narrow,
               "that pairs of one sign up to 128 fit");
    check.same_bytes(sums.data(), want.data(), want.bytes());
}

template <class T>
void check_groups(Check& check, T fill, Random& random) {
    const int64_t outputs = random.between(1, 100), groups = random.between(1, 9), panels = (outputs + 31) / 32;
    Buffer<T> rows(outputs * groups), packed(panels * groups * 32), want = packed;
    for (T& value : rows) value = static_cast<T>(random.bits());
    pack_groups(rows.data(), outputs, groups, 0, panels, fill, packed.data());
    for (int64_t o = 0; o < panels * 32; ++o)
        for (int64_t g = 0; g < groups; ++g)
            want[(o / 32 * groups + g) * 32 + o % 32] = o < outputs ? rows[o * groups + g] : fill;
    check.about(text("%lld outputs, %lld groups", static_cast<long long>(outputs), static_cast<long long>(groups)));
    check.same_bytes(packed.data(), want.data(), want.bytes());
}

}  // namespace

void check_prepare(const Kernels& kernels, Random random, Effort effort, Report& report) {
    const char* names[] = {"prepare: fp32", "prepare: bf16", "prepare: int8", "prepare: int8_row", "prepare: int8x2"};
    for (int a = 0; a < 5; ++a) {
        Check& check = report.check(names[a]);
        const auto activations = static_cast<Activations>(a);
        for (int64_t i = 0; i < effort.of(80); ++i) {
            const int64_t inputs = random.between(1, i % 8 == 0 ? 1100 : 130), rows = random.between(1, 5);
            PreparedRows to(activations, rows, (inputs + 31) / 32 * 32, kernels.linear.raises || random.one_in(2));
            check.about(text("%lld inputs", static_cast<long long>(inputs)));
            std::vector<Buffer<float>> given;
            for (int64_t row = 0; row < rows; ++row) {
                Buffer<float> x(inputs);
                if (random.one_in(2))
                    fill_hard(x, random);
                else
                    for (float& value : x) value = random.normal();
                given.push_back(std::move(x));
            }
            for (int64_t row = rows; row-- > 0;)
                kernels.linear.prepare(activations, given[static_cast<size_t>(row)].data(), inputs, row, to.view());
            for (int64_t row = 0; row < rows; ++row) compare_row(check, to, row, given[static_cast<size_t>(row)]);
        }
    }
}

void check_packing(const Kernels&, Random random, Effort effort, Report& report) {
    Check& panels = report.check("pack: panels");
    Check& groups = report.check("pack: groups");
    Check& sums = report.check("pack: sums of groups");
    for (int64_t i = 0; i < effort.of(20); ++i) {
        check_pack<float>(panels, WeightLayout::fp32, random);
        check_pack<uint16_t>(panels, WeightLayout::bf16, random);
        check_pack<int8_t>(panels, WeightLayout::int8, random);
        check_pack<uint8_t>(panels, WeightLayout::int4, random);
        check_sums(sums, random);
        check_groups<uint16_t>(groups, static_cast<uint16_t>(random.bits()), random);
        check_groups<uint8_t>(groups, 8, random);
    }
}

}  // namespace stretto::selftest
