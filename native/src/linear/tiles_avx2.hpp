// Products of up to 5 rows with a panel's groups. Included inside the AVX2 path's namespace.
//
// A tile takes one half of a panel (16 outputs, two registers) at a time: its weights are loaded and unpacked once for
// all rows, its rows' sums stay in registers. All loops over rows and registers are unrolled, for an array indexed by a
// variable would live in memory.

constexpr int most_rows = 4;          // times 16 outputs take 8 of the 16 registers
constexpr int most_int8_rows = 5;     // whose products need fewer registers beside their sums
constexpr int most_int8x2_rows = 3;   // of two digits each
constexpr int least_raised_rows = 3;  // fewer wait for memory, from which group_sums would come too

// The weights of one panel, from the group `first` on.
STRETTO_INLINE const uint8_t* weights_at(const Matrix& m, int64_t panel, int64_t first, int64_t group_bytes) {
    return static_cast<const uint8_t*>(m.weights) + (panel * (m.depth / group_depth) + first) * group_bytes;
}

// Asks for weights that are still to come, a line for each line that is read: the processor's own look-ahead ends with
// each page of memory. Without, one row of int4 took a fifth longer, four of bf16 a third; fp32 gained nothing. Behind
// the last panel it asks for what nobody needs, which does no harm.
STRETTO_INLINE void ask_ahead(const uint8_t* weights) {
    _mm_prefetch(reinterpret_cast<const char*>(weights + 2048), _MM_HINT_T0);
}

// ---- fp32 and bf16 --------------------------------------------------------------------------------------------------

struct Fp32Weights {
    static constexpr int group_bytes = group_depth * panel_width * 4;

    STRETTO_INLINE void widen_row(const Rows& x, int64_t row, int64_t input, float* to) {
        for (int64_t i = 0; i < group_depth; i += 16) store(to + i, load(x.fp32 + row * x.depth + input + i));
    }
    template <int parity>
    STRETTO_INLINE F32 at(const uint8_t* group, int pair, int half) {
        return load(reinterpret_cast<const float*>(group) + (2 * pair + parity) * panel_width + 16 * half);
    }
};

struct Bf16Weights {
    static constexpr int group_bytes = group_depth * panel_width * 2;

    STRETTO_INLINE void widen_row(const Rows& x, int64_t row, int64_t input, float* to) {
        for (int64_t i = 0; i < group_depth; i += 16) store(to + i, load_bf16(x.bf16 + row * x.depth + input + i));
    }
    template <int parity>
    STRETTO_INLINE F32 at(const uint8_t* group, int pair, int half) {
        const int32_t* const weights = reinterpret_cast<const int32_t*>(group) + pair * panel_width + 16 * half;
        if (parity == 0) ask_ahead(reinterpret_cast<const uint8_t*>(weights));
        const I32 both = load_i(weights);
        return as_float(parity == 0 ? shift_left<16>(both) : and_i(both, all_i(static_cast<int32_t>(0xffff0000))));
    }
};

// Adds the even (parity 0) or the odd (1) inputs of a pair.
template <class Weights, int parity, int rows, int halves>
STRETTO_INLINE void add_inputs(const uint8_t* group, int pair, int half, const float (&x)[rows][group_depth],
                               F32 (&sum)[rows][halves]) {
#pragma GCC unroll 8
    for (int h = 0; h < halves; ++h) {
        const F32 weights = Weights::template at<parity>(group, pair, half + h);
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) sum[r][h] = fma(weights, all(x[r][2 * pair + parity]), sum[r][h]);
    }
}

template <class Weights, int rows>
void float_tile(const Product& p, int64_t panel, int64_t row, int64_t first, int64_t last, Sums sums) {
    // A multiply-add takes 4 cycles and two start in each: one or two rows need both halves of the panel to fill them.
    constexpr int halves = rows <= 2 ? 2 : 1;
    const uint8_t* group = weights_at(*p.matrix, panel, first, Weights::group_bytes);
    alignas(32) float x[rows][group_depth];
    for (int64_t g = first; g < last; ++g, group += Weights::group_bytes) {
        for (int r = 0; r < rows; ++r) Weights::widen_row(p.x, row + r, g * group_depth, x[r]);
        for (int half = 0; half < 2; half += halves) {
            F32 sum[rows][halves];
#pragma GCC unroll 8
            for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
                for (int h = 0; h < halves; ++h) sum[r][h] = load(sums[r] + 16 * (half + h));
#pragma GCC unroll 1
            for (int pair = 0; pair < group_depth / 2; ++pair) {
                add_inputs<Weights, 0>(group, pair, half, x, sum);
                add_inputs<Weights, 1>(group, pair, half, x, sum);
            }
#pragma GCC unroll 8
            for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
                for (int h = 0; h < halves; ++h) store(sums[r] + 16 * (half + h), sum[r][h]);
        }
    }
}

