// Norms, activations, rotary positions, embeddings: values, the same bits wherever a row lies in memory, and nothing
// written beside it.
#include <algorithm>
#include <cmath>
#include <functional>

#include "check.hpp"

namespace stretto::selftest {
namespace {

constexpr float beside = 12345.0f;

// A row at some place within its memory, with numbers beside it that must stay.
struct Row {
    Row(const Buffer<float>& values, int64_t place)
        : memory(place + values.size() + 3), place(place), size(values.size()) {
        for (float& x : memory) x = beside;
        std::copy_n(values.data(), size, data());
    }
    float* data() const { return memory.data() + place; }
    bool intact() const {
        for (int64_t i = 0; i < memory.size(); ++i)
            if ((i < place || i >= place + size) && memory[i] != beside) return false;
        return true;
    }
    Buffer<float> memory;
    int64_t place, size;
};

Buffer<float> numbers(int64_t size, Random& random, float scale = 1.0f) {
    Buffer<float> x(size);
    for (float& value : x) value = scale * random.normal();
    return x;
}

// Runs an op that turns a row in place, at its memory's beginning and elsewhere; returns the result.
Buffer<float> everywhere(Check& check, const Buffer<float>& x, Random& random, const std::function<void(float*)>& op) {
    Row first(x, 0);
    op(first.data());
    for (int i = 0; i < 2; ++i) {
        Row other(x, random.between(1, 17));
        op(other.data());
        check.same(other.data(), first.data(), x.size());
        check.that(other.intact() && first.intact(), "nothing written beside the row");
    }
    Buffer<float> result(x.size());
    std::copy_n(first.data(), x.size(), result.data());
    return result;
}

void check_norms(const RowKernels& rows, Check& rms, Check& layer, int64_t size, Random& random) {
    const float scale = std::ldexp(1.0f, static_cast<int>(random.between(-12, 12))),
                shift = random.one_in(2) ? 0.0f : scale * random.normal();
    Buffer<float> x = numbers(size, random, scale);
    for (float& value : x) value += shift;
    const Buffer<float> weight = numbers(size, random), bias = numbers(size, random);
    const float eps = random.one_in(2) ? 1e-6f : 1e-5f;
    const bool biased = random.one_in(2);
    const auto count = static_cast<double>(size);
    double squares = 0, sum = 0, sizes = 0, deviation = 0;
    for (const double value : x) squares += value * value, sum += value, sizes += std::fabs(value);
    const double mean = sum / count;
    for (const double value : x) deviation += (value - mean) * (value - mean);
    const double factor = 1 / std::sqrt(squares / count + eps), of_layer = 1 / std::sqrt(deviation / count + eps);
    const double adding = (count / 32 + 20) * half_ulp;  // no lane adds up more

    rms.about(text("%lld numbers", static_cast<long long>(size))),
        layer.about(text("%lld numbers", static_cast<long long>(size)));
    const Buffer<float> scaled =
        everywhere(rms, x, random, [&](float* row) { rows.rms_norm(row, weight.data(), size, eps, row); });
    const Buffer<float> centred = everywhere(layer, x, random, [&](float* row) {
        rows.layer_norm(row, weight.data(), biased ? bias.data() : nullptr, size, eps, row);
    });
    const double off_mean = sizes / count * adding;
    for (int64_t i = 0; i < size; ++i) {
        const double want = x[i] * factor * weight[i];
        rms.near(scaled[i], want, std::fabs(want) * adding);
        const double distance = x[i] - mean, added = biased ? bias[i] : 0, turned = distance * of_layer * weight[i];
        // An error of the mean moves the distance, and the deviation by its square.
        const double relative = adding + off_mean * off_mean * of_layer * of_layer;
        const double off =
            std::fabs(of_layer * weight[i]) * (off_mean + std::fabs(x[i]) * half_ulp) + std::fabs(turned) * relative;
        layer.near(centred[i], turned + added, off + std::fabs(turned + added) * 2 * half_ulp);
    }
}

double act(Activation activation, double x) {
    switch (activation) {
        case Activation::silu:
            return x / (1 + std::exp(-x));
        case Activation::gelu:
            return 0.5 * x * (1 + std::erf(x * std::sqrt(0.5)));
        case Activation::gelu_tanh:
            return 0.5 * x * (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
        case Activation::relu:
        case Activation::relu_squared:
            break;
    }
    const double positive = x > 0 ? x : x != x ? x : 0;
    // A square beyond fp32 is infinity.
    return activation == Activation::relu ? positive : static_cast<float>(positive * positive);
}

void check_activations(const RowKernels& rows, Check& check, int64_t size, Random& random) {
    Buffer<float> gate = numbers(size, random, std::ldexp(1.0f, static_cast<int>(random.between(-8, 7))));
    const Buffer<float> up = numbers(size, random);
    const float hard[] = {0.0f,   -0.0f,   NAN,   INFINITY, 1e-42f, -1e-42f,
                          100.0f, -100.0f, 3e37f, -5.5f,    0.625f, 0.921875f};
    for (int64_t i = 0; i < size; ++i)
        if (random.one_in(6)) gate[i] = hard[random.below(12)];
    const bool gated = random.one_in(2);
    for (int32_t number = 0; number <= static_cast<int32_t>(Activation::relu_squared); ++number) {
        const auto activation = static_cast<Activation>(number);
        check.about(text("activation %d, %lld numbers", static_cast<int>(activation), static_cast<long long>(size)));
        const Buffer<float> out = everywhere(check, gate, random, [&](float* row) {
            rows.activate(activation, row, gated ? up.data() : nullptr, size, row);
        });
        for (int64_t i = 0; i < size; ++i) {
            const double want = act(activation, gate[i]), factor = gated ? up[i] : 1;
            const double off = 6 * std::fabs(static_cast<double>(gate[i])) + 8 * std::fabs(want);
            check.near(out[i], want * factor, off * half_ulp * std::fabs(factor) + 1e-37);
        }
    }
}

void check_rotation(const RowKernels& rows, Check& check, Random& random) {
    const int64_t heads = random.between(1, 5), pairs = random.between(1, 50),
                  rest = random.one_in(2) ? 0 : random.below(20);
    const int64_t size = 2 * pairs + rest;
    const Buffer<float> x = numbers(heads * size, random), cosine = numbers(pairs, random),
                        sine = numbers(pairs, random);
    check.about(text("%lld heads of %lld, %lld pairs", static_cast<long long>(heads), static_cast<long long>(size),
                     static_cast<long long>(pairs)));
    const Buffer<float> out = everywhere(
        check, x, random, [&](float* row) { rows.rotate(row, heads, size, pairs, cosine.data(), sine.data()); });
    for (int64_t head = 0; head < heads; ++head)
        for (int64_t i = 0; i < size; ++i) {
            const int64_t at = head * size + i, pair = i % pairs,
                          other = head * size + (i < pairs ? i + pairs : i - pairs);
            if (i >= 2 * pairs) {
                check.same(out.data() + at, x.data() + at, 1);
                continue;
            }
            const double a = static_cast<double>(x[at]) * cosine[pair], b = static_cast<double>(x[other]) * sine[pair];
            check.near(out[at], i < pairs ? a - b : a + b, (std::fabs(a) + std::fabs(b)) * 2.01 * half_ulp);
        }
}

void check_simple(const RowKernels& rows, Check& check, int64_t size, Random& random) {
    const Buffer<float> x = numbers(size, random), y = numbers(size, random);
    const float factor = random.normal(), cap = 1.0f + 40.0f * std::fabs(random.normal());
    Buffer<uint16_t> narrow(size);
    for (uint16_t& value : narrow) value = to_bf16(random.normal());
    check.about(text("%lld numbers", static_cast<long long>(size)));
    const Buffer<float> added = everywhere(check, x, random, [&](float* row) { rows.add(row, y.data(), size); });
    const Buffer<float> more =
        everywhere(check, x, random, [&](float* row) { rows.add_scaled(row, y.data(), factor, size); });
    const Buffer<float> scaled = everywhere(check, x, random, [&](float* row) { rows.scale(row, factor, size); });
    const Buffer<float> wide =
        everywhere(check, x, random, [&](float* row) { rows.embed_bf16(narrow.data(), size, factor, row); });
    const Buffer<float> copied =
        everywhere(check, x, random, [&](float* row) { rows.embed_fp32(y.data(), size, factor, row); });
    Buffer<float> large = x;
    for (float& value : large) value *= cap;
    const Buffer<float> capped = everywhere(check, large, random, [&](float* row) { rows.softcap(row, cap, size); });
    for (int64_t i = 0; i < size; ++i) {
        const double product = static_cast<double>(factor) * y[i];
        check.near(added[i], x[i] + y[i], 0);
        check.near(more[i], x[i] + product, (std::fabs(x[i] + product) + std::fabs(product)) * 1.01 * half_ulp);
        check.near(scaled[i], x[i] * factor, 0);
        check.near(wide[i], from_bf16(narrow[i]) * factor, 0);
        check.near(copied[i], y[i] * factor, 0);
        const double want = cap * std::tanh(static_cast<double>(large[i]) / cap);
        check.near(capped[i], want, std::fabs(want) * 8 * half_ulp);
    }
}

}  // namespace

void check_rows(const Kernels& kernels, Random random, Effort effort, Report& report) {
    Check& rms = report.check("rows: rms norm");
    Check& layer = report.check("rows: layer norm");
    Check& activations = report.check("rows: activations");
    Check& rotation = report.check("rows: rotary positions");
    Check& simple = report.check("rows: sums, factors, embeddings, soft caps");
    for (int64_t i = 0; i < effort.of(160); ++i) {
        const int64_t size = i < 40 ? i + 1 : random.between(1, i % 10 == 0 ? 9000 : 300);
        check_norms(kernels.rows, rms, layer, size, random);
        check_activations(kernels.rows, activations, size, random);
        check_rotation(kernels.rows, rotation, random);
        check_simple(kernels.rows, simple, size, random);
    }
}

}  // namespace stretto::selftest
