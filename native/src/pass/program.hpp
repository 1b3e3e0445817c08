// A model as an op list: built once at load, replayed by every pass.
#pragma once

#include <memory>
#include <vector>

#include "linear/pack.hpp"
#include "pass/ops.hpp"

namespace stretto {

// A matrix, and where to write what it reads.
struct PackedMatrix {
    Matrix matrix{};
    std::byte* weights = nullptr;
    float* scales = nullptr;
    uint16_t* group_scales = nullptr;
    uint8_t* zeros = nullptr;
    int16_t* group_sums = nullptr;
    float* bias = nullptr;
    std::size_t bytes = 0;  // of weights, scales and zeros: what a pass of one row reads
};

class Program {
public:
    // Memory
    // ------------------------------------------------------------------------------------------------------------------

    // A buffer of rows of `width` floats; returns its number. Number 0 is the hidden state.
    int buffer(int64_t width);
    // An empty matrix of `panels` panels. Its shards are those of the reference: shard s begins at group
    // groups * s / shards, rounded down.
    PackedMatrix* matrix(WeightLayout, Activations, int64_t panels, int64_t inputs, int shards);
    // Packs a row-major matrix [outputs, inputs] (see pack.hpp) into the panels from `panel` on. `scales` are fp32
    // [outputs] (int8) or fp16 [outputs, groups] (int4); `zeros` and `bias` may be null.
    void fill(PackedMatrix&, int64_t panel, int64_t outputs, const void* values, const void* scales,
              const uint8_t* zeros, const float* bias);
    // A copy of `size` floats that lives as long as the program; null stays null.
    const float* keep(const float* values, int64_t size);
    int rope(std::vector<float> inverse, int variants, double factor);
    int lane();
    void bind(int lane, const LaneMemory& memory) { pass_.memory.at(lane) = memory; }

    // Adds an op; returns its number.
    int add(std::unique_ptr<Op> op);
    int size() const { return static_cast<int>(ops_.size()); }

    // Passes
    // ------------------------------------------------------------------------------------------------------------------

    // Takes the rows of a pass. `scripts` holds for each lane what AttentionPlan reads (empty: no row attends through
    // it).
    void start(std::vector<int64_t> tokens, std::vector<int64_t> rope, std::vector<int64_t> index,
               std::vector<std::vector<int64_t>> slots, const std::vector<std::vector<int64_t>>& scripts);
    // Runs the ops [first, last) on the rows taken.
    void run(int first, int last);
    // The rows whose logits the last op writes, [rows][panels of the head * 32], to `logits`.
    void want(std::vector<int64_t> rows, float* logits);
    // Copies columns of rows of a buffer from or to packed rows [rows][width].
    void copy(int buffer, int64_t column, int64_t width, int64_t first, int64_t rows, float* packed, bool into) const;
    // Attention of one view under a policy, see Attend: `op` is the number of an AttendRows.
    void ask(int op, const std::vector<int64_t>& script, const float* bias, int64_t bias_heads, float* mass);

private:
    Pass pass_;
    std::vector<std::unique_ptr<Op>> ops_;
    std::vector<std::unique_ptr<PackedMatrix>> matrices_;
    Arena arena_;
    template <class T>
    T* allocate(int64_t count) {
        return reinterpret_cast<T*>(arena_.allocate(count * sizeof(T)));
    }
};

// Seconds that callers spent in passes since the process began.
double& seconds_inside();

}  // namespace stretto