// ---- int8 and int4 --------------------------------------------------------------------------------------------------

constexpr int digits_of(Activations a) { return a == Activations::int8x2 ? 2 : 1; }

// A row's scale for a group.
template <Activations activations>
STRETTO_INLINE float scale_at(const Rows& x, int64_t row, int64_t group) {
    return activations == Activations::int8_row ? x.scales[row] : x.scales[row * (x.depth / group_depth) + group];
}

// A row's product with a group from the products of its digits.
template <Activations activations>
STRETTO_INLINE I32 join_digits(const I32* products) {
    return activations == Activations::int8x2 ? add_i(shift_left<8>(products[0]), products[1]) : products[0];
}

STRETTO_INLINE __m256i broadcast(const void* four_bytes) {
    int32_t word;
    std::memcpy(&word, four_bytes, sizeof word);
    return _mm256_set1_epi32(word);
}

// Sizes of weights, times digits that take over the weights' signs, add up to 2 * 128 * 127 at most: a pair fits into 16
// bits, in which vpmaddubsw leaves it. Adds a row's 4 digits, times the weights of 16 outputs. Written out where the
// compiler lets us: left to itself, GCC keeps so many products waiting that sums leave the registers.
STRETTO_INLINE void add_quad(const __m256i* weights, __m256i low, __m256i high, __m256i ones, const int8_t* digits,
                             I32& sum) {
#if defined(__GNUC__)
    __m256i all, product;
    asm("vpbroadcastd %[digits], %[all]\n\t"
        "vpsignb %[weights_low], %[all], %[product]\n\t"
        "vpsignb %[weights_high], %[all], %[all]\n\t"
        "vpmaddubsw %[product], %[low], %[product]\n\t"
        "vpmaddubsw %[all], %[high], %[all]\n\t"
        "vpmaddwd %[ones], %[product], %[product]\n\t"
        "vpmaddwd %[ones], %[all], %[all]\n\t"
        "vpaddd %[product], %[sum_low], %[sum_low]\n\t"
        "vpaddd %[all], %[sum_high], %[sum_high]"
        : [sum_low] "+x"(sum.low), [sum_high] "+x"(sum.high), [all] "=&x"(all), [product] "=&x"(product)
        : [weights_low] "m"(weights[0]), [weights_high] "m"(weights[1]), [low] "x"(low), [high] "x"(high),
          [ones] "x"(ones), [digits] "m"(*reinterpret_cast<const int32_t*>(digits)));
#else
    const __m256i all = broadcast(digits);
    const auto product = [&](__m256i sizes, __m256i signs) {
        return _mm256_madd_epi16(_mm256_maddubs_epi16(sizes, _mm256_sign_epi8(all, signs)), ones);
    };
    sum.low = _mm256_add_epi32(sum.low, product(low, weights[0]));
    sum.high = _mm256_add_epi32(sum.high, product(high, weights[1]));
#endif
}

// Low digits of int8x2 reach -128, which has no opposite in a byte: bytes 0 and 2 of every 4 are multiplied as 16-bit
// pairs, and bytes 1 and 3.
template <int parity>
STRETTO_INLINE __m256i pairs(__m256i bytes) {
    return _mm256_srai_epi16(parity == 0 ? _mm256_slli_epi16(bytes, 8) : bytes, 8);
}

template <int parity>
STRETTO_INLINE __m256i pair_products(__m256i weights, __m256i digits) {
    return _mm256_madd_epi16(pairs<parity>(weights), pairs<parity>(digits));
}

