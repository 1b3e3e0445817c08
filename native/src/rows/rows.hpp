// Ops that read one row at a time: norms, activations, rotary positions, embeddings. All compute in fp32.
#pragma once

#include <cstdint>

namespace stretto {

enum class Activation : int32_t { silu = 0, gelu = 1, gelu_tanh = 2, relu = 3, relu_squared = 4 };

struct RowKernels {
    // out = x / sqrt(mean(x^2) + eps) * weight                                     (arXiv 1910.07467)
    void (*rms_norm)(const float* x, const float* weight, int64_t size, float eps, float* out);
    // out = (x - mean) / sqrt(var + eps) * weight + bias; bias may be null
    void (*layer_norm)(const float* x, const float* weight, const float* bias, int64_t size, float eps, float* out);
    // x += y
    void (*add)(float* x, const float* y, int64_t size);
    // x += factor * y
    void (*add_scaled)(float* x, const float* y, float factor, int64_t size);
    // x *= factor
    void (*scale)(float* x, float factor, int64_t size);
    // out = act(gate) * up; up may be null
    void (*activate)(Activation, const float* gate, const float* up, int64_t size, float* out);
    // x = cap * tanh(x / cap)
    void (*softcap)(float* x, float cap, int64_t size);
    // Turns the pairs (i, i + pairs) of each of `heads` heads of `head_size` in place (arXiv 2104.09864).
    void (*rotate)(float* x, int64_t heads, int64_t head_size, int64_t pairs, const float* cosine, const float* sine);
    // out = row of a table of bf16 or fp32, times factor
    void (*embed_bf16)(const uint16_t* row, int64_t size, float factor, float* out);
    void (*embed_fp32)(const float* row, int64_t size, float factor, float* out);
    // The `chosen` most probable of `count` experts: ids by probability (ties: the lower id), weights from the softmax
    // over all, divided by the chosen ones' sum where `normalised`.
    void (*route)(const float* logits, int64_t count, int64_t chosen, bool normalised, int32_t* ids, float* weights);
};

namespace generic {
extern const RowKernels row_kernels;
}
namespace avx2 {
extern const RowKernels row_kernels;
}
namespace avx512 {
extern const RowKernels row_kernels;
}

}  // namespace stretto
