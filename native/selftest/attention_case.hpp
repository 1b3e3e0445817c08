// A lane whose unwritten slots hold NaN, passes over it, and what attention gives in double precision.
#pragma once

#include "check.hpp"

namespace stretto::selftest {

struct HeadShape {
    bool bf16;
    int64_t kv_heads, group, size;  // group: heads that share a K/V head
    int64_t heads() const { return kv_heads * group; }
    int64_t width() const { return heads() * size; }
    int64_t kv_width() const { return kv_heads * size; }
    std::string name() const;
};

HeadShape random_heads(Random&);

class Lane {
public:
    Lane(const HeadShape&, int64_t blocks, Random&);

    LayerStorage storage() const;
    // Where attention.hpp says that one number lies, counted in elements.
    int64_t key_place(int64_t slot, int64_t head, int64_t d) const;
    int64_t value_place(int64_t slot, int64_t head, int64_t d) const;
    double key(int64_t slot, int64_t head, int64_t d) const { return element(keys, key_place(slot, head, d)); }
    double value(int64_t slot, int64_t head, int64_t d) const { return element(values, value_place(slot, head, d)); }

    // Fresh slots of the positions start...start + count - 1: runs of 16 in place or scattered, one in `scatter` runs.
    std::vector<int64_t> place(int64_t start, int64_t count, int64_t scatter);
    int64_t scratch();  // a fresh slot anywhere
    void fill(const Kernels&, int64_t slot, Random&);

    const HeadShape shape;
    Buffer<char> keys, values;

private:
    double element(const Buffer<char>& part, int64_t place) const;
    Random& random_;
    std::vector<int64_t> blocks_, slots_;  // free blocks, and free slots of broken ones
};

struct Span {
    int64_t start;
    std::vector<int64_t> slots;
};

constexpr int64_t by_all = -1;

struct Entry {
    int64_t slot, index, order;
};

struct ViewCase {
    int64_t first, rows;
    bool mutual;
    std::vector<Span> spans;
    std::vector<Entry> extras;
    std::vector<Entry> entries() const;  // in the order in which they are numbered
};

struct PassCase {
    std::vector<ViewCase> views;
    std::vector<int64_t> index;  // of the pass's rows
    AttentionPlan plan() const;
    int64_t rows() const { return static_cast<int64_t>(index.size()); }
    int64_t groups() const;  // that its entries touch, from 0 on
};

// What a call adds to a pass; `bias`, `mass` and `partial` belong to passes of one view.
struct Call {
    Buffer<float> query;  // [rows][width]
    float scale = 1.0f, cap = 0.0f;
    int64_t window = 0;
    Buffer<float> bias;  // [rows][bias_heads][entries], or empty
    int64_t bias_heads = 1;
};

// The call as the kernels take it.
Attend attend(const Lane&, const PassCase&, const AttentionPlan&, const Call&, Buffer<float>& out, int64_t out_stride);
void run_shuffled(const AttentionKernels&, const Attend&, int threads, Random&);
void run_on_threads(const AttentionKernels&, const Attend&, int threads);

// Result of one row and head, with what rounding may have done to it.
struct Exact {
    struct Group {
        bool any = false;
        double top = -1e30f, sum = 0, share = 0;  // share: what rounding may have done, relative to the sum
        std::vector<double> out, allowed;
    };
    std::vector<Group> groups;
    std::vector<double> out, allowed;        // [size]
    std::vector<double> mass, mass_allowed;  // [entries]
    double top_allowed = 0;
};
Exact exact(const Lane&, const PassCase&, const ViewCase&, const Call&, int64_t row_of_view, int64_t head);

}  // namespace stretto::selftest
