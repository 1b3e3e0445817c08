// The rule of choice in one path; included behind the path's lanes.
//
// The noise of an element costs two logarithms, so it is computed only where it can matter. An element of scaled score
// s reaches the value b only with noise >= b - s, that is (as -log(1 - u) >= u) only with u <= exp(s - b): its hash
// decides. The bound is taken from the largest score of each lane within a block, with a margin far above every
// rounding error: what is passed over could not have been chosen, and the result is the same to the bit.
#pragma once

#include <cmath>
#include <cstdint>

#include "choose.hpp"

namespace stretto::STRETTO_PATH {
namespace {

constexpr int64_t block = 256;        // elements that share the bounds of their lanes
constexpr int64_t wide_block = 1024;  // elements after which the search for the largest notes where it is
constexpr float infinity = HUGE_VALF, lowest = -3.40282347e38f;

STRETTO_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
STRETTO_INLINE uint32_t first_bits(int64_t n) { return (1u << n) - 1; }
STRETTO_INLINE int64_t lowest_bit(uint32_t bits) {
#if defined(__GNUC__)
    return __builtin_ctz(bits);
#else
    int64_t n = 0;
    while (!(bits >> n & 1)) ++n;
    return n;
#endif
}
STRETTO_INLINE int64_t count_bits(uint32_t bits) {
#if defined(__GNUC__)
    return __builtin_popcount(bits);
#else
    int64_t n = 0;
    for (; bits; bits &= bits - 1) ++n;
    return n;
#endif
}
STRETTO_INLINE F32 load_scores(const float* p, int64_t n) {
    return n == 16 ? load(p) : select(mask_of(first_bits(n)), load(p, n), all(-infinity));
}

// Gumbel noise -log(-log(1 - u)) with u = (h + 0.5) / 2^32 from 32 bits h: those of a token id are id * spread + the
// low half of the key, mixed in three rounds of shift and multiplication ("triple32": Wellons, 2018), the key's high
// half folded in within the first.
constexpr uint32_t spread = 0x9E3779B1;

STRETTO_INLINE I32 word(uint32_t x) { return all_i(static_cast<int32_t>(x)); }
STRETTO_INLINE I32 mix(I32 x, I32 high) {
    x = mul_i(xor_i(x, shift_right<17>(x)), word(0xED5AD4BB));
    x = xor_i(x, high);
    x = mul_i(xor_i(x, shift_right<11>(x)), word(0xAC4C1B51));
    x = mul_i(xor_i(x, shift_right<15>(x)), word(0x31848BAB));
    return xor_i(x, shift_right<14>(x));
}
STRETTO_INLINE F32 counted(I32 hash) {  // h + 0.5
    // Both halves are exact, so that their sum is rounded once, as a conversion from 32 bits without sign would be.
    const F32 high = to_float(shift_right<16>(hash)), low = to_float(and_i(hash, all_i(0xffff)));
    return add(fma(high, all(65536.0f), low), all(0.5f));
}
STRETTO_FUNCTION F32 gumbel(F32 counted) {
    const F32 u = min(mul(counted, all(0x1p-32f)), all(1.0f - 0x1p-24f));  // below 1: finite noise
    return neg(log(neg(log1p(neg(u)))));
}
// At least the noise: -log(u), of which the bits of a float, read as an integer, give the chords.
STRETTO_INLINE F32 most_gumbel(F32 counted) {
    constexpr float ln2 = 0.693147181f;
    return fma(to_float(as_int(counted)), all(-ln2 * 0x1p-23f), all(159.0f * ln2));
}

// A place of the row's largest score, or of its first NaN or +inf.
struct Peak {
    int64_t place;
    bool good;
};

Peak find_peak(const float* scores, int64_t vocab) {
    float best = -infinity;
    int64_t where = 0;
    for (int64_t begin = 0; begin < vocab; begin += wide_block) {
        const int64_t end = smaller(begin + wide_block, vocab);
        F32 a = all(-infinity), b = a, c = a, d = a;
        uint32_t good = 0xffff;  // lanes without NaN and +inf
        int64_t i = begin;
        for (; i + 64 <= end; i += 64) {
            const F32 e = load(scores + i), f = load(scores + i + 16);
            const F32 g = load(scores + i + 32), h = load(scores + i + 48);
            a = max(a, e), b = max(b, f), c = max(c, g), d = max(d, h);
            good &= mask_bits(less(e, all(infinity))) & mask_bits(less(f, all(infinity)));
            good &= mask_bits(less(g, all(infinity))) & mask_bits(less(h, all(infinity)));
        }
        for (; i < end; i += 16) {
            const F32 e = load_scores(scores + i, smaller(16, end - i));
            a = max(a, e);
            good &= mask_bits(less(e, all(infinity)));
        }
        if (good != 0xffff) {
            i = begin;
            while (scores[i] < infinity) ++i;
            return {i, false};
        }
        const float here = largest(max(max(a, b), max(c, d)));
        if (here > best) best = here, where = begin;
    }
    for (;; where += 16) {
        const F32 here = load_scores(scores + where, smaller(16, vocab - where));
        if (const uint32_t found = mask_bits(equal(here, all(best)))) return {where + lowest_bit(found), true};
    }
}

// The best elements so far, in order: larger value first, then the lower id.
struct Ranking {
    Chosen* best;
    int64_t capacity, size;
    float floor;  // known to be reached by `capacity` elements

