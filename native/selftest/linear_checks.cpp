// Products against sums in double precision.
#include <cmath>

#include "linear_case.hpp"

namespace stretto::selftest {
namespace {

int64_t random_stride(const LinearCase& c, Random& random) { return c.matrix.panels * 32 + 16 * random.below(3); }

// How many half units in the last place of the sum of magnitudes a result may be off. It is rounded twice for each
// input, or for each group of what integers keep exact; rounding errors have no direction, so many of them grow as
// their root.
double roundings(const LinearCase& c) {
    const bool integers = c.format.layout == WeightLayout::int8 || c.format.layout == WeightLayout::int4;
    const auto each = static_cast<double>(integers ? c.matrix.depth / 32 : c.matrix.depth);
    return std::fmin(2 * each, 4 * std::sqrt(each)) + c.shape.shards + 8.0;
}

// Some rows, the first and the last among them, since their cost is that of the whole check.
void compare_values(Check& check, const LinearCase& c, const PreparedRows& x, const Buffer<float>& before,
                    const Buffer<float>& after, int64_t stride, bool add) {
    const int64_t step = x.rows < 24 ? 1 : (x.rows - 1) / 23, depth = c.matrix.depth;
    std::vector<double> row(static_cast<size_t>(depth));
    for (int64_t r = 0; r < x.rows; r += step) {
        for (int64_t k = 0; k < depth; ++k) row[static_cast<size_t>(k)] = x.value(r, k);
        for (int64_t o = 0; o < c.shape.outputs; ++o) {
            const double* weights = c.weights.data() + o * depth;
            double sum = 0, size = 0;
            for (int64_t k = 0; k < depth; ++k) {
                const double product = weights[k] * row[static_cast<size_t>(k)];
                sum += product, size += std::fabs(product);
            }
            if (c.shape.bias) sum += c.bias[o], size += std::fabs(c.bias[o]);
            if (add) sum += before[r * stride + o], size += std::fabs(before[r * stride + o]);
            check.near(after[r * stride + o], sum, size * roundings(c) * half_ulp);
        }
        check.same(after.data() + r * stride + c.matrix.panels * 32, before.data() + r * stride + c.matrix.panels * 32,
                   stride - c.matrix.panels * 32);  // what lies between rows is left alone
    }
}

void check_values(const LinearKernels& linear, Check& check, const Format& format, const Shape& shape, int64_t rows,
                  bool add, Random& random) {
    const LinearCase c(linear, format, shape, random);
    const bool by_hand = shape.extreme && format.layout != WeightLayout::fp32 && format.layout != WeightLayout::bf16;
    const PreparedRows x = by_hand ? extreme_rows(c, rows, random) : random_rows(linear, c, rows, random);
    const int64_t stride = random_stride(c, random);
    Buffer<float> before(rows * stride);
    if (add)
        for (float& value : before) value = random.normal();
    Buffer<float> after = before;
    const int threads = static_cast<int>(random.between(1, 4));
    check.about(c.name() + text(", %lld rows%s, pieces for %d threads", static_cast<long long>(rows),
                                add ? ", added" : "", threads));
    multiply(linear, c, x, threads, add, random, after, stride);
    compare_values(check, c, x, before, after, stride, add);
}

Shape random_shape(int64_t most_outputs, int64_t most_inputs, Random& random) {
    const auto shards = static_cast<int32_t>(random.one_in(2) ? 1 : random.between(2, 8));
    return {random.between(1, most_outputs), random.between(1, most_inputs), shards, random.one_in(2),
            random.one_in(3)};
}

// A row with NaN or infinity is lost, and no other.
void check_lost_row(const LinearKernels& linear, Check& check, const Format& format, Random& random) {
    const LinearCase c(linear, format, random_shape(70, 400, random), random);
    const int64_t rows = random.between(2, 20), inputs = c.shape.inputs, stride = random_stride(c, random);
    const int64_t lost = random.below(rows);
    const float bad[] = {NAN, INFINITY, -INFINITY};
    PreparedRows x = random_rows(linear, c, rows, random);
    Buffer<float> clean(rows * stride), marred = clean, row(inputs);
    const int threads = static_cast<int>(random.between(1, 3));
    multiply(linear, c, x, threads, false, random, clean, stride);
    for (float& value : row) value = random.normal();
    row[random.below(inputs)] = bad[random.below(3)];
    linear.prepare(format.activations, row.data(), inputs, lost, x.view());
    multiply(linear, c, x, threads, false, random, marred, stride);
    check.about(c.name() +
                text(", row %lld of %lld not finite", static_cast<long long>(lost), static_cast<long long>(rows)));
    for (int64_t r = 0; r < rows; ++r) {
        if (r != lost) {
            check.same(marred.data() + r * stride, clean.data() + r * stride, c.shape.outputs);
            continue;
        }
        for (int64_t o = 0; o < c.shape.outputs; ++o)
            check.that(!std::isfinite(marred[r * stride + o]), "nothing finite from a row with NaN or infinity");
    }
}

void check_no_rows(const LinearKernels& linear, Check& check, const Format& format, Random& random) {
    const LinearCase c(linear, format, random_shape(40, 100, random), random);
    const PreparedRows none(format.activations, 0, c.matrix.depth, c.raises);
    Buffer<float> out(64), before = out;
    check.about(c.name() + ", no rows");
    for (int threads = 1; threads <= 3; ++threads)
        multiply(linear, c, none, threads, false, random, out, c.matrix.panels * 32);
    check.same(out, before);
}

}  // namespace

void check_linear(const Kernels& kernels, Random random, Effort effort, Report& report) {
    const LinearKernels& linear = kernels.linear;
    Check& values = report.check("linear: values");
    Check& tall = report.check("linear: values of prompts");
    Check& deep = report.check("linear: values of deep extremes");
    Check& lost = report.check("linear: NaN and infinity stay in their row");
    Check& none = report.check("linear: no rows");
    for (const Format& format : formats) {
        for (int64_t i = 0; i < effort.of(28); ++i) {
            const int64_t rows = i < 5 ? i + 1 : random.between(1, 40);
            check_values(linear, values, format, random_shape(150, i % 4 == 0 ? 1500 : 300, random), rows,
                         random.one_in(2), random);
        }
        for (const int64_t rows : {131, 200, 600}) {
            if (effort.quick && rows != 200) continue;
            check_values(linear, tall, format, random_shape(80, 300, random), rows, random.one_in(2), random);
        }
        // More inputs than a path keeps at hand at once, beside many rows.
        check_values(linear, tall, format, {39, effort.quick ? 4100 : 6007, 5, true, false}, 129, true, random);
        for (int64_t i = 0; i < effort.of(8); ++i) check_lost_row(linear, lost, format, random);
        check_no_rows(linear, none, format, random);
    }
    // The sum of a row of bytes outgrows an int32 somewhere behind 131,072 inputs.
    for (const Format& format : {formats[2], formats[3], formats[4], formats[6]})
        for (const int64_t inputs : {32 * 2047 + 5, 140003})
            check_values(linear, deep, format, {3, inputs, 1, false, true}, 3, false, random);
}

}  // namespace stretto::selftest