STRETTO_INLINE void add_quad_of_two(const __m256i* weights, const int8_t* digits, I32& sum) {
    const __m256i all = broadcast(digits);
    sum.low = _mm256_add_epi32(sum.low, pair_products<0>(weights[0], all));
    sum.low = _mm256_add_epi32(sum.low, pair_products<1>(weights[0], all));
    sum.high = _mm256_add_epi32(sum.high, pair_products<0>(weights[1], all));
    sum.high = _mm256_add_epi32(sum.high, pair_products<1>(weights[1], all));
}

template <Activations activations, int rows>
void int8_tile(const Product& p, int64_t panel, int64_t row, int64_t first, int64_t last, Sums sums) {
    constexpr int digits = digits_of(activations), digit_rows = rows * digits, half_bytes = 16 * group_depth;
    const int64_t depth = p.x.depth, groups = depth / group_depth;
    const int8_t* const x = p.x.digits + row * digits * depth;
    const float* const scales = p.x.scales + row * groups;
    const uint8_t* group = weights_at(*p.matrix, panel, first, 2 * half_bytes);
    const __m256i ones = _mm256_set1_epi16(1);
    for (int64_t g = first; g < last; ++g, group += 2 * half_bytes) {
        for (int half = 0; half < 2; ++half) {
            I32 products[digit_rows];
#pragma GCC unroll 8
            for (int d = 0; d < digit_rows; ++d) products[d] = all_i(0);
#pragma GCC unroll 1
            for (int quad = 0; quad < group_depth / 4; ++quad) {
                const uint8_t* const at = group + half * half_bytes + quad * 64;
                const __m256i* const weights = reinterpret_cast<const __m256i*>(at);
                const int8_t* const four = x + g * group_depth + 4 * quad;
                ask_ahead(at);
                const __m256i low = _mm256_abs_epi8(weights[0]), high = _mm256_abs_epi8(weights[1]);
#pragma GCC unroll 8
                for (int d = 0; d < digit_rows; ++d)
                    if (digits == 1)
                        add_quad(weights, low, high, ones, four + d * depth, products[d]);
                    else
                        add_quad_of_two(weights, four + d * depth, products[d]);
            }
#pragma GCC unroll 8
            for (int r = 0; r < rows; ++r) {
                float* const sum = sums[r] + 16 * half;
                const I32 product = join_digits<activations>(products + r * digits);
                if (activations == Activations::int8_row)
                    store(sum, as_float(add_i(as_int(load(sum)), product)));
                else
                    store(sum, fma(to_float(product), all(scales[r * groups + g]), load(sum)));
            }
        }
    }
}

// Adds a row's 4 digits plus 128, times the weights of 16 outputs: without signs to take over, this takes three
// instructions for 32 products where `add_quad` takes four. Only for weights whose `group_sums` are there.
STRETTO_INLINE void add_raised_quad(const __m256i* weights, __m256i ones, const uint8_t* raised, I32& sum) {
#if defined(__GNUC__)
    __m256i all, product;
    asm("vpbroadcastd %[raised], %[all]\n\t"
        "vpmaddubsw %[weights_low], %[all], %[product]\n\t"
        "vpmaddubsw %[weights_high], %[all], %[all]\n\t"
        "vpmaddwd %[ones], %[product], %[product]\n\t"
        "vpmaddwd %[ones], %[all], %[all]\n\t"
        "vpaddd %[product], %[sum_low], %[sum_low]\n\t"
        "vpaddd %[all], %[sum_high], %[sum_high]"
        : [sum_low] "+x"(sum.low), [sum_high] "+x"(sum.high), [all] "=&x"(all), [product] "=&x"(product)
        : [weights_low] "m"(weights[0]), [weights_high] "m"(weights[1]), [ones] "x"(ones),
          [raised] "m"(*reinterpret_cast<const int32_t*>(raised)));
#else
    const __m256i all = broadcast(raised);
    const auto product = [&](__m256i eight_outputs) {
        return _mm256_madd_epi16(_mm256_maddubs_epi16(all, eight_outputs), ones);
    };
    sum.low = _mm256_add_epi32(sum.low, product(weights[0]));
    sum.high = _mm256_add_epi32(sum.high, product(weights[1]));
#endif
}

