// Temperature, top-k, top-p and min-p of one row; included behind the path's choice. What they keep is a prefix of the
// order "larger score first, then lower id": nothing is sorted, the border of the prefix is searched bit by bit.
#pragma once

#include <cstring>

#include "choose_kernel.hpp"

namespace stretto::STRETTO_PATH {
namespace {

// The sum in double over 16 lanes at a time, in one order: as terms are not negative, no larger set has a smaller sum.
struct Mass {
    double lanes[16] = {};

    void add(F32 terms) {
        float each[16];
        store(each, terms);
        for (int lane = 0; lane < 16; ++lane) lanes[lane] += static_cast<double>(each[lane]);
    }
    double total() {
        for (int half = 8; half > 0; half /= 2)
            for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
        return lanes[0];
    }
};

STRETTO_INLINE float float_of(int32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Elements by ascending id: how far each lies below the row's largest score (0 or more), and what it weighs.
struct Candidates {
    float *below, *weight;
    int64_t size = 0;

    void add(float distance, float heavy) {
        below[size] = distance;
        weight[size++] = heavy;
    }

    // What the elements weigh that lie no further below than the number with these bits.
    double within(int32_t bits) const {
        const F32 border = all(float_of(bits));
        Mass mass;
        for (int64_t i = 0; i < size; i += 16) {
            const int64_t n = smaller(16, size - i);
            mass.add(select(less(border, load(below + i, n)), zero(), load(weight + i, n)));
        }
        return mass.total();
    }

    // The bits of the nearest border within which lies `goal`; those of infinity where it is never reached. Numbers
    // that are not negative have the order of their bits.
    int32_t border(double goal) const {
        int32_t before = -1, found = 0x7f800000;
        while (found - before > 1) {
            const int32_t middle = before + (found - before) / 2;
            (within(middle) >= goal ? found : before) = middle;
        }
        return found;
    }
};

// The scores (largest 0) that lie at most `distance` below; their weights are exp(score), or 1 to be counted.
void collect(const float* scores, int64_t vocab, float distance, bool counted, Candidates& found) {
    for (int64_t i = 0; i < vocab; i += 16) {
        const int64_t n = smaller(16, vocab - i);
        const F32 score = load_scores(scores + i, n);
        uint32_t near = first_bits(n) & ~mask_bits(less(all(distance), neg(score)));
        if (!near) continue;
        float weights[16];
        store(weights, counted ? all(1.0f) : exp(score));
        for (; near; near &= near - 1) {
            const int64_t lane = lowest_bit(near);
            found.add(-scores[i + lane], weights[lane]);
        }
    }
}

// Forbids what lies behind the shortest prefix that weighs `goal`.
void cut(float* scores, int64_t vocab, const Candidates& candidates, double goal, bool counted) {
    const int32_t bits = candidates.border(goal);
    const float border = float_of(bits);
    if (border == infinity) return;
    double kept = bits > 0 ? candidates.within(bits - 1) : 0.0;
    for (int64_t i = 0; i < vocab; i += 16) {
        const int64_t n = smaller(16, vocab - i);
        const F32 score = load_scores(scores + i, n), below = neg(score);
        store(scores + i, select(less(all(border), below), all(-infinity), score), n);
        for (uint32_t ties = first_bits(n) & mask_bits(equal(below, all(border))); ties; ties &= ties - 1) {
            if (kept >= goal) scores[i + lowest_bit(ties)] = -infinity;
            float weight[16];
            store(weight, counted ? all(1.0f) : exp(neg(all(border))));
            kept += static_cast<double>(weight[0]);
        }
    }
}

void keep_count(float* scores, int64_t vocab, int64_t count, Candidates found) {
    // The `count` largest of parts' largest scores are as many elements: none of those kept lies further below.
    constexpr int64_t part = 64;
    for (int64_t i = 0; i < vocab; i += part) found.add(-largest(lane_peaks(scores + i, smaller(part, vocab - i))), 1);
    const float distance = float_of(found.border(static_cast<double>(count)));
    found.size = 0;
    collect(scores, vocab, distance, true, found);
    cut(scores, vocab, found, static_cast<double>(count), true);
}

void keep_share(float* scores, int64_t vocab, double share, Candidates found) {
    Mass mass;
    for (int64_t i = 0; i < vocab; i += 16) mass.add(exp(load_scores(scores + i, smaller(16, vocab - i))));
    const double total = mass.total(), rest = (1.0 - share) * total;
    // All elements further below than this weigh less than the rest together, with a margin far above rounding errors.
    const double distance = rest > 1e-6 ? ::log(static_cast<double>(vocab) / rest) + 0.01 : HUGE_VAL;
    collect(scores, vocab, static_cast<float>(distance), false, found);
    cut(scores, vocab, found, share * total, false);
}

void filter(float* scores, int64_t vocab, const Filter& asked, float* scratch) {
    const Peak peak = find_peak(scores, vocab);
    const float top = scores[peak.place];
    const F32 shift = all(top > lowest ? top : lowest), temperature = all(asked.temperature);
    for (int64_t i = 0; i < vocab; i += 16) {
        const int64_t n = smaller(16, vocab - i);
        store(scores + i, div(sub(load(scores + i, n), shift), temperature), n);
    }
    if (!peak.good || top == -infinity) return;
    const Candidates room{scratch, scratch + vocab};
    if (asked.count > 0 && asked.count < vocab) keep_count(scores, vocab, asked.count, room);
    if (asked.share < 1.0) keep_share(scores, vocab, asked.share, room);
    if (asked.least == -infinity) return;
    for (int64_t i = 0; i < vocab; i += 16) {
        const int64_t n = smaller(16, vocab - i);
        const F32 score = load(scores + i, n);
        store(scores + i, select(less(score, all(asked.least)), all(-infinity), score), n);
    }
}

bool keeps(const ChooseRow& row, int64_t vocab, const Filter& asked, int64_t id) {
    const Peak peak = find_peak(row.scores, vocab);
    if (!peak.good || row.scores[peak.place] == -infinity) return true;
    if (id == peak.place) return asked.least <= 0.0f;
    const Noisy noisy(row, row.scores[peak.place]);
    const F32 mine = noisy.scaled(all(row.scores[id]));
    Mass every, no_worse;
    int64_t rank = 0;
    for (int64_t i = 0; i < vocab; i += 16) {
        const F32 score = noisy.scaled(load_scores(row.scores + i, smaller(16, vocab - i))), weight = exp(score);
        const auto worse = less(score, mine);
        every.add(weight);
        no_worse.add(select(worse, zero(), weight));
        rank += 16 - count_bits(mask_bits(worse));
    }
    const bool counted = asked.count > 0 && asked.count < vocab;
    float score[16], weight[16];
    store(score, mine), store(weight, exp(mine));
    if ((counted && rank > asked.count) || score[0] < asked.least) return false;
    // Of the `count` best, those no worse than this one are known; the sums were rounded in some other order.
    const double before = no_worse.total(), whole = counted ? before : every.total();
    return before - static_cast<double>(weight[0]) < asked.share * whole * (1.0 - 1e-9);
}

}  // namespace

const ChooseKernels choose_kernels = {choose, top, log_sum, filter, keeps};

}  // namespace stretto::STRETTO_PATH
