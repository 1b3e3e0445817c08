// The one rule of choice over many rows: the largest sum of score and Gumbel noise. Ties: the lower id.
#pragma once

#include <cstdint>

namespace stretto {

struct ChooseRow {
    const float* scores;  // [vocab], constrained, perhaps filtered (-inf forbids)
    float temperature;    // 0: greedy, no noise
    uint64_t key;         // of the noise; see hash in choose kernels
};

struct Chosen {
    int32_t token;  // the best; of a row with NaN or +inf the place of the first of these
    float value;    // its perturbed score ((score - max) / temperature + noise); greedy: its score
};

// What a row's scores are narrowed to before noise joins them.
struct Filter {
    float temperature;  // above 0
    int64_t count;      // top-k; 0: all
    double share;       // top-p; 1: all
    float least;        // the least score kept, of scores shifted and divided; -inf: all
};

struct ChooseKernels {
    void (*choose)(const ChooseRow&, int64_t vocab, Chosen*);
    // The `count` best in the same order, best first; `found`: how many there are above -inf.
    void (*top)(const ChooseRow&, int64_t vocab, int64_t count, Chosen* best, int64_t* found);
    // Log of the sum of exp(scores): log_sum = max + log(sum exp(score - max)), summed in double in a fixed order.
    double (*log_sum)(const float* scores, int64_t vocab);
    // Shifts the scores to a largest of 0, divides them by the temperature and forbids (-inf) what the filter drops:
    // all but the `count` best, then all but the shortest prefix of these that has `share` of their mass.
    // `scratch`: 2 * vocab floats.
    void (*filter)(float* scores, int64_t vocab, const Filter&, float* scratch);
    // Whether that certainly keeps element `id`, told without looking for its border; false where only that would tell.
    bool (*keeps)(const ChooseRow&, int64_t vocab, const Filter&, int64_t id);
};

namespace generic {
extern const ChooseKernels choose_kernels;
}
namespace avx2 {
extern const ChooseKernels choose_kernels;
}
namespace avx512 {
extern const ChooseKernels choose_kernels;
}

}  // namespace stretto