// What 128 in each digit adds to a group's products with 16 outputs, to be taken away beforehand.
STRETTO_INLINE I32 less_raised(const int16_t* group_sums) {
    const auto eight = [](const int16_t* sums) {
        const __m256i wide = _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(sums)));
        return _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32(wide, 7));
    };
    return {eight(group_sums), eight(group_sums + 8)};
}

template <Activations activations, int rows>
void raised_tile(const Product& p, int64_t panel, int64_t row, int64_t first, int64_t last, Sums sums) {
    constexpr int half_bytes = 16 * group_depth;
    const int64_t depth = p.x.depth, groups = depth / group_depth;
    const uint8_t* group = weights_at(*p.matrix, panel, first, 2 * half_bytes);
    const int16_t* group_sums = p.matrix->group_sums + (panel * groups + first) * panel_width;
    const __m256i ones = _mm256_set1_epi16(1);
    for (int64_t g = first; g < last; ++g, group += 2 * half_bytes) {
        for (int half = 0; half < 2; ++half, group_sums += 16) {
            I32 products[rows];
            const I32 start = less_raised(group_sums);
#pragma GCC unroll 8
            for (int r = 0; r < rows; ++r) products[r] = start;
#pragma GCC unroll 1
            for (int quad = 0; quad < group_depth / 4; ++quad) {
                const uint8_t* const at = group + half * half_bytes + quad * 64;
                const uint8_t* const four = p.x.raised + row * depth + g * group_depth + 4 * quad;
                ask_ahead(at);
#pragma GCC unroll 8
                for (int r = 0; r < rows; ++r)
                    add_raised_quad(reinterpret_cast<const __m256i*>(at), ones, four + r * depth, products[r]);
            }
#pragma GCC unroll 8
            for (int r = 0; r < rows; ++r) {
                float* const sum = sums[r] + 16 * half;
                if (activations == Activations::int8_row)
                    store(sum, as_float(add_i(as_int(load(sum)), products[r])));
                else
                    store(sum, fma(to_float(products[r]), all(scale_at<activations>(p.x, row + r, g)), load(sum)));
            }
        }
    }
}

struct Nibbles {
    __m256i low, high;
};

// Nibbles up to 15 leave vpmaddubsw room: the 8 sums of a group fit into 16 bits, 8 * 2 * 15 * 128 = 30,720.
STRETTO_INLINE __m256i add_nibbles(__m256i sum, Nibbles nibbles, __m256i low, __m256i high) {
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(nibbles.low, low));
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(nibbles.high, high));
}

STRETTO_INLINE Nibbles nibbles_of(const uint8_t* eight_outputs) {
    const __m256i both = load_256(eight_outputs), mask = _mm256_set1_epi8(0x0f);
    return {_mm256_and_si256(both, mask), _mm256_and_si256(_mm256_srli_epi16(both, 4), mask)};
}

STRETTO_INLINE I32 load_zeros(const uint8_t* zeros) {
    if (!zeros) return all_i(8);
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros));
    return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
}

// The pairs of 16-bit sums added up, less what the nibble that means 0 brought in. Both factors of that fit into 16
// bits, where a product is cheaper.
STRETTO_INLINE I32 centre(I32 pairs, I32 zeros, int32_t digit_sum) {
    const __m256i ones = _mm256_set1_epi16(1), sum = _mm256_set1_epi32(digit_sum);
    return {_mm256_sub_epi32(_mm256_madd_epi16(pairs.low, ones), _mm256_madd_epi16(zeros.low, sum)),
            _mm256_sub_epi32(_mm256_madd_epi16(pairs.high, ones), _mm256_madd_epi16(zeros.high, sum))};
}

