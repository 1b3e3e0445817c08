// Powers of two and exponents by their bits, for paths without instructions for them. Included by those lanes.
namespace stretto::STRETTO_PATH {

STRETTO_INLINE F32 power_of_two(I32 n) { return as_float(shift_left<23>(add_i(n, all_i(127)))); }

// x * 2^n of a whole n in [-252, 252]; in two steps, because 2^n alone may lie outside of the normal numbers
STRETTO_INLINE F32 times_power(F32 x, F32 n) {
    const I32 whole = to_int(n), half = to_int(mul(n, all(0.5f)));
    return mul(mul(x, power_of_two(half)), power_of_two(sub_i(whole, half)));
}

// x = mantissa * 2^exponent with the mantissa in [0.75, 1.5); of 0 and infinity the exponent is -inf and +inf, the
// mantissa 1; of NaN and negative x the mantissa is NaN.
STRETTO_INLINE F32 split(F32 x, F32& exponent) {
    const F32 infinity = as_float(all_i(0x7f800000));
    const Mask tiny = less(x, all(0x1p-126f)), nothing = equal(x, zero());
    const I32 bits = as_int(select(tiny, mul(x, all(0x1p23f)), x));
    // 128 is added before the (logical) shift and taken off behind it.
    const I32 distance = add_i(sub_i(bits, as_int(all(0.75f))), all_i(128 << 23));
    const I32 power = sub_i(shift_right<23>(distance), all_i(128));
    exponent = sub(to_float(power), select(tiny, all(23.0f), zero()));
    exponent = select(equal(x, infinity), infinity, select(nothing, neg(infinity), exponent));
    const F32 mantissa = as_float(sub_i(bits, shift_left<23>(power)));
    return select(less(zero(), x), mantissa, select(nothing, all(1.0f), as_float(all_i(0x7fc00000))));
}

}  // namespace stretto::STRETTO_PATH
