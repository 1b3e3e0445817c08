// What this machine can reach: the limits that a pass is judged by.
#pragma once

#include <cstddef>
#include <cstdint>

namespace stretto {

struct MeasureKernels {
    // Reads the memory once; returns a number that depends on it, so that no compiler leaves the reading out.
    float (*read)(const void* data, std::size_t bytes);
    // Repeats the product instruction on registers alone; returns the operations done (a multiply and an add are two).
    // `kind`: 0 fp32, 1 bf16, 2 int8; `keep`: 256 floats, 64-byte aligned, that the loop begins with and leaves its
    // result in.
    double (*spin)(int kind, int64_t repeats, float* keep);
};

namespace generic {
extern const MeasureKernels measure_kernels;
}
namespace avx2 {
extern const MeasureKernels measure_kernels;
}
namespace avx512 {
extern const MeasureKernels measure_kernels;
}

// GB/s at which all threads of the pool together read `bytes` of memory, each its own part as one stream.
double streaming_read(std::size_t bytes, int repeats);

// Operations per second of all threads together.
double peak(int kind);

}  // namespace stretto