template <Activations activations, int rows>
void int4_tile(const Product& p, int64_t panel, int64_t row, int64_t first, int64_t last, Sums sums) {
    constexpr int digits = digits_of(activations), digit_rows = rows * digits, half_bytes = 8 * group_depth;
    const Matrix& m = *p.matrix;
    const int64_t depth = p.x.depth, groups = depth / group_depth;
    const int8_t* const x = p.x.digits + row * digits * depth;
    const int32_t* const digit_sums = p.x.sums + row * digits * groups;
    const uint8_t* group = weights_at(m, panel, first, 2 * half_bytes);
    for (int64_t g = first; g < last; ++g, group += 2 * half_bytes) {
        for (int half = 0; half < 2; ++half) {
            const int64_t of_group = (panel * groups + g) * panel_width + 16 * half;
            I32 products[digit_rows];
#pragma GCC unroll 8
            for (int d = 0; d < digit_rows; ++d) products[d] = all_i(0);
#pragma GCC unroll 1
            for (int oct = 0; oct < group_depth / 8; ++oct) {
                const uint8_t* const weights = group + half * half_bytes + oct * 64;
                ask_ahead(weights);
                const Nibbles low = nibbles_of(weights), high = nibbles_of(weights + 32);
#pragma GCC unroll 8
                for (int d = 0; d < digit_rows; ++d) {
                    const int8_t* const eight = x + d * depth + g * group_depth + 8 * oct;
                    const __m256i first_four = broadcast(eight), last_four = broadcast(eight + 4);
                    products[d].low = add_nibbles(products[d].low, low, first_four, last_four);
                    products[d].high = add_nibbles(products[d].high, high, first_four, last_four);
                }
            }
            const I32 zeros = load_zeros(m.zeros ? m.zeros + of_group : nullptr);
            const F32 scales = load_f16(m.group_scales + of_group);
#pragma GCC unroll 8
            for (int d = 0; d < digit_rows; ++d) products[d] = centre(products[d], zeros, digit_sums[d * groups + g]);
#pragma GCC unroll 8
            for (int r = 0; r < rows; ++r) {
                float* const sum = sums[r] + 16 * half;
                const F32 scale = mul(scales, all(scale_at<activations>(p.x, row + r, g)));
                store(sum, fma(to_float(join_digits<activations>(products + r * digits)), scale, load(sum)));
            }
        }
    }
}

// ---- the choice -----------------------------------------------------------------------------------------------------

template <Activations activations, int rows>
void byte_tile(const Product& p, int64_t panel, int64_t row, int64_t first, int64_t last, Sums sums) {
    constexpr int rows_of_int4 = rows <= most_rows ? rows : 1;
    if (p.matrix->layout == WeightLayout::int4)
        int4_tile<activations, rows_of_int4>(p, panel, row, first, last, sums);
    else if (rows >= least_raised_rows && activations != Activations::int8x2 && p.matrix->group_sums)
        raised_tile<activations, rows>(p, panel, row, first, last, sums);
    else
        int8_tile<activations, rows>(p, panel, row, first, last, sums);
}

template <int rows>
void tile_of(const Product& p, int64_t panel, int64_t row, int64_t first, int64_t last, Sums sums) {
    constexpr int rows_of_floats = rows <= most_rows ? rows : 1, rows_of_two = rows <= most_int8x2_rows ? rows : 1;
    switch (p.matrix->activations) {
        case Activations::fp32:
            return float_tile<Fp32Weights, rows_of_floats>(p, panel, row, first, last, sums);
        case Activations::bf16:
            return float_tile<Bf16Weights, rows_of_floats>(p, panel, row, first, last, sums);
        case Activations::int8:
            return byte_tile<Activations::int8, rows>(p, panel, row, first, last, sums);
        case Activations::int8_row:
            return byte_tile<Activations::int8_row, rows>(p, panel, row, first, last, sums);
        case Activations::int8x2:
            return byte_tile<Activations::int8x2, rows_of_two>(p, panel, row, first, last, sums);
    }
}

int64_t tile_rows(const Matrix& m) {
    const bool two = m.activations == Activations::int8x2;
    if (m.layout == WeightLayout::int8) return two ? most_int8x2_rows : most_int8_rows;
    return two ? most_rows / 2 : most_rows;
}

void tile(const Product& p, int64_t panel, int64_t row, int64_t rows, int64_t first, int64_t last, Sums sums) {
    switch (rows) {
        case 1:
            return tile_of<1>(p, panel, row, first, last, sums);
        case 2:
            return tile_of<2>(p, panel, row, first, last, sums);
        case 3:
            return tile_of<3>(p, panel, row, first, last, sums);
        case 4:
            return tile_of<4>(p, panel, row, first, last, sums);
        case 5:
            return tile_of<5>(p, panel, row, first, last, sums);
    }
}
