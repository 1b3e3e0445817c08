// The ops of a pass. Each is run by all threads of the pool, which share its rows or pieces and meet at its end.
#pragma once

#include <cstdint>
#include <vector>

#include "machine/pool.hpp"
#include "pass/pass.hpp"

namespace stretto {

struct Op {
    virtual ~Op() = default;
    virtual void run(Pass&, Worker&) const = 0;
};

enum class Normal : int32_t { none = 0, rms = 1, layer = 2 };

// A normalisation over the last dimension.
struct Norm {
    Normal kind = Normal::none;
    const float* weight = nullptr;
    const float* bias = nullptr;
    float eps = 0;

    // Writes the normed row; `none` copies it.
    void apply(const Kernels&, const float* x, int64_t size, float* out) const;
};

// hidden = embedding of each row's token (negative tokens keep what lies there) times factor, plus its position's.
struct Embed : Op {
    const void* table;  // [vocabulary][width], bf16 or fp32; null: the rows of `head`
    const Matrix* head;
    bool bf16;
    int64_t width;
    float factor;
    const float* positions;  // [positions][width] or null
    int hidden;
    void run(Pass&, Worker&) const override;
};

// prepared = norm(in), as products with these activations read it.
struct Prepare : Op {
    Norm norm;
    int in;
    int64_t width;
    Activations activations;
    void run(Pass&, Worker&) const override;
};

// out = W prepared, or out += W prepared.
struct Multiply : Op {
    const Matrix* matrix;
    int out;
    bool add;
    void run(Pass&, Worker&) const override;
};

// hidden += norm(branch)
struct AddNormed : Op {
    Norm norm;
    int branch, hidden;
    int64_t width;
    void run(Pass&, Worker&) const override;
};

// Head norms and rope in place; keys and values go to their slots.
struct Heads : Op {
    int fused;  // buffer that holds query, key and value of each row, at these columns:
    int64_t query, key, value;
    int64_t heads;
    Norm query_norm, key_norm;
    bool together;     // a norm is over all heads at once, else over each
    bool behind_rope;  // norms come behind rope, else before it
    int rope;          // number of the table; -1: none
    int lane;
    int64_t place;
    void run(Pass&, Worker&) const override;
};

struct AttendRows : Op {
    int fused, out;
    int64_t query, heads;
    int lane;
    int64_t place;
    float scale, cap;
    int64_t window;
    void run(Pass&, Worker&) const override;
    // What the kernels need for this layer.
    Attend asked(const Pass&, const AttentionPlan&) const;
};

// prepared = act(gate) * up
struct Activate : Op {
    Activation activation;
    int in;
    int64_t gate, up, width;  // columns; up is -1 where there is none
    Activations activations;
    void run(Pass&, Worker&) const override;
};

// A mixture: each row's chosen experts' outputs, weighted and added in ascending id, then out += the sum (or out = it).
// `routes` holds the router's logits; `prepared` the rows as the experts read them.
struct Mixture : Op {
    struct Expert {
        const Matrix *input, *output;
        int64_t gate, up;
    };
    std::vector<Expert> experts;
    int64_t chosen, width, inner_width;
    bool normalised, add;
    Activation activation;
    int routes, inner, part, total, out;  // buffers
    void run(Pass&, Worker&) const override;
};

// logits of the wanted rows: head of their norms, times factor, softly capped.
struct Logits : Op {
    Norm norm;
    int hidden;
    int64_t width, vocabulary;
    const Matrix* head;
    float factor, cap;  // cap 0: none
    void run(Pass&, Worker&) const override;
};

}  // namespace stretto
