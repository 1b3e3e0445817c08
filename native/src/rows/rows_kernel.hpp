// Ops that read one row at a time, in one path; included behind the path's lanes.
#pragma once

#include <cstdint>

#include "rows.hpp"

namespace stretto::STRETTO_PATH {
namespace {

// out[i] = op(in[i]...): whole lanes, then what is left of them.
template <class Op, class... In>
STRETTO_INLINE void along(int64_t size, float* out, Op op, const In*... in) {
    int64_t i = 0;
    for (; i + 16 <= size; i += 16) store(out + i, op(load(in + i)...));
    if (i < size) store(out + i, op(load(in + i, size - i)...), size - i);
}

STRETTO_INLINE F32 first(int64_t n, F32 a) { return select(mask_of((1u << n) - 1), a, zero()); }

// The sum of op(x[i]) in one order for each size: four sums of 16 lanes hide the latency of the additions.
template <class Op>
STRETTO_INLINE float sum_along(int64_t size, const float* x, Op op) {
    F32 a = zero(), b = a, c = a, d = a;
    int64_t i = 0;
    for (; i + 64 <= size; i += 64) {
        a = op(load(x + i), a);
        b = op(load(x + i + 16), b);
        c = op(load(x + i + 32), c);
        d = op(load(x + i + 48), d);
    }
    for (; i + 16 <= size; i += 16) a = op(load(x + i), a);
    if (i < size) b = add(b, first(size - i, op(load(x + i, size - i), zero())));
    return sum(add(add(a, b), add(c, d)));
}

STRETTO_INLINE F32 inverse_root(float square_sum, int64_t size, float eps) {
    const F32 mean = div(all(square_sum), all(static_cast<float>(size)));
    return div(all(1.0f), sqrt(add(mean, all(eps))));
}

void rms_norm(const float* x, const float* weight, int64_t size, float eps, float* out) {
    const float squares = sum_along(size, x, [](F32 a, F32 sum) { return fma(a, a, sum); });
    const F32 factor = inverse_root(squares, size, eps);
    along(size, out, [=](F32 a, F32 w) { return mul(mul(a, factor), w); }, x, weight);
}

void layer_norm(const float* x, const float* weight, const float* bias, int64_t size, float eps, float* out) {
    const F32 total = all(sum_along(size, x, [](F32 a, F32 sum) { return add(sum, a); }));
    const F32 mean = div(total, all(static_cast<float>(size)));
    const float squares = sum_along(size, x, [=](F32 a, F32 sum) {
        const F32 distance = sub(a, mean);
        return fma(distance, distance, sum);
    });
    const F32 factor = inverse_root(squares, size, eps);
    if (bias) {
        const auto op = [=](F32 a, F32 w, F32 b) { return fma(mul(sub(a, mean), factor), w, b); };
        along(size, out, op, x, weight, bias);
    } else {
        along(size, out, [=](F32 a, F32 w) { return mul(mul(sub(a, mean), factor), w); }, x, weight);
    }
}

void add_row(float* x, const float* y, int64_t size) {
    along(size, x, [](F32 a, F32 b) { return add(a, b); }, x, y);
}

void add_scaled(float* x, const float* y, float factor, int64_t size) {
    along(size, x, [f = all(factor)](F32 a, F32 b) { return fma(f, b, a); }, x, y);
}

void scale(float* x, float factor, int64_t size) {
    along(size, x, [f = all(factor)](F32 a) { return mul(a, f); }, x);
}

STRETTO_FUNCTION F32 silu(F32 x) { return div(x, add(all(1.0f), exp(neg(x)))); }
STRETTO_FUNCTION F32 gelu(F32 x) { return mul(mul(all(0.5f), x), add(all(1.0f), erf(mul(x, all(0.707106781f))))); }
STRETTO_FUNCTION F32 gelu_tanh(F32 x) {
    const F32 cubic = fma(mul(mul(x, x), x), all(0.044715f), x);
    return mul(mul(all(0.5f), x), add(all(1.0f), tanh(mul(all(0.797884561f), cubic))));
}
STRETTO_FUNCTION F32 relu(F32 x) { return max(zero(), x); }  // of NaN the second, NaN

template <class Act>
STRETTO_INLINE void gated(const float* gate, const float* up, int64_t size, float* out, Act act) {
    if (up) {
        along(size, out, [=](F32 g, F32 u) { return mul(act(g), u); }, gate, up);
    } else {
        along(size, out, act, gate);
    }
}

STRETTO_KERNEL void activate(Activation activation, const float* gate, const float* up, int64_t size, float* out) {
    switch (activation) {
        case Activation::silu:
            return gated(gate, up, size, out, [](F32 x) { return silu(x); });
        case Activation::gelu:
            return gated(gate, up, size, out, [](F32 x) { return gelu(x); });
        case Activation::gelu_tanh:
            return gated(gate, up, size, out, [](F32 x) { return gelu_tanh(x); });
        case Activation::relu:
            return gated(gate, up, size, out, [](F32 x) { return relu(x); });
        case Activation::relu_squared:
            return gated(gate, up, size, out, [](F32 x) { return mul(relu(x), relu(x)); });
    }
}

STRETTO_KERNEL void softcap(float* x, float cap, int64_t size) {
    along(size, x, [c = all(cap)](F32 a) { return mul(tanh(div(a, c)), c); }, x);
}

void rotate(float* x, int64_t heads, int64_t head_size, int64_t pairs, const float* cosine, const float* sine) {
    for (int64_t head = 0; head < heads; ++head, x += head_size) {
        float* const y = x + pairs;
        int64_t i = 0;
        for (; i + 16 <= pairs; i += 16) {
            const F32 a = load(x + i), b = load(y + i), c = load(cosine + i), s = load(sine + i);
            store(x + i, neg_fma(b, s, mul(a, c)));
            store(y + i, fma(a, s, mul(b, c)));
        }
        if (const int64_t n = pairs - i; n > 0) {
            const F32 a = load(x + i, n), b = load(y + i, n), c = load(cosine + i, n), s = load(sine + i, n);
            store(x + i, neg_fma(b, s, mul(a, c)), n);
            store(y + i, fma(a, s, mul(b, c)), n);
        }
    }
}

void embed_bf16(const uint16_t* row, int64_t size, float factor, float* out) {
    const F32 f = all(factor);
    int64_t i = 0;
    for (; i + 16 <= size; i += 16) store(out + i, mul(load_bf16(row + i), f));
    if (i < size) store(out + i, mul(load_bf16(row + i, size - i), f), size - i);
}

void embed_fp32(const float* row, int64_t size, float factor, float* out) {
    along(size, out, [f = all(factor)](F32 a) { return mul(a, f); }, row);
}

void route(const float* logits, int64_t count, int64_t chosen, bool normalised, int32_t* ids, float* weights) {
    F32 peaks = load(logits, count < 16 ? count : 16);
    if (count < 16) peaks = select(mask_of((1u << count) - 1), peaks, all(logits[0]));
    for (int64_t i = 16; i < count; i += 16) {
        // The last lanes are read from the row's end: a maximum may see an element twice.
        peaks = max(peaks, load(logits + (i + 16 <= count ? i : count - 16)));
    }
    const F32 peak = all(largest(peaks));
    const F32 total = all(sum_along(count, logits, [=](F32 a, F32 sum) { return add(sum, exp(sub(a, peak))); }));

    int64_t found = 0;
    for (int64_t i = 0; i < count; i += 16) {
        const int64_t n = count - i < 16 ? count - i : 16;
        float odds[16];
        store(odds, div(exp(sub(load(logits + i, n), peak)), total));
        for (int64_t lane = 0; lane < n; ++lane) {
            const float weight = odds[lane];
            if (found == chosen && !(weight > weights[chosen - 1])) continue;
            int64_t place = found < chosen ? found++ : chosen - 1;
            for (; place > 0 && weights[place - 1] < weight; --place) {
                weights[place] = weights[place - 1];
                ids[place] = ids[place - 1];
            }
            weights[place] = weight;
            ids[place] = static_cast<int32_t>(i + lane);
        }
    }
    if (!normalised) return;
    float mass = 0.0f;
    for (int64_t i = 0; i < chosen; ++i) mass += weights[i];
    for (int64_t i = 0; i < chosen; ++i) weights[i] /= mass;
}

}  // namespace

const RowKernels row_kernels = {rms_norm, layer_norm, add_row,    add_scaled, scale, activate,
                                softcap,  rotate,     embed_bf16, embed_fp32, route};

}  // namespace stretto::STRETTO_PATH
