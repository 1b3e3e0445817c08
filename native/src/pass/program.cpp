#include "pass/program.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>

namespace stretto {
namespace {

// Counts the time of its scope as spent in a pass.
class Stopwatch {
public:
    Stopwatch() : start_(std::chrono::steady_clock::now()) {}
    ~Stopwatch() {
        seconds_inside() += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    }

private:
    std::chrono::steady_clock::time_point start_;
};

}  // namespace

double& seconds_inside() {
    static double seconds = 0;
    return seconds;
}

int Program::buffer(int64_t width) {
    pass_.buffers.push_back({width, 0, {}});
    pass_.capacity = 0;
    return static_cast<int>(pass_.buffers.size()) - 1;
}

PackedMatrix* Program::matrix(WeightLayout layout, Activations activations, int64_t panels, int64_t inputs,
                              int shards) {
    const bool integers = layout == WeightLayout::int8 || layout == WeightLayout::int4;
    const bool read_as_stored = static_cast<int>(layout) == static_cast<int>(activations);
    if (integers ? activations < Activations::int8 : !read_as_stored)
        throw std::invalid_argument("no product of weights of layout " + std::to_string(static_cast<int>(layout)) +
                                    " reads rows of kind " + std::to_string(static_cast<int>(activations)));
    if (layout == WeightLayout::int4 && activations != Activations::int8)
        throw std::invalid_argument("int4 weights read rows as int8 in groups, and nothing else");
    auto packed = std::make_unique<PackedMatrix>();
    Matrix& matrix = packed->matrix;
    matrix.layout = layout;
    matrix.activations = activations;
    matrix.panels = panels;
    matrix.outputs = panels * panel_width;
    matrix.inputs = inputs;
    matrix.depth = round_up(inputs, group_depth);
    matrix.shards = shards;
    const int64_t groups = matrix.depth / group_depth;
    for (int shard = 0; shard <= shards; shard++) matrix.border[shard] = group_depth * (groups * shard / shards);
    packed->bytes = packed_bytes(layout, panels, matrix.depth);
    matrix.weights = packed->weights = arena_.allocate(packed->bytes);
    if (layout == WeightLayout::int8) {
        matrix.scales = packed->scales = allocate<float>(matrix.outputs);
        packed->bytes += matrix.outputs * sizeof(float);
        if (kernels().linear.raises && activations != Activations::int8x2)
            matrix.group_sums = packed->group_sums = allocate<int16_t>(matrix.outputs * groups);
    } else if (layout == WeightLayout::int4) {
        matrix.group_scales = packed->group_scales = allocate<uint16_t>(matrix.outputs * groups);
        packed->bytes += matrix.outputs * groups * sizeof(uint16_t);
    }
    pass_.prepared.deepest = std::max(pass_.prepared.deepest, matrix.depth);
    pass_.routed.deepest = pass_.prepared.deepest;
    pass_.capacity = 0;
    matrices_.push_back(std::move(packed));
    return matrices_.back().get();
}

void Program::fill(PackedMatrix& packed, int64_t panel, int64_t outputs, const void* values, const void* scales,
                   const uint8_t* zeros, const float* bias) {
    Matrix& matrix = packed.matrix;
    const int64_t panels = round_up(outputs, panel_width) / panel_width, groups = matrix.depth / group_depth;
    if (panel < 0 || panel + panels > matrix.panels)
        throw std::invalid_argument("a matrix of " + std::to_string(outputs) + " outputs does not fit behind panel " +
                                    std::to_string(panel) + " of " + std::to_string(matrix.panels));
    if (zeros != nullptr && matrix.zeros == nullptr) {
        matrix.zeros = packed.zeros = allocate<uint8_t>(matrix.outputs * groups);
        std::memset(packed.zeros, 8, matrix.outputs * groups);
        packed.bytes += matrix.outputs * groups;
    }
    if (bias != nullptr) {
        if (matrix.bias == nullptr) matrix.bias = packed.bias = allocate<float>(matrix.outputs);
        std::memcpy(packed.bias + panel * panel_width, bias, outputs * sizeof(float));
    }
    if (matrix.layout == WeightLayout::int8)
        std::memcpy(packed.scales + panel * panel_width, scales, outputs * sizeof(float));
    const int64_t panel_bytes = packed_bytes(matrix.layout, 1, matrix.depth);
    std::atomic<bool> narrow = true;
    Pool::instance().run([&](Worker& worker) {
        worker.each(panels, [&](int64_t number) {
            pack_panels(matrix.layout, values, outputs, matrix.inputs, matrix.depth, number, number + 1,
                        kernels().linear.int8_offset, packed.weights + panel * panel_bytes);
            const int64_t first = panel * panel_width * groups;
            if (packed.group_sums != nullptr &&
                !sum_groups(static_cast<const int8_t*>(values), outputs, matrix.inputs, matrix.depth, number,
                            number + 1, packed.group_sums + first))
                narrow = false;
            if (matrix.layout != WeightLayout::int4) return;
            pack_groups(static_cast<const uint16_t*>(scales), outputs, groups, number, number + 1, 0,
                        packed.group_scales + first);
            if (zeros != nullptr) pack_groups(zeros, outputs, groups, number, number + 1, 8, packed.zeros + first);
        });
    });
    if (!narrow) matrix.group_sums = nullptr;
}

const float* Program::keep(const float* values, int64_t size) {
    if (values == nullptr) return nullptr;
    float* kept = allocate<float>(size);
    std::memcpy(kept, values, size * sizeof(float));
    return kept;
}

int Program::rope(std::vector<float> inverse, int variants, double factor) {
    pass_.ropes.emplace_back(std::move(inverse), variants, factor);
    return static_cast<int>(pass_.ropes.size()) - 1;
}

int Program::lane() {
    pass_.memory.emplace_back();
    pass_.lanes.emplace_back();
    return static_cast<int>(pass_.memory.size()) - 1;
}

int Program::add(std::unique_ptr<Op> op) {
    ops_.push_back(std::move(op));
    return size() - 1;
}

void Program::start(std::vector<int64_t> tokens, std::vector<int64_t> rope, std::vector<int64_t> index,
                    std::vector<std::vector<int64_t>> slots, const std::vector<std::vector<int64_t>>& scripts) {
    const Stopwatch watch;
    pass_.rows = static_cast<int64_t>(tokens.size());
    pass_.reserve(pass_.rows);
    const int64_t largest = rope.empty() ? 0 : *std::max_element(rope.begin(), rope.end());
    for (RopeTable& table : pass_.ropes) table.grow(largest);
    pass_.tokens = std::move(tokens);
    pass_.rope = std::move(rope);
    pass_.index = std::move(index);
    for (std::size_t lane = 0; lane < pass_.lanes.size(); lane++) {
        pass_.lanes[lane].slots = std::move(slots.at(lane));
        pass_.lanes[lane].plan.reset();
        const std::vector<int64_t>& script = scripts.at(lane);
        if (!script.empty())
            pass_.lanes[lane].plan.emplace(script.data(), static_cast<int64_t>(script.size()), pass_.index.data(),
                                           pass_.rows);
    }
}

void Program::run(int first, int last) {
    const Stopwatch watch;
    Pool::instance().run([&](Worker& worker) {
        for (int number = first; number < last; number++) ops_[number]->run(pass_, worker);
    });
}

void Program::want(std::vector<int64_t> rows, float* logits) {
    pass_.wanted = std::move(rows);
    pass_.logits = logits;
}

void Program::copy(int buffer, int64_t column, int64_t width, int64_t first, int64_t rows, float* packed,
                   bool into) const {
    for (int64_t row = 0; row < rows; row++) {
        float* inside = pass_.buffers.at(buffer).row(first + row) + column;
        float* outside = packed + row * width;
        std::memcpy(into ? inside : outside, into ? outside : inside, width * sizeof(float));
    }
}

void Program::ask(int op, const std::vector<int64_t>& script, const float* bias, int64_t bias_heads, float* mass) {
    const Stopwatch watch;
    const auto& attention = dynamic_cast<const AttendRows&>(*ops_.at(op));
    const AttentionPlan plan(script.data(), static_cast<int64_t>(script.size()), pass_.index.data(), pass_.rows);
    Attend attend = attention.asked(pass_, plan);
    attend.bias = bias;
    attend.bias_heads = bias_heads;
    attend.mass = mass;
    const AttentionKernels& kernels = pass_.kernels.attention;
    Pool::instance().run([&](Worker& worker) {
        const int64_t pieces = kernels.pieces(attend, worker.count());
        worker.each(pieces, [&](int64_t piece) { kernels.run(attend, piece, pieces, worker.scratch); });
    });
}

}  // namespace stretto
