// Merging results of some positions with those of later ones (arXiv 1805.02867). A result of nothing changes no bit.
#pragma once

#include "chunk.hpp"

namespace stretto::STRETTO_PATH {
namespace {

struct Factors {
    F32 keep, take;
};

// Merges maxima and sums; returns what the results so far and the later ones are multiplied by.
STRETTO_INLINE Factors merge_sums(F32& top, F32& sum, F32 later_top, F32 later_sum) {
    const Mask nothing = equal(later_sum, zero());
    const F32 highest = max(top, later_top);
    const F32 keep = exp(sub(top, highest)), take = exp(sub(later_top, highest));
    top = select(nothing, top, highest);
    sum = select(nothing, sum, fma(later_sum, take, mul(sum, keep)));
    return {keep, take};
}

// An underflow may have left -0, which adding an unseen block turns to +0: adding 0 makes the two alike.
STRETTO_INLINE F32 plain_zero(F32 x) { return add(x, zero()); }

STRETTO_INLINE F32 merge_out(F32 out, F32 later, F32 keep, F32 take) {
    return fma(plain_zero(later), take, mul(out, keep));
}

void clear(const Result& result, int64_t lines, int64_t stride) {
    for (int64_t i = 0; i < most_lines; i += 16) store(result.top + i, all(low)), store(result.sum + i, zero());
    for (int64_t i = 0; i < lines * stride; i += 16) store(result.out + i, zero());
}

void merge_results(const Result& into, const Result& later, int64_t lines, int64_t stride) {
    float keep[most_lines], take[most_lines];
    for (int64_t i = 0; i < lines; i += 16) {
        F32 top = load(into.top + i), sum = load(into.sum + i);
        const Factors factors = merge_sums(top, sum, load(later.top + i), load(later.sum + i));
        store(into.top + i, top), store(into.sum + i, sum);
        store(keep + i, factors.keep), store(take + i, factors.take);
    }
    for (int64_t line = 0; line < lines; ++line) {
        if (later.sum[line] == 0.0f) continue;
        float* out = into.out + line * stride;
        const float* from = later.out + line * stride;
        for (int64_t d = 0; d < stride; d += 16)
            store(out + d, merge_out(load(out + d), load(from + d), all(keep[line]), all(take[line])));
    }
}

// The final result of a line; of nothing it is 0.
void finish_line(const float* out, float sum, int64_t size, float* to) {
    for (int64_t d = 0; d < size; d += 16) {
        const int64_t n = size - d < 16 ? size - d : 16;
        const F32 total = load(out + d, n);
        store(to + d, sum == 0.0f ? total : div(total, all(sum)), n);
    }
}

void merge_groups(const float* partial, int64_t groups, int64_t size, float* out) {
    F32 top = all(low), sum = zero();
    for (int64_t d = 0; d < size; ++d) out[d] = 0.0f;
    for (int64_t g = 0; g < groups; ++g, partial += 2 + size) {
        if (partial[1] == 0.0f) continue;
        const Factors factors = merge_sums(top, sum, all(partial[0]), all(partial[1]));
        for (int64_t d = 0; d < size; d += 16) {
            const int64_t n = size - d < 16 ? size - d : 16;
            store(out + d, merge_out(load(out + d, n), load(partial + 2 + d, n), factors.keep, factors.take), n);
        }
    }
    alignas(64) float total[16];
    store(total, sum);
    finish_line(out, total[0], size, out);
}

}  // namespace
}  // namespace stretto::STRETTO_PATH
