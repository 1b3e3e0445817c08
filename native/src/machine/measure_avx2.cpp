#include <immintrin.h>

#include <cstring>

#include "lanes/avx2.hpp"
#include "machine/measure.hpp"

namespace stretto::avx2 {
namespace {

float read(const void* data, std::size_t bytes) {
    const auto* at = static_cast<const char*>(data);
    __m256 a = _mm256_setzero_ps(), b = a, c = a, d = a;
    for (std::size_t i = 0; i < bytes; i += 128) {
        _mm_prefetch(at + i + 4096, _MM_HINT_T0);
        _mm_prefetch(at + i + 4160, _MM_HINT_T0);
        a = _mm256_add_ps(a, _mm256_load_ps(reinterpret_cast<const float*>(at + i)));
        b = _mm256_add_ps(b, _mm256_load_ps(reinterpret_cast<const float*>(at + i + 32)));
        c = _mm256_add_ps(c, _mm256_load_ps(reinterpret_cast<const float*>(at + i + 64)));
        d = _mm256_add_ps(d, _mm256_load_ps(reinterpret_cast<const float*>(at + i + 96)));
    }
    const __m256 sum = _mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d));
    const __m128 half = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehl_ps(half, half)));
}

// sum += x * weights, of bytes: three instructions for 32 products. Written out, or the product is computed once; where
// it cannot be, a further sum keeps it in the loop, and the peak is told too low.
STRETTO_INLINE void add_product(__m256i x, __m256i weights, __m256i ones, __m256i& sum) {
#if defined(__GNUC__)
    __m256i product;
    asm volatile("vpmaddubsw %[weights], %[x], %[product]\n\t"
                 "vpmaddwd %[ones], %[product], %[product]\n\t"
                 "vpaddd %[product], %[sum], %[sum]"
                 : [sum] "+x"(sum), [product] "=&x"(product)
                 : [x] "x"(x), [weights] "x"(weights), [ones] "x"(ones));
#else
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_add_epi32(x, sum), weights);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
#endif
}

// bf16 is widened and multiplied in fp32 on this path: its peak is that of fp32.
double spin(int kind, int64_t repeats, float* keep) {
    if (kind == 2) {
        const auto* from = reinterpret_cast<const __m256i*>(keep);
        const __m256i x = _mm256_load_si256(from), y = _mm256_load_si256(from + 1);
        const __m256i ones = _mm256_set1_epi16(1);
        __m256i a = x, b = x, c = x, d = x, e = y, f = y, g = y, h = y;
        for (int64_t i = 0; i < repeats; i++) {
            add_product(x, y, ones, a), add_product(x, y, ones, b), add_product(x, y, ones, c);
            add_product(x, y, ones, d), add_product(x, y, ones, e), add_product(x, y, ones, f);
            add_product(x, y, ones, g), add_product(x, y, ones, h);
        }
        const __m256i low = _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d));
        const __m256i high = _mm256_add_epi32(_mm256_add_epi32(e, f), _mm256_add_epi32(g, h));
        const __m256i all = _mm256_add_epi32(low, high);
        std::memcpy(keep, &all, sizeof all);
        return 8.0 * 64 * static_cast<double>(repeats);
    }
    const __m256 factor = _mm256_set1_ps(0.5f);
    const auto step = [&](__m256& x) { x = _mm256_fmadd_ps(x, factor, factor); };
    const auto begin = [&](int number) { return _mm256_load_ps(keep + 8 * number); };
    __m256 a = begin(0), b = begin(1), c = begin(2), d = begin(3), e = begin(4);
    __m256 f = begin(5), g = begin(6), h = begin(7), i0 = begin(8), j = begin(9);
    for (int64_t i = 0; i < repeats; i++) {
        step(a), step(b), step(c), step(d), step(e), step(f), step(g), step(h), step(i0), step(j);
    }
    const __m256 low = _mm256_add_ps(_mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d)), e);
    const __m256 all = _mm256_add_ps(low, _mm256_add_ps(_mm256_add_ps(_mm256_add_ps(f, g), _mm256_add_ps(h, i0)), j));
    std::memcpy(keep, &all, sizeof all);
    return 10.0 * 16 * static_cast<double>(repeats);
}

}  // namespace

const MeasureKernels measure_kernels = {read, spin};

}  // namespace stretto::avx2
