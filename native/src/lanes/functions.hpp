// Elementary functions over lanes, each lane by itself. Included by every path's lanes; polynomials are minimax fits.
namespace stretto::STRETTO_PATH {

// ln 2 as a sum, the first part of 15 bits: its product with any exponent is exact.
constexpr float ln2_high = 0.693145751953125f, ln2_low = 1.42860677e-6f;

// Within 1 ulp. exp(-inf) = 0; denormal results are kept.
STRETTO_FUNCTION F32 exp(F32 x) {
    x = min(all(89.0f), max(all(-105.0f), x));  // beyond: infinity and 0
    const F32 n = round(mul(x, all(1.44269504f)));
    const F32 r = neg_fma(n, all(ln2_low), neg_fma(n, all(ln2_high), x));
    F32 p = fma(r, all(0.0013813145f), all(0.008369419f));
    p = fma(p, r, all(0.041668456f));
    p = fma(p, r, all(0.16666515f));
    p = fma(p, r, all(0.49999994f));
    p = fma(mul(r, r), p, r);
    return times_power(add(p, all(1.0f)), n);
}

// Within 1 ulp. log(0) = -inf, of negative numbers NaN.
STRETTO_FUNCTION F32 log(F32 x) {
    F32 exponent;
    const F32 f = sub(split(x, exponent), all(1.0f)), square = mul(f, f);
    F32 p = fma(f, all(0.037672915f), all(-0.0911619f));
    p = fma(p, f, all(0.117006615f));
    p = fma(p, f, all(-0.12727779f));
    p = fma(p, f, all(0.1427624f));
    p = fma(p, f, all(-0.16655296f));
    p = fma(p, f, all(0.19999605f));
    p = fma(p, f, all(-0.25000164f));
    p = fma(p, f, all(0.3333334f));
    p = fma(exponent, all(ln2_low), mul(mul(square, f), p));
    p = neg_fma(square, all(0.5f), p);
    return fma(exponent, all(ln2_high), add(f, p));
}

// log(1 + x), exact for small x: what rounding 1 + x lost is added in first order.
STRETTO_FUNCTION F32 log1p(F32 x) {
    const F32 whole = add(x, all(1.0f));
    const F32 lost = div(sub(x, sub(whole, all(1.0f))), whole);
    return add(log(whole), select(is_nan(lost), zero(), lost));  // -1 and infinity are left to log
}

STRETTO_INLINE F32 with_sign_of(F32 sign, F32 size) {
    return as_float(or_i(as_int(size), and_i(as_int(sign), all_i(INT32_MIN))));
}

STRETTO_FUNCTION F32 tanh(F32 x) {
    const F32 size = abs(x), square = mul(x, x);
    F32 p = fma(square, all(-0.0057049873f), all(0.020639088f));
    p = fma(p, square, all(-0.053739715f));
    p = fma(p, square, all(0.13331442f));
    p = fma(p, square, all(-0.3333328f));
    const F32 small = fma(mul(p, square), x, x);
    const F32 rest = div(all(2.0f), add(exp(add(size, size)), all(1.0f)));
    return select(less(size, all(0.625f)), small, with_sign_of(x, sub(all(1.0f), rest)));
}

STRETTO_FUNCTION F32 erf(F32 x) {
    const F32 size = min(all(4.0f), abs(x)), square = mul(x, x);  // erf(4) rounds to 1
    F32 p = fma(square, all(8.349625e-05f), all(-0.0008137858f));
    p = fma(p, square, all(0.005200605f));
    p = fma(p, square, all(-0.026859226f));
    p = fma(p, square, all(0.11283693f));
    p = fma(p, square, all(-0.37612635f));
    p = fma(p, square, all(0.12837917f));
    const F32 small = fma(p, x, x);
    F32 q = fma(size, all(-0.00019494574f), all(0.0030336832f));  // -log(1 - erf)
    q = fma(q, size, all(-0.022189742f));
    q = fma(q, size, all(0.10385631f));
    q = fma(q, size, all(0.6372658f));
    q = fma(q, size, all(1.1276274f));
    q = fma(q, size, all(0.00020701715f));
    const F32 large = with_sign_of(x, sub(all(1.0f), exp(neg(q))));
    return select(less(size, all(0.921875f)), small, large);
}

}  // namespace stretto::STRETTO_PATH
