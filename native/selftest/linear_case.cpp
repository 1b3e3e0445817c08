#include "linear_case.hpp"

#include <algorithm>
#include <cstdlib>
#include <type_traits>

namespace stretto::selftest {
namespace {

int64_t up(int64_t n) { return (n + 31) / 32 * 32; }

// A row-major matrix of the layout's numbers, packed; `value` gets what each number stands for before scales.
template <class T, class Make>
void fill(LinearCase& c, Make make) {
    const int64_t outputs = c.shape.outputs, inputs = c.shape.inputs;
    Buffer<T> matrix(outputs * inputs);
    for (int64_t o = 0; o < outputs; ++o)
        for (int64_t k = 0; k < inputs; ++k)
            matrix[o * inputs + k] = make(c.weights[static_cast<size_t>(o * c.matrix.depth + k)]);
    // In two parts, as several threads would pack it.
    const int64_t middle = c.matrix.panels / 2;
    pack_panels(c.format.layout, matrix.data(), outputs, inputs, c.matrix.depth, middle, c.matrix.panels,
                c.int8_offset, c.packed.data());
    pack_panels(c.format.layout, matrix.data(), outputs, inputs, c.matrix.depth, 0, middle, c.int8_offset,
                c.packed.data());
    if constexpr (std::is_same_v<T, int8_t>) {
        if (!c.raises || c.format.activations == Activations::int8x2) return;
        c.group_sums = Buffer<int16_t>(c.matrix.panels * c.matrix.depth);
        const auto sum = [&](int64_t first, int64_t last) {
            return sum_groups(matrix.data(), outputs, inputs, c.matrix.depth, first, last, c.group_sums.data());
        };
        const bool behind = sum(middle, c.matrix.panels), before = sum(0, middle);
        if (behind && before) c.matrix.group_sums = c.group_sums.data();
    }
}

void make_int4(LinearCase& c, Random& random) {
    const int64_t outputs = c.shape.outputs, groups = c.matrix.depth / 32;
    Buffer<uint16_t> scales(outputs * groups);
    Buffer<uint8_t> zeros(outputs * groups);
    for (uint16_t& scale : scales) {
        scale = static_cast<uint16_t>(random.between(0x1c00, 0x33ff));             // normal ones
        if (random.one_in(8)) scale = static_cast<uint16_t>(random.below(0x400));  // 0 and denormal ones
        if (random.one_in(2)) scale |= 0x8000;
    }
    for (uint8_t& zero : zeros) zero = static_cast<uint8_t>(c.shape.extreme ? 15 * random.below(2) : random.below(16));
    fill<uint8_t>(c, [&](double& value) {
        const int64_t nibble = c.shape.extreme ? 15 * random.below(2) : random.below(16);
        value = static_cast<double>(nibble);
        return static_cast<uint8_t>(nibble);
    });
    for (int64_t o = 0; o < outputs; ++o)
        for (int64_t k = 0; k < c.shape.inputs; ++k) {
            double& value = c.weights[static_cast<size_t>(o * c.matrix.depth + k)];
            const int64_t group = o * groups + k / 32;
            value = (value - (c.format.zeros ? zeros[group] : 8)) * from_f16(scales[group]);
        }
    c.group_scales = Buffer<uint16_t>(c.matrix.panels * 32 * groups);
    pack_groups(scales.data(), outputs, groups, 0, c.matrix.panels, static_cast<uint16_t>(0), c.group_scales.data());
    c.matrix.group_scales = c.group_scales.data();
    if (!c.format.zeros) return;
    c.zeros = Buffer<uint8_t>(c.matrix.panels * 32 * groups);
    pack_groups(zeros.data(), outputs, groups, 0, c.matrix.panels, static_cast<uint8_t>(8), c.zeros.data());
    c.matrix.zeros = c.zeros.data();
}

void make_int8(LinearCase& c, Random& random) {
    c.scales = Buffer<float>(c.matrix.panels * 32);
    for (float& scale : c.scales) scale = 0.01f + 0.009f * random.unit();
    c.matrix.scales = c.scales.data();
    // Narrow ones: what two neighbours of one sign add up to reaches 128 and no more.
    const bool narrow = random.one_in(2);
    int64_t number = 0;
    fill<int8_t>(c, [&](double& value) {
        const int64_t before = number, room = 128 - std::abs(before);
        const bool second = (&value - c.weights.data()) % 2 == 1;
        number = c.shape.extreme ? 127 - 255 * random.below(2) : random.between(-128, 127);
        if (narrow && second && before * number > 0)
            number = (number > 0 ? 1 : -1) * (c.shape.extreme ? room : random.between(0, room));
        value = static_cast<double>(number);
        return static_cast<int8_t>(number);
    });
    for (int64_t o = 0; o < c.shape.outputs; ++o)
        for (int64_t k = 0; k < c.matrix.depth; ++k)
            c.weights[static_cast<size_t>(o * c.matrix.depth + k)] *= c.scales[o];
}

}  // namespace

LinearCase::LinearCase(const LinearKernels& linear, const Format& format, const Shape& shape, Random& random)
    : format(format), shape(shape), int8_offset(linear.int8_offset), raises(linear.raises), matrix{} {
    matrix.layout = format.layout, matrix.activations = format.activations;
    matrix.outputs = shape.outputs, matrix.inputs = shape.inputs;
    matrix.panels = up(shape.outputs) / 32, matrix.depth = up(shape.inputs);
    weights.resize(static_cast<size_t>(shape.outputs * matrix.depth));
    packed = Buffer<char>(packed_bytes(format.layout, matrix.panels, matrix.depth));
    matrix.weights = packed.data();
    switch (format.layout) {
        case WeightLayout::fp32:
            fill<float>(*this, [&](double& value) {
                const float number = random.normal();
                return value = static_cast<double>(number), number;
            });
            break;
        case WeightLayout::bf16:
            fill<uint16_t>(*this, [&](double& value) {
                const uint16_t number = to_bf16(random.normal());
                return value = static_cast<double>(from_bf16(number)), number;
            });
            break;
        case WeightLayout::int8:
            make_int8(*this, random);
            break;
        case WeightLayout::int4:
            make_int4(*this, random);
            break;
    }
    if (shape.bias) {
        bias = Buffer<float>(matrix.panels * 32);
        for (float& b : bias) b = random.normal();
        matrix.bias = bias.data();
    }
    // Borders anywhere, so that shards are uneven and some empty.
    matrix.shards = shape.shards;
    for (int32_t s = 1; s < shape.shards; ++s) matrix.border[s] = 32 * random.between(0, matrix.depth / 32);
    matrix.border[shape.shards] = matrix.depth;
    std::sort(matrix.border, matrix.border + shape.shards + 1);
}

std::string LinearCase::name() const {
    return text("%s, %lld outputs, %lld inputs, %d shards%s%s", format.name, static_cast<long long>(shape.outputs),
                static_cast<long long>(shape.inputs), shape.shards, shape.bias ? ", bias" : "",
                shape.extreme ? ", extremes" : "");
}

PreparedRows::PreparedRows(Activations activations, int64_t rows, int64_t depth, bool raises)
    : activations(activations), raises(raises && activations != Activations::int8x2), rows(rows), depth(depth) {
    const int64_t groups = depth / 32;
    switch (activations) {
        case Activations::fp32:
            fp32 = Buffer<float>(rows * depth);
            return;
        case Activations::bf16:
            bf16 = Buffer<uint16_t>(rows * depth);
            return;
        default:
            break;
    }
    digits = Buffer<int8_t>(digit_rows() * rows * depth);
    sums = Buffer<int32_t>(digit_rows() * rows * groups);
    scales = Buffer<float>(activations == Activations::int8_row ? rows : rows * groups);
    if (this->raises) raised = Buffer<uint8_t>(rows * depth);
}

PreparedRows PreparedRows::slice(int64_t first, int64_t count) const {
    PreparedRows part(activations, count, depth, raises);
    const auto copy = [&](auto& to, const auto& from) {
        if (from.size() == 0) return;
        const int64_t row = from.size() / rows;
        std::copy_n(from.data() + first * row, count * row, to.data());
    };
    copy(part.fp32, fp32), copy(part.bf16, bf16), copy(part.digits, digits), copy(part.scales, scales),
        copy(part.sums, sums), copy(part.raised, raised);
    return part;
}

double PreparedRows::value(int64_t row, int64_t input) const {
    const int64_t at = row * depth + input;
    switch (activations) {
        case Activations::fp32:
            return fp32[at];
        case Activations::bf16:
            return from_bf16(bf16[at]);
        case Activations::int8:
            return static_cast<double>(scales[at / 32]) * digits[at];
        case Activations::int8_row:
            return static_cast<double>(scales[row]) * digits[at];
        case Activations::int8x2:
            break;
    }
    const int64_t high = 2 * row * depth + input;
    return static_cast<double>(scales[at / 32]) * (256 * digits[high] + digits[high + depth]);
}

PreparedRows random_rows(const LinearKernels& linear, const LinearCase& c, int64_t rows, Random& random) {
    PreparedRows prepared(c.format.activations, rows, c.matrix.depth, c.raises);
    Buffer<float> x(c.shape.inputs);
    for (int64_t row = 0; row < rows; ++row) {
        for (float& value : x) value = random.normal();
        linear.prepare(c.format.activations, x.data(), c.shape.inputs, row, prepared.view());
    }
    return prepared;
}

PreparedRows extreme_rows(const LinearCase& c, int64_t rows, Random& random) {
    PreparedRows prepared(c.format.activations, rows, c.matrix.depth, c.raises);
    for (float& scale : prepared.scales) scale = 0.02f + 0.01f * random.unit();
    const int64_t groups = c.matrix.depth / 32;
    for (int64_t row = 0; row < rows * prepared.digit_rows(); ++row) {
        const int64_t mood = random.below(3);  // all least, all 127, either
        const int least = c.format.activations == Activations::int8x2 ? -128 : -127;
        for (int64_t g = 0; g < groups; ++g) {
            int32_t& sum = prepared.sums[row * groups + g] = 0;
            for (int64_t k = g * 32; k < g * 32 + 32; ++k) {
                const int digit = k >= c.shape.inputs ? 0 : mood == 0 || (mood == 2 && random.one_in(2)) ? least : 127;
                prepared.digits[row * c.matrix.depth + k] = static_cast<int8_t>(digit);
                if (prepared.raises) prepared.raised[row * c.matrix.depth + k] = static_cast<uint8_t>(digit + 128);
                sum += digit;
            }
        }
    }
    return prepared;
}

void multiply(const LinearKernels& linear, const LinearCase& c, const PreparedRows& x, int threads, bool add,
              Random& random, Buffer<float>& out, int64_t stride) {
    static Buffer<char> scratch(linear_scratch);
    scratch.poison();
    const Product product{&c.matrix, x.view(), x.rows, out.data(), stride, add};
    const int64_t pieces = linear.pieces(c.matrix, x.rows, threads);
    shuffled(pieces, random, [&](int64_t piece) { linear.run(product, piece, pieces, scratch.data()); });
}

}  // namespace stretto::selftest
