// Top-k, top-p and min-p against a sorted row.
#include <algorithm>
#include <cmath>

#include "check.hpp"

namespace stretto::selftest {
namespace {

// Rows of all kinds of shape: peaked, flat, full of ties, nearly all forbidden.
void fill(Buffer<float>& scores, Random& random) {
    const int64_t kind = random.below(5);
    for (float& score : scores) {
        score = (kind == 1 ? 1e-3f : kind == 2 ? 20.0f : 2.5f) * random.normal();
        if (kind == 3) score = static_cast<float>(random.between(-3, 3));
        if (kind == 4 && !random.one_in(20)) score = -INFINITY;
    }
}

struct Sorted {
    std::vector<double> mass;  // of the first 1, 2, ... tokens in order
    std::vector<int32_t> order;
};

Sorted sorted(const Buffer<float>& scores) {
    Sorted found;
    for (int32_t i = 0; i < scores.size(); ++i) found.order.push_back(i);
    std::stable_sort(found.order.begin(), found.order.end(),
                     [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
    double sum = 0;
    for (const int32_t token : found.order) found.mass.push_back(sum += std::exp(static_cast<double>(scores[token])));
    return found;
}

// How many tokens top-k and top-p may keep: sums so near to the goal that rounding decides allow more than one answer.
void check_count(Check& check, const Filter& asked, const Sorted& row, const Buffer<float>& plain, int64_t kept) {
    int64_t most = 0;
    for (const float score : plain) most += score > -INFINITY;
    if (asked.count > 0) most = std::min(most, asked.count);
    if (asked.share == 1.0 || most == 0) return check.near(static_cast<double>(kept), static_cast<double>(most), 0);
    const double goal = asked.share * row.mass[static_cast<size_t>(most - 1)], slack = 1e-6 * goal;
    check.that(kept >= 1 && kept <= most, "some of those that top-k keeps");
    if (kept < 1 || kept > most) return;
    check.that(row.mass[static_cast<size_t>(kept - 1)] >= goal - slack, "a prefix that reaches the mass");
    check.that(kept == 1 || row.mass[static_cast<size_t>(kept - 2)] <= goal + slack, "no shorter one that does");
}

// What is told to be kept is kept; that is told of the best element always, and of those that weigh much.
void check_keeps(const ChooseKernels& kernels, Check& check, const Filter& asked, const Buffer<float>& scores,
                 const Buffer<float>& filtered, Random& random) {
    const int64_t vocab = scores.size();
    const ChooseRow row{scores.data(), asked.temperature, 0};
    const int64_t best = std::max_element(scores.begin(), scores.end()) - scores.begin();
    if (scores[best] == -INFINITY) return;
    check.that(kernels.keeps(row, vocab, asked, best) == (asked.least <= 0), "the best element is told to be kept");
    for (int64_t i = 0; i < 20; ++i) {
        const int64_t id = random.below(vocab);
        const bool kept = filtered[id] > -INFINITY, told = kernels.keeps(row, vocab, asked, id);
        check.that(kept || !told, "what is told to be kept is kept");
        const bool easy = asked.count == 0 && asked.share > 0.999999 && filtered[id] > -5.0f;
        check.that(told || !kept || !easy || vocab > 300, "an element that weighs much is told to be kept");
    }
}

void check_row(const ChooseKernels& kernels, Check& check, const Buffer<float>& scores, Random& random) {
    const int64_t vocab = scores.size();
    const float temperatures[] = {1.0f, 0.3f, 0.7f, 1.7f, 25.0f};
    const double shares[] = {1.0, 0.9, 0.95, 0.5, 0.01, 0.9999999};
    Filter asked{temperatures[random.below(5)], random.one_in(2) ? random.between(1, 60) : 0, shares[random.below(6)],
                 -INFINITY};
    check.about(text("%lld tokens, top-k %lld, top-p %g", static_cast<long long>(vocab),
                     static_cast<long long>(asked.count), asked.share));
    Buffer<float> room(2 * vocab), plain = scores, got = scores;
    kernels.filter(plain.data(), vocab, {asked.temperature, 0, 1.0, -INFINITY}, room.data());
    const float top = *std::max_element(scores.begin(), scores.end());
    for (int64_t i = 0; i < vocab; ++i) {
        const float want = scores[i] == -INFINITY ? scores[i] : (scores[i] - top) / asked.temperature;
        check.near(plain[i], want, 0);
    }
    room.poison();
    kernels.filter(got.data(), vocab, asked, room.data());
    const Sorted row = sorted(plain);
    int64_t kept = 0;
    for (const float score : got) kept += score > -INFINITY;
    for (int64_t place = 0; place < vocab; ++place) {
        const int32_t token = row.order[static_cast<size_t>(place)];
        check.near(got[token], place < kept ? plain[token] : -INFINITY, 0);
    }
    check_count(check, asked, row, plain, kept);

    asked.least = -2.0f * random.unit() * random.unit() - 0.5f;
    Buffer<float> least = scores;
    kernels.filter(least.data(), vocab, asked, room.data());
    for (int64_t i = 0; i < vocab; ++i) check.near(least[i], got[i] < asked.least ? -INFINITY : got[i], 0);
    check_keeps(kernels, check, asked, scores, least, random);
}

}  // namespace

void check_filter(const Kernels& kernels, Random random, Effort effort, Report& report) {
    Check& check = report.check("choose: top-k, top-p, min-p");
    for (int64_t i = 0; i < effort.of(800); ++i) {
        const int64_t vocab = i % 40 == 0 ? random.between(10000, 40000) : random.between(1, i % 4 == 0 ? 3000 : 300);
        Buffer<float> scores(vocab);
        fill(scores, random);
        check_row(kernels.choose, check, scores, random);
    }
}

}  // namespace stretto::selftest
