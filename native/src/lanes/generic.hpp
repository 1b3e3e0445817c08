// 16 lanes of fp32 or int32 in plain C++ for any machine; the vocabulary is described in avx512.hpp.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "inline.hpp"

#define STRETTO_PATH generic
// exp and the like stay functions here: 16 lanes in plain C++ are long, and compilers slow on them.
#define STRETTO_FUNCTION static inline
#define STRETTO_KERNEL

namespace stretto::generic {

constexpr int lanes = 16;

struct F32 {
    float v[lanes];
};
struct I32 {
    int32_t v[lanes];
};
struct Mask {
    int32_t v[lanes];
};  // -1 or 0

template <class To, class Op>
STRETTO_INLINE To each(Op op) {
    To result;
    for (int i = 0; i < lanes; ++i) result.v[i] = op(i);
    return result;
}
template <class To, class From>
STRETTO_INLINE To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
STRETTO_INLINE uint32_t u(int32_t x) { return static_cast<uint32_t>(x); }
STRETTO_INLINE int32_t s(uint32_t x) { return static_cast<int32_t>(x); }
// By bits and not by a branch, which would keep compilers from working on several lanes at once.
STRETTO_INLINE float pick(int32_t mask, float yes, float no) {
    return same_bits<float>((same_bits<int32_t>(yes) & mask) | (same_bits<int32_t>(no) & ~mask));
}

STRETTO_INLINE F32 all(float x) {
    return each<F32>([=](int) { return x; });
}
STRETTO_INLINE F32 zero() { return all(0.0f); }
STRETTO_INLINE I32 all_i(int32_t x) {
    return each<I32>([=](int) { return x; });
}

STRETTO_INLINE F32 load(const float* p) {
    return each<F32>([=](int i) { return p[i]; });
}
STRETTO_INLINE F32 load(const float* p, int64_t n) {
    return each<F32>([=](int i) { return i < n ? p[i] : 0.0f; });
}
STRETTO_INLINE void store(float* p, F32 a) { std::memcpy(p, a.v, sizeof a.v); }
STRETTO_INLINE void store(float* p, F32 a, int64_t n) { std::memcpy(p, a.v, static_cast<size_t>(n) * sizeof *p); }
STRETTO_INLINE I32 load_i(const int32_t* p) {
    return each<I32>([=](int i) { return p[i]; });
}
STRETTO_INLINE void store_i(int32_t* p, I32 a) { std::memcpy(p, a.v, sizeof a.v); }

STRETTO_INLINE F32 add(F32 a, F32 b) {
    return each<F32>([&](int i) { return a.v[i] + b.v[i]; });
}
STRETTO_INLINE F32 sub(F32 a, F32 b) {
    return each<F32>([&](int i) { return a.v[i] - b.v[i]; });
}
STRETTO_INLINE F32 mul(F32 a, F32 b) {
    return each<F32>([&](int i) { return a.v[i] * b.v[i]; });
}
STRETTO_INLINE F32 div(F32 a, F32 b) {
    return each<F32>([&](int i) { return a.v[i] / b.v[i]; });
}
STRETTO_INLINE F32 max(F32 a, F32 b) {
    return each<F32>([&](int i) { return pick(-(a.v[i] > b.v[i]), a.v[i], b.v[i]); });
}
STRETTO_INLINE F32 min(F32 a, F32 b) {
    return each<F32>([&](int i) { return pick(-(a.v[i] < b.v[i]), a.v[i], b.v[i]); });
}
// Two roundings: a machine without the instruction computes std::fma in software.
STRETTO_INLINE F32 fma(F32 a, F32 b, F32 c) {
    return each<F32>([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
STRETTO_INLINE F32 neg_fma(F32 a, F32 b, F32 c) {
    return each<F32>([&](int i) { return c.v[i] - a.v[i] * b.v[i]; });
}
STRETTO_INLINE F32 sqrt(F32 a) {
    return each<F32>([&](int i) { return std::sqrt(a.v[i]); });
}
STRETTO_INLINE F32 neg(F32 a) {
    return each<F32>([&](int i) { return -a.v[i]; });
}
STRETTO_INLINE F32 abs(F32 a) {
    return each<F32>([&](int i) { return std::fabs(a.v[i]); });
}
STRETTO_INLINE float round_one(float x) {
    const float size = std::fabs(x), whole = 8388608.0f;  // 2^23: no float from here on has a fraction
    const int32_t sign = same_bits<int32_t>(x) & INT32_MIN;
    const int32_t rounded = same_bits<int32_t>((size + whole) - whole) | sign;
    return pick(-(size < whole), same_bits<float>(rounded), x);
}
STRETTO_INLINE F32 round(F32 a) {
    return each<F32>([&](int i) { return round_one(a.v[i]); });
}

STRETTO_INLINE Mask less(F32 a, F32 b) {
    return each<Mask>([&](int i) { return -(a.v[i] < b.v[i]); });
}
STRETTO_INLINE Mask equal(F32 a, F32 b) {
    return each<Mask>([&](int i) { return -(a.v[i] == b.v[i]); });
}
STRETTO_INLINE Mask less_u(I32 a, I32 b) {
    return each<Mask>([&](int i) { return -(u(a.v[i]) < u(b.v[i])); });
}
STRETTO_INLINE Mask is_nan(F32 a) {
    return each<Mask>([&](int i) { return -(a.v[i] != a.v[i]); });
}
STRETTO_INLINE F32 select(Mask m, F32 yes, F32 no) {
    return each<F32>([&](int i) { return pick(m.v[i], yes.v[i], no.v[i]); });
}
STRETTO_INLINE uint32_t mask_bits(Mask m) {
    uint32_t bits = 0;
    for (int i = 0; i < lanes; ++i) bits |= u(m.v[i]) & 1u << i;
    return bits;
}
STRETTO_INLINE Mask mask_of(uint32_t bits) {
    return each<Mask>([=](int i) { return -s(bits >> i & 1); });
}

STRETTO_INLINE I32 to_int(F32 a) {  // clamped to what int32 holds; NaN becomes the smallest
    a = min(max(round(a), all(-2147483648.0f)), all(2147483520.0f));
    return each<I32>([&](int i) { return static_cast<int32_t>(a.v[i]); });
}
STRETTO_INLINE F32 to_float(I32 a) {
    return each<F32>([&](int i) { return static_cast<float>(a.v[i]); });
}
STRETTO_INLINE I32 as_int(F32 a) { return same_bits<I32>(a); }
STRETTO_INLINE F32 as_float(I32 a) { return same_bits<F32>(a); }
STRETTO_INLINE I32 add_i(I32 a, I32 b) {
    return each<I32>([&](int i) { return s(u(a.v[i]) + u(b.v[i])); });
}
STRETTO_INLINE I32 sub_i(I32 a, I32 b) {
    return each<I32>([&](int i) { return s(u(a.v[i]) - u(b.v[i])); });
}
STRETTO_INLINE I32 mul_i(I32 a, I32 b) {
    return each<I32>([&](int i) { return s(u(a.v[i]) * u(b.v[i])); });
}
STRETTO_INLINE I32 and_i(I32 a, I32 b) {
    return each<I32>([&](int i) { return a.v[i] & b.v[i]; });
}
STRETTO_INLINE I32 or_i(I32 a, I32 b) {
    return each<I32>([&](int i) { return a.v[i] | b.v[i]; });
}
STRETTO_INLINE I32 xor_i(I32 a, I32 b) {
    return each<I32>([&](int i) { return a.v[i] ^ b.v[i]; });
}
template <int N>
STRETTO_INLINE I32 shift_left(I32 a) {
    return each<I32>([&](int i) { return s(u(a.v[i]) << N); });
}
template <int N>
STRETTO_INLINE I32 shift_right(I32 a) {
    return each<I32>([&](int i) { return s(u(a.v[i]) >> N); });
}

STRETTO_INLINE float sum(F32 a) {
    for (int half = lanes / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) a.v[i] += a.v[i + half];
    return a.v[0];
}
STRETTO_INLINE float largest(F32 a) {
    for (int half = lanes / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
    return a.v[0];
}

STRETTO_INLINE float widen(uint16_t bf16) { return same_bits<float>(static_cast<uint32_t>(bf16) << 16); }
STRETTO_INLINE F32 load_bf16(const uint16_t* p) {
    return each<F32>([=](int i) { return widen(p[i]); });
}
STRETTO_INLINE F32 load_bf16(const uint16_t* p, int64_t n) {
    return each<F32>([=](int i) { return i < n ? widen(p[i]) : 0.0f; });
}
STRETTO_INLINE uint16_t narrow(float x) {
    const uint32_t bits = same_bits<uint32_t>(x), high = bits >> 16;
    return static_cast<uint16_t>(x != x ? high | 0x40 : (bits + 0x7fff + (high & 1)) >> 16);
}
STRETTO_INLINE void store_bf16(uint16_t* p, F32 a) {
    for (int i = 0; i < lanes; ++i) p[i] = narrow(a.v[i]);
}
STRETTO_INLINE void store_bf16(uint16_t* p, F32 a, int64_t n) {
    for (int i = 0; i < n; ++i) p[i] = narrow(a.v[i]);
}
STRETTO_INLINE float from_f16(uint16_t half) {
    const uint32_t sign = (half & 0x8000u) << 16, rest = (half & 0x7fffu) << 13;
    // Exponents move from bias 15 to 127 by a product, which is exact and brings denormals along.
    const float scaled = same_bits<float>(rest) * 0x1p112f;
    const uint32_t bits = (half & 0x7c00u) == 0x7c00u ? rest | 0x7f800000u : same_bits<uint32_t>(scaled);
    return same_bits<float>(bits | sign);
}
STRETTO_INLINE F32 load_f16(const uint16_t* p) {
    return each<F32>([=](int i) { return from_f16(p[i]); });
}

}  // namespace stretto::generic

#include "functions_by_bits.hpp"
#include "functions.hpp"
