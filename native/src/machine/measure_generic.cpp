#include <cstring>

#include "machine/measure.hpp"

namespace stretto::generic {
namespace {

float read(const void* data, std::size_t bytes) {
    const auto* at = static_cast<const float*>(data);
    float sums[16] = {};
    for (std::size_t i = 0; i < bytes / sizeof(float); i += 16)
        for (int lane = 0; lane < 16; lane++) sums[lane] += at[i + lane];
    float sum = 0;
    for (float each : sums) sum += each;
    return sum;
}

// All products of this path are written as multiplications and additions of lanes.
double spin(int kind, int64_t repeats, float* keep) {
    if (kind == 2) {
        int32_t sums[64];
        std::memcpy(sums, keep, sizeof sums);
        for (int64_t i = 0; i < repeats; i++)
            for (int lane = 0; lane < 64; lane++) sums[lane] = sums[lane] * 3 + 1;
        std::memcpy(keep, sums, sizeof sums);
    } else {
        float sums[64];
        std::memcpy(sums, keep, sizeof sums);
        for (int64_t i = 0; i < repeats; i++)
            for (int lane = 0; lane < 64; lane++) sums[lane] = sums[lane] * 0.5f + 0.5f;
        std::memcpy(keep, sums, sizeof sums);
    }
    return 64.0 * 2 * static_cast<double>(repeats);
}

}  // namespace

const MeasureKernels measure_kernels = {read, spin};

}  // namespace stretto::generic
