// Attention over lanes of 16-position blocks, reduced in groups of 128 logical positions.
//
// Storage of one layer: block after block of 16 slots; slot s is offset s % 16 of block s / 16. Within a block, K/V
// head after head; within a head's part (16 * head_size elements), with D = head_size (even):
//
//   bf16   keys [D/2][16 slots][2]    values [8 slot pairs][D][2]
//   fp32   keys [D][16 slots]         values [16 slots][D]
//
// The entry with logical index i is lane i % 128 of group i / 128. Every group gives a partial result (max, sum, out)
// and a row's partial results merge in ascending order of their groups, so its bits do not depend on where entries lie,
// on other rows, or on the threads. A lane that a row does not see adds exactly nothing, even where NaN lies there.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace stretto {

constexpr int64_t block_slots = 16;
constexpr int64_t group_lanes = 128;

struct LayerStorage {  // one layer of a lane
    void* keys;        // 64-byte aligned, see above
    void* values;
    bool bf16;
    int64_t kv_heads, head_size;
};

// What rows see, from the words of a pass. Built once per pass and lane; read by all layers and threads.
class AttentionPlan {
public:
    // `script` describes views one after the other, each as int64:
    //   first, rows, mutual, spans, {address, start, count} * spans, extras, {slot, index, order} * extras
    // Rows first..first+rows-1 of the pass form the view. A span holds cached positions start..start+count-1 whose
    // slots are int64 at `address`; all rows see them. Row i of the view sees the extras with order <= i (mutual: all
    // extras). Entries with the same logical index go to further tiles of the same group, in the order in which they
    // are listed. `index` [pass rows] is each row's logical index (windows are measured from it).
    AttentionPlan(const int64_t* script, int64_t size, const int64_t* index, int64_t pass_rows);
    ~AttentionPlan();
    AttentionPlan(AttentionPlan&&) noexcept;
    struct Impl;
    const Impl& impl() const { return *impl_; }

private:
    std::unique_ptr<Impl> impl_;
};

struct Attend {
    const AttentionPlan* plan;
    LayerStorage storage;
    const float* query;  // [pass rows][query_stride], heads * head_size each, behind rope
    int64_t query_stride;
    float* out;  // [pass rows][out_stride]; only the plan's rows are written
    int64_t out_stride;
    int64_t heads;
    float scale;     // multiplied into the query
    float cap;       // scores become cap * tanh(score / cap); 0: none
    int64_t window;  // a row sees entries with index > its own - window; 0: all
    // Of plans with exactly one view; entries are numbered spans first, then extras, as the script lists them:
    const float* bias;   // [rows][bias_heads][entries] added to the scores, -inf hides; or null
    int64_t bias_heads;  // 1 or kv_heads
    float*
        mass;  // [rows][kv_heads][entries], zeros on entry: normalised attention, summed over a group's heads; or null
    float* partial;  // or null: [rows][heads][groups][2 + head_size]: max, sum and unnormalised out of each group,
                     // instead of out
    int64_t groups;  // partial: groups per row (numbered by index / 128)
};

struct AttentionKernels {
    int64_t (*pieces)(const Attend&, int threads);
    // `scratch`: attention_scratch bytes of the calling thread's own, 64-byte aligned.
    void (*run)(const Attend&, int64_t piece, int64_t pieces, void* scratch);
    // Writes the key and value of one row (kv_heads * head_size floats each), rounded to the stored precision, to
    // `slot`.
    void (*write)(const LayerStorage&, int64_t slot, const float* key, const float* value);
    // Merges partial results of `groups` groups in ascending order: partial as in Attend::partial for one row and head.
    void (*merge)(const float* partial, int64_t groups, int64_t head_size, float* out);
};

// Copies the row in slot `from` to slot `to`, bit by bit.
void move_row(const LayerStorage&, int64_t from, int64_t to);

constexpr int64_t attention_scratch = 1 << 20;

namespace generic {
extern const AttentionKernels attention_kernels;
}
namespace avx2 {
extern const AttentionKernels attention_kernels;
}
namespace avx512 {
extern const AttentionKernels attention_kernels;
}

}  // namespace stretto