    // What an element must reach to enter.
    float bound() const { return size < capacity ? floor : best[capacity - 1].value; }

    // Elements are offered in ascending id: an equal one stays behind.
    void offer(float value, int64_t id) {
        if (size == capacity && !(value > best[capacity - 1].value)) return;
        int64_t place = size < capacity ? size++ : capacity - 1;
        for (; place > 0 && best[place - 1].value < value; --place) best[place] = best[place - 1];
        best[place] = {static_cast<int32_t>(id), value};
    }
};

// Scores of one row as the rule sees them, and the noise of their places.
struct Noisy {
    F32 top, temperature;
    I32 low, high;  // the halves of the key; low: plus spread times the lane

    Noisy(const ChooseRow& row, float largest) {
        top = all(largest > lowest ? largest : lowest);
        temperature = all(row.temperature);
        int32_t lanes[16];
        for (uint32_t i = 0; i < 16; ++i) {
            lanes[i] = static_cast<int32_t>(i * spread + static_cast<uint32_t>(row.key));
        }
        low = load_i(lanes);
        high = word(static_cast<uint32_t>(row.key >> 32));
    }

    // Shifted first: the division cannot overflow to +inf.
    F32 scaled(F32 scores) const { return div(sub(scores, top), temperature); }
    I32 start(int64_t id) const { return add_i(low, word(static_cast<uint32_t>(id) * spread)); }
    I32 hash(I32 start) const { return mix(start, high); }
};

constexpr float margin = 1e-3f;  // rounding errors of values up to 50 stay below 1e-4

// Offers those of the 16 elements from `begin` that `near` names and whose values reach the bound.
STRETTO_FUNCTION void offer_near(const float* scores, int64_t begin, int64_t n, const Noisy& noisy, I32 hash,
                                 uint32_t near, Ranking& ranking) {
    const F32 scaled = noisy.scaled(load_scores(scores + begin, n)), number = counted(hash);
    near &= first_bits(n) & ~mask_bits(less(add(scaled, most_gumbel(number)), all(ranking.bound() - margin)));
    if (!near) return;
    float values[16];
    const F32 value = add(scaled, gumbel(number));
    store(values, value);
    near &= ~mask_bits(less(value, all(ranking.bound())));
    for (; near; near &= near - 1) ranking.offer(values[lowest_bit(near)], begin + lowest_bit(near));
}

STRETTO_INLINE F32 lane_peaks(const float* scores, int64_t size) {
    F32 a = all(-infinity), b = a, c = a, d = a;
    int64_t i = 0;
    for (; i + 64 <= size; i += 64) {
        a = max(a, load(scores + i));
        b = max(b, load(scores + i + 16));
        c = max(c, load(scores + i + 32));
        d = max(d, load(scores + i + 48));
    }
    for (; i < size; i += 16) a = max(a, load_scores(scores + i, smaller(16, size - i)));
    return max(max(a, b), max(c, d));
}

// Ranks the elements [first, last).
void rank_noisy(const float* scores, int64_t first, int64_t last, const Noisy& noisy, Ranking& ranking) {
    constexpr float relative = 1.0f - 1e-6f, largest_noise = 23.0f;  // the hash 0 has 22.9
    const I32 step = word(16 * spread);
    for (int64_t begin = first; begin < last; begin += block) {
        const int64_t end = smaller(begin + block, last);
        // Where temperature is low, scores are large, and so is what rounding them may hide.
        const float reach = ranking.bound(), rounding = 1.2e-7f * (reach < 0.0f ? -reach : reach);
        const F32 missing = sub(all(reach), noisy.scaled(lane_peaks(scores + begin, end - begin)));
        const F32 gap = sub(mul(missing, all(relative)), all(margin + rounding));
        if (!mask_bits(less(gap, all(largest_noise)))) continue;

        // Bounds on the hash, rounded up by far; a lane whose bound is 2^32 or more stays open.
        const F32 bound = mul(exp(neg(gap)), all(0x1p32f));
        const uint32_t open = mask_bits(less(all(0x1p32f - 1024.0f), bound));
        const F32 centred = add(sub(bound, all(0x1p31f)), all(512.0f));
        const I32 near_hash = xor_i(to_int(centred), all_i(INT32_MIN));

        I32 start = noisy.start(begin);
        int64_t i = begin;
        for (; i + 64 <= end; i += 64) {
            const I32 second = add_i(start, step), third = add_i(second, step), fourth = add_i(third, step);
            const I32 a = noisy.hash(start), b = noisy.hash(second), c = noisy.hash(third), d = noisy.hash(fourth);
            start = add_i(fourth, step);
            const uint32_t e = mask_bits(less_u(a, near_hash)), f = mask_bits(less_u(b, near_hash));
            const uint32_t g = mask_bits(less_u(c, near_hash)), h = mask_bits(less_u(d, near_hash));
            if (!(open | e | f | g | h)) continue;
            if (open | e) offer_near(scores, i, 16, noisy, a, open | e, ranking);
            if (open | f) offer_near(scores, i + 16, 16, noisy, b, open | f, ranking);
            if (open | g) offer_near(scores, i + 32, 16, noisy, c, open | g, ranking);
            if (open | h) offer_near(scores, i + 48, 16, noisy, d, open | h, ranking);
        }
        for (; i < end; i += 16, start = add_i(start, step)) {
            const I32 hash = noisy.hash(start);
            const uint32_t near = open | mask_bits(less_u(hash, near_hash));
            if (near) offer_near(scores, i, smaller(16, end - i), noisy, hash, near, ranking);
        }
    }
}

void rank_plain(const float* scores, int64_t first, int64_t last, Ranking& ranking) {
    for (int64_t begin = first; begin < last; begin += block) {
        const int64_t end = smaller(begin + block, last);
        const F32 peaks = lane_peaks(scores + begin, end - begin);
        if (mask_bits(less(peaks, all(ranking.bound()))) == 0xffff) continue;
        for (int64_t i = begin; i < end; i += 16) {
            const int64_t n = smaller(16, end - i);
            const F32 values = load_scores(scores + i, n);
            uint32_t near = first_bits(n) & ~mask_bits(less(values, all(ranking.bound())));
            for (; near; near &= near - 1) ranking.offer(scores[i + lowest_bit(near)], i + lowest_bit(near));
        }
    }
}

void rank(const ChooseRow& row, float largest, int64_t first, int64_t last, Ranking& ranking) {
    if (row.temperature == 0.0f) {
        rank_plain(row.scores, first, last, ranking);
    } else {
        rank_noisy(row.scores, first, last, Noisy(row, largest), ranking);
    }
}

void choose(const ChooseRow& row, int64_t vocab, Chosen* chosen) {
    const Peak peak = find_peak(row.scores, vocab);
    const float largest = row.scores[peak.place];
    *chosen = {static_cast<int32_t>(peak.place), largest};
    if (!peak.good || largest == -infinity || row.temperature == 0.0f) return;
    const Noisy noisy(row, largest);
    const F32 start = add(noisy.scaled(all(largest)), gumbel(counted(noisy.hash(noisy.start(peak.place)))));
    float floor[16];
    store(floor, start);
    Ranking ranking = {chosen, 1, 0, floor[0]};
    rank_noisy(row.scores, 0, vocab, noisy, ranking);
}

void top(const ChooseRow& row, int64_t vocab, int64_t count, Chosen* best, int64_t* found) {
    const Peak peak = find_peak(row.scores, vocab);
    const float largest = row.scores[peak.place];
    *best = {static_cast<int32_t>(peak.place), largest};
    *found = 0;
    if (!peak.good || largest == -infinity) return;
    // The elements around the largest give a first bound.
    const int64_t begin = peak.place / wide_block * wide_block;
    Ranking ranking = {best, count, 0, lowest};
    rank(row, largest, begin, smaller(begin + wide_block, vocab), ranking);
    ranking = {best, count, 0, ranking.bound()};
    rank(row, largest, 0, vocab, ranking);
    *found = ranking.size;
}

double log_sum(const float* scores, int64_t vocab) {
    const Peak peak = find_peak(scores, vocab);
    const float largest = scores[peak.place];
    if (!peak.good || largest == -infinity) return peak.good ? -HUGE_VAL : NAN;
    double sums[16] = {};
    for (int64_t i = 0; i < vocab; i += 16) {
        float terms[16];
        store(terms, exp(sub(load_scores(scores + i, smaller(16, vocab - i)), all(largest))));
        for (int lane = 0; lane < 16; ++lane) sums[lane] += static_cast<double>(terms[lane]);
    }
    for (int half = 8; half > 0; half /= 2) {
        for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
    }
    return largest + ::log(sums[0]);
}

}  // namespace
}  // namespace stretto::STRETTO_PATH
