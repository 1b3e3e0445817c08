// Products of bf16 pairs for paths without an instruction for them: the even one first, in fp32.
namespace stretto::STRETTO_PATH {
namespace {

STRETTO_INLINE F32 dot_pairs(F32 sum, I32 a, I32 b) {
    const I32 odd = all_i(static_cast<int32_t>(0xffff0000));
    sum = fma(as_float(shift_left<16>(a)), as_float(shift_left<16>(b)), sum);
    return fma(as_float(and_i(a, odd)), as_float(and_i(b, odd)), sum);
}

STRETTO_INLINE void store_weights(uint16_t* p, F32 a) { store_bf16(p, a); }

}  // namespace
}  // namespace stretto::STRETTO_PATH
