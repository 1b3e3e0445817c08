// The rule of choice against one that computes the noise of every token.
#include <algorithm>
#include <cmath>

#include "check.hpp"

namespace stretto::selftest {
namespace {

constexpr double infinity = INFINITY;

// How far off rounding may take a value of the rule; values nearer than this may come out in either order.
double close(double value) { return 1e-5 + 4 * std::fabs(value) * half_ulp; }

uint32_t hash(uint64_t key, uint32_t token) {
    uint32_t x = token * 0x9e3779b1u + static_cast<uint32_t>(key);
    x ^= x >> 17, x *= 0xed5ad4bbu;
    x ^= static_cast<uint32_t>(key >> 32);
    x ^= x >> 11, x *= 0xac4c1b51u;
    x ^= x >> 15, x *= 0x31848babu;
    return x ^ x >> 14;
}

double gumbel(uint32_t h) {
    const float u = std::fmin((static_cast<float>(h) + 0.5f) * 0x1p-32f, 1.0f - 0x1p-24f);
    return -std::log(-std::log1p(-static_cast<double>(u)));
}

std::vector<double> values_of(const ChooseRow& row, int64_t vocab) {
    double top = -infinity;
    for (int64_t i = 0; i < vocab; ++i) top = std::max(top, static_cast<double>(row.scores[i]));
    std::vector<double> values;
    for (int64_t i = 0; i < vocab; ++i) {
        const double score = row.scores[i];
        values.push_back(row.temperature == 0 || score == -infinity
                             ? score
                             : (score - top) / row.temperature + gumbel(hash(row.key, static_cast<uint32_t>(i))));
    }
    return values;
}

void fill(Buffer<float>& scores, Random& random) {
    const int64_t kind = random.below(6);
    const float peak = kind == 1 ? 12.0f : 0.0f, scale = kind == 2 ? 1e-3f : kind == 3 ? 60.0f : 2.5f;
    for (float& score : scores) {
        score = scale * random.normal();
        if (kind == 4) score = static_cast<float>(random.between(-3, 3));  // many are equal
        if (kind == 5 && !random.one_in(20)) score = -INFINITY;            // nearly all forbidden
    }
    scores[random.below(scores.size())] += peak;
}

struct Checks {
    Check &choose, &top, &log_sum;
};

void check_row(const ChooseKernels& kernels, const Checks& checks, const Buffer<float>& scores, Random& random) {
    const int64_t vocab = scores.size();
    const float temperatures[] = {0.0f, 1.0f, 0.3f, 0.01f, 1.7f, 25.0f, 1e-6f};
    const ChooseRow row{scores.data(), temperatures[random.below(7)], random.bits()};
    const std::string name =
        text("%lld tokens, temperature %g", static_cast<long long>(vocab), static_cast<double>(row.temperature));
    for (Check* check : {&checks.choose, &checks.top, &checks.log_sum}) check->about(name);
    const std::vector<double> values = values_of(row, vocab);
    std::vector<int32_t> order;
    for (int32_t i = 0; i < vocab; ++i) order.push_back(i);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
        return values[static_cast<size_t>(a)] > values[static_cast<size_t>(b)];
    });
    // The token wanted at a place, or one that is as good.
    const auto compare = [&](Check& check, const Chosen& got, size_t place) {
        const bool there = got.token >= 0 && got.token < vocab;
        check.that(there, "a token of the vocabulary");
        if (!there) return;
        const double want = values[static_cast<size_t>(order[place])], found = values[static_cast<size_t>(got.token)];
        const double tolerance = row.temperature == 0 ? 0 : close(want);
        check.that(got.token == order[place] || (found != want && std::fabs(found - want) < tolerance),
                   "the token of the largest value");
        check.near(got.value, want, tolerance);
    };
    Chosen one{-1, 0};
    kernels.choose(row, vocab, &one);
    compare(checks.choose, one, 0);

    const int64_t count = random.between(1, random.one_in(3) ? 70 : 8);
    int64_t allowed = 0, found = -1;
    for (const float score : scores) allowed += score > -INFINITY;
    std::vector<Chosen> best(static_cast<size_t>(count), {-1, 0});
    kernels.top(row, vocab, count, best.data(), &found);
    checks.top.near(static_cast<double>(found), static_cast<double>(std::min(count, allowed)), 0);
    for (int64_t i = 0; i < std::min(found, count); ++i)
        compare(checks.top, best[static_cast<size_t>(i)], static_cast<size_t>(i));

    double largest = -infinity, sum = 0;
    for (const double score : scores) largest = std::max(largest, score);
    for (const double score : scores) sum += std::exp(score - largest);
    const double want = largest == -infinity ? -infinity : largest + std::log(sum);
    checks.log_sum.near(kernels.log_sum(scores.data(), vocab), want, 4e-7 + std::fabs(largest) * half_ulp);
}

// The first NaN or +inf of a row is its token; of nothing but -inf it is token 0.
void check_lost(const ChooseKernels& kernels, Check& check, Buffer<float>& scores, Random& random) {
    const int64_t vocab = scores.size(), lost = random.below(vocab + 1);
    check.about(
        text("%lld tokens, of which %lld is lost", static_cast<long long>(vocab), static_cast<long long>(lost)));
    if (lost == vocab)
        for (float& score : scores) score = -INFINITY;
    for (int64_t i = lost; i < vocab; ++i)
        if (i == lost || random.one_in(10)) scores[i] = random.one_in(2) ? NAN : INFINITY;
    const int64_t want = lost % vocab;
    const ChooseRow row{scores.data(), random.one_in(2) ? 0.0f : 1.0f, random.bits()};
    Chosen one{-1, 0}, best[5];
    int64_t found = -1;
    kernels.choose(row, vocab, &one);
    kernels.top(row, vocab, 5, best, &found);
    check.near(one.token, static_cast<double>(want), 0);
    check.near(one.value, scores[want], 0);
    if (lost == vocab) {
        check.that(found == 0, "none above -inf");
        check.near(kernels.log_sum(scores.data(), vocab), -infinity, 0);
    } else {
        check.near(best[0].token, static_cast<double>(want), 0);
        check.that(!(kernels.log_sum(scores.data(), vocab) < infinity), "no finite sum");
    }
}

}  // namespace

void check_choose(const Kernels& kernels, Random random, Effort effort, Report& report) {
    const Checks checks{report.check("choose: tokens"), report.check("choose: the best in order"),
                        report.check("choose: log sum")};
    Check& lost = report.check("choose: NaN, infinity and nothing");
    for (int64_t i = 0; i < effort.of(1200); ++i) {
        const int64_t vocab = i % 40 == 0 ? random.between(10000, 40000) : random.between(1, i % 4 == 0 ? 3000 : 300);
        Buffer<float> scores(vocab);
        fill(scores, random);
        check_row(kernels.choose, checks, scores, random);
        if (vocab < 10000) check_lost(kernels.choose, lost, scores, random);
    }
}

}  // namespace stretto::selftest
