#include <immintrin.h>

#include <cstring>

#include "machine/measure.hpp"

namespace stretto::avx512 {
namespace {

float read(const void* data, std::size_t bytes) {
    const auto* at = static_cast<const char*>(data);
    __m512 a = _mm512_setzero_ps(), b = a, c = a, d = a;
    for (std::size_t i = 0; i < bytes; i += 256) {
        _mm_prefetch(at + i + 4096, _MM_HINT_T0);
        _mm_prefetch(at + i + 4160, _MM_HINT_T0);
        _mm_prefetch(at + i + 4224, _MM_HINT_T0);
        _mm_prefetch(at + i + 4288, _MM_HINT_T0);
        a = _mm512_add_ps(a, _mm512_load_ps(at + i));
        b = _mm512_add_ps(b, _mm512_load_ps(at + i + 64));
        c = _mm512_add_ps(c, _mm512_load_ps(at + i + 128));
        d = _mm512_add_ps(d, _mm512_load_ps(at + i + 192));
    }
    return _mm512_cvtss_f32(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)));
}

// Twelve independent accumulators hide the latency of any of these instructions.
// They begin with what lies in memory: a compiler computes equal ones once.
template <class Vector, class Step, class Sum>
void chains(int64_t repeats, Step step, Sum sum, float* keep) {
    const auto begin = [&](int number) {
        Vector vector;
        std::memcpy(&vector, keep + 16 * number, sizeof vector);
        return vector;
    };
    Vector a0 = begin(0), a1 = begin(1), a2 = begin(2), a3 = begin(3), a4 = begin(4), a5 = begin(5);
    Vector a6 = begin(6), a7 = begin(7), a8 = begin(8), a9 = begin(9), a10 = begin(10), a11 = begin(11);
    for (int64_t i = 0; i < repeats; i++) {
        step(a0), step(a1), step(a2), step(a3), step(a4), step(a5);
        step(a6), step(a7), step(a8), step(a9), step(a10), step(a11);
    }
    const Vector low = sum(sum(sum(a0, a1), sum(a2, a3)), sum(a4, a5));
    const Vector high = sum(sum(sum(a6, a7), sum(a8, a9)), sum(a10, a11));
    const Vector all = sum(low, high);
    std::memcpy(keep, &all, sizeof all);
}

double spin(int kind, int64_t repeats, float* keep) {
    const __m512i some = _mm512_set1_epi32(0x01020304);
    if (kind == 2) {
        chains<__m512i>(
            repeats, [&](__m512i& a) { a = _mm512_dpbusd_epi32(a, some, some); },
            [](__m512i a, __m512i b) { return _mm512_add_epi32(a, b); }, keep);
        return 12.0 * 128 * static_cast<double>(repeats);
    }
    const auto sum = [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); };
    if (kind == 1) {
        const auto step = [&](__m512& a) { a = _mm512_dpbf16_ps(a, (__m512bh)some, (__m512bh)some); };
        chains<__m512>(repeats, step, sum, keep);
        return 12.0 * 64 * static_cast<double>(repeats);
    }
    const __m512 factor = _mm512_set1_ps(0.5f);
    chains<__m512>(repeats, [&](__m512& a) { a = _mm512_fmadd_ps(a, factor, factor); }, sum, keep);
    return 12.0 * 32 * static_cast<double>(repeats);
}

}  // namespace

const MeasureKernels measure_kernels = {read, spin};

}  // namespace stretto::avx512
