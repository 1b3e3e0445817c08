#include "pass/ops.hpp"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "linear/pack.hpp"

namespace stretto {
namespace {

// Rows are handed out in at most this many pieces.
constexpr int64_t row_pieces = 64;

template <class Body>
void each_row(Worker& worker, int64_t rows, Body&& body) {
    const int64_t pieces = std::min(rows, row_pieces);
    worker.each(pieces, [&](int64_t piece) {
        for (int64_t row = rows * piece / pieces; row < rows * (piece + 1) / pieces; row++) body(row);
    });
}

void multiply(const Pass& pass, Worker& worker, const Product& product) {
    const LinearKernels& linear = pass.kernels.linear;
    const int64_t pieces = linear.pieces(*product.matrix, product.rows, worker.count());
    worker.each(pieces, [&](int64_t piece) { linear.run(product, piece, pieces, worker.scratch); });
}

// The part of prepared rows that begins at `column`, a multiple of a group.
Rows from_column(Rows rows, Activations activations, int64_t column) {
    rows.fp32 += column;
    rows.bf16 += column;
    rows.digits += column;
    if (rows.raised != nullptr) rows.raised += column;
    if (activations != Activations::int8_row) rows.scales += column / group_depth;
    rows.sums += column / group_depth;
    return rows;
}

// Copies row `from` of one set of prepared rows to row `to` of another of the same depth.
void copy_prepared(Activations activations, const Rows& all, int64_t from, const Rows& own, int64_t to) {
    const auto copy = [&](const auto* source, const auto* target, int64_t size) {
        using Element = std::remove_cv_t<std::remove_pointer_t<decltype(source)>>;
        std::memcpy(const_cast<Element*>(target) + to * size, source + from * size, size * sizeof(Element));
    };
    const int64_t groups = all.depth / group_depth;
    switch (activations) {
        case Activations::fp32:
            copy(all.fp32, own.fp32, all.depth);
            return;
        case Activations::bf16:
            copy(all.bf16, own.bf16, all.depth);
            return;
        case Activations::int8_row:
            copy(all.scales, own.scales, 1);
            break;
        default:
            copy(all.scales, own.scales, groups);
    }
    const int64_t digits = activations == Activations::int8x2 ? 2 : 1;
    copy(all.digits, own.digits, digits * all.depth);
    if (all.raised != nullptr) copy(all.raised, own.raised, all.depth);
    copy(all.sums, own.sums, digits * groups);
}

}  // namespace

void Norm::apply(const Kernels& kernels, const float* x, int64_t size, float* out) const {
    switch (kind) {
        case Normal::rms:
            kernels.rows.rms_norm(x, weight, size, eps, out);
            break;
        case Normal::layer:
            kernels.rows.layer_norm(x, weight, bias, size, eps, out);
            break;
        case Normal::none:
            std::memcpy(out, x, size * sizeof(float));
            break;
    }
}

void Embed::run(Pass& pass, Worker& worker) const {
    const RowKernels& kernels = pass.kernels.rows;
    each_row(worker, pass.rows, [&](int64_t row) {
        const int64_t token = pass.tokens[row];
        float* out = pass.buffers[hidden].row(row);
        if (token >= 0) {
            const auto* found = static_cast<const std::byte*>(table) + token * width * (bf16 ? 2 : 4);
            if (table == nullptr) {
                unpack_row(*head, token, worker.scratch);
                found = worker.scratch;
            }
            if (bf16) {
                kernels.embed_bf16(reinterpret_cast<const uint16_t*>(found), width, factor, out);
            } else {
                kernels.embed_fp32(reinterpret_cast<const float*>(found), width, factor, out);
            }
        } else if (factor != 1) {
            kernels.scale(out, factor, width);
        }
        if (positions != nullptr) kernels.add(out, positions + pass.rope[row] * width, width);
    });
}

void Prepare::run(Pass& pass, Worker& worker) const {
    const Rows to = pass.prepared.rows(round_up(width, group_depth));
    auto* normed = reinterpret_cast<float*>(worker.scratch);
    each_row(worker, pass.rows, [&](int64_t row) {
        const float* x = pass.buffers[in].row(row);
        if (norm.kind != Normal::none) {
            norm.apply(pass.kernels, x, width, normed);
            x = normed;
        }
        pass.kernels.linear.prepare(activations, x, width, row, to);
    });
}

void Multiply::run(Pass& pass, Worker& worker) const {
    const Buffer& to = pass.buffers[out];
    multiply(pass, worker, {matrix, pass.prepared.rows(matrix->depth), pass.rows, to.row(0), to.stride, add});
}

void AddNormed::run(Pass& pass, Worker& worker) const {
    auto* normed = reinterpret_cast<float*>(worker.scratch);
    each_row(worker, pass.rows, [&](int64_t row) {
        norm.apply(pass.kernels, pass.buffers[branch].row(row), width, normed);
        pass.kernels.rows.add(pass.buffers[hidden].row(row), normed, width);
    });
}

void Heads::run(Pass& pass, Worker& worker) const {
    const LayerStorage storage = pass.memory[lane].layer(place);
    const std::vector<int64_t>& slots = pass.lanes[lane].slots;
    const int64_t size = storage.head_size;
    each_row(worker, pass.rows, [&](int64_t row) {
        float* x = pass.buffers[fused].row(row);
        const auto turn = [&](float* part, int64_t count, const Norm& norm) {
            const int64_t span = together ? count * size : size;
            const auto normalise = [&] {
                if (norm.kind == Normal::none) return;
                for (float* at = part; at < part + count * size; at += span) norm.apply(pass.kernels, at, span, at);
            };
            if (!behind_rope) normalise();
            if (rope >= 0) {
                const RopeTable& table = pass.ropes[rope];
                const int64_t position = pass.rope[row];
                pass.kernels.rows.rotate(part, count, size, table.pairs(), table.cosine(position),
                                         table.sine(position));
            }
            if (behind_rope) normalise();
        };
        turn(x + query, heads, query_norm);
        turn(x + key, storage.kv_heads, key_norm);
        pass.kernels.attention.write(storage, slots[row], x + key, x + value);
    });
}

Attend AttendRows::asked(const Pass& pass, const AttentionPlan& plan) const {
    Attend attend{};
    attend.plan = &plan;
    attend.storage = pass.memory[lane].layer(place);
    attend.query = pass.buffers[fused].row(0) + query;
    attend.query_stride = pass.buffers[fused].stride;
    attend.out = pass.buffers[out].row(0);
    attend.out_stride = pass.buffers[out].stride;
    attend.heads = heads;
    attend.scale = scale;
    attend.cap = cap;
    attend.window = window;
    return attend;
}

void AttendRows::run(Pass& pass, Worker& worker) const {
    if (!pass.lanes[lane].plan) return;
    const Attend attend = asked(pass, *pass.lanes[lane].plan);
    const int64_t pieces = pass.kernels.attention.pieces(attend, worker.count());
    worker.each(pieces, [&](int64_t piece) { pass.kernels.attention.run(attend, piece, pieces, worker.scratch); });
}

void Activate::run(Pass& pass, Worker& worker) const {
    const Rows to = pass.prepared.rows(round_up(width, group_depth));
    auto* result = reinterpret_cast<float*>(worker.scratch);
    // One row is shared by the threads in parts; a scale of the whole row allows no parts.
    const int64_t part = activations == Activations::int8_row ? width : std::min<int64_t>(width, 1024);
    const int64_t parts = (width + part - 1) / part;
    each_row(worker, pass.rows * parts, [&](int64_t item) {
        const int64_t row = item / parts, first = item % parts * part, size = std::min(part, width - first);
        const float* x = pass.buffers[in].row(row) + first;
        pass.kernels.rows.activate(activation, x + gate, up < 0 ? nullptr : x + up, size, result);
        pass.kernels.linear.prepare(activations, result, size, row, from_column(to, activations, first));
    });
}

void Mixture::run(Pass& pass, Worker& worker) const {
    const Buffer &routing = pass.buffers[routes], &inside = pass.buffers[inner], &result = pass.buffers[part];
    const Buffer &sum = pass.buffers[total], &target = pass.buffers[out];
    const auto count = static_cast<int64_t>(experts.size());
    each_row(worker, pass.rows,
             [&](int64_t row) {  // logits become weights by expert; an expert that was not chosen has -1
                 auto* ids = reinterpret_cast<int32_t*>(worker.scratch);
                 auto* weights = reinterpret_cast<float*>(ids + count);
                 pass.kernels.rows.route(routing.row(row), count, chosen, normalised, ids, weights);
                 std::fill_n(routing.row(row), count, -1.0f);
                 for (int64_t i = 0; i < chosen; i++) routing.row(row)[ids[i]] = weights[i];
                 std::memset(sum.row(row), 0, sum.stride * sizeof(float));
             });
    std::vector<int64_t> members;
    for (int64_t number = 0; number < count; number++) {
        const Expert& expert = experts[number];
        members.clear();
        for (int64_t row = 0; row < pass.rows; row++)
            if (!(routing.row(row)[number] == -1.0f)) members.push_back(row);
        if (members.empty()) continue;
        const auto rows = static_cast<int64_t>(members.size());
        const Rows all = pass.prepared.rows(expert.input->depth), own = pass.routed.rows(expert.input->depth);
        each_row(worker, rows,
                 [&](int64_t place) { copy_prepared(expert.input->activations, all, members[place], own, place); });
        multiply(pass, worker, {expert.input, own, rows, inside.row(0), inside.stride, false});
        const Rows activated = pass.routed.rows(expert.output->depth);
        each_row(worker, rows, [&](int64_t place) {
            auto* values = reinterpret_cast<float*>(worker.scratch);
            const float* x = inside.row(place);
            pass.kernels.rows.activate(activation, x + expert.gate, expert.up < 0 ? nullptr : x + expert.up,
                                       inner_width, values);
            pass.kernels.linear.prepare(expert.output->activations, values, inner_width, place, activated);
        });
        multiply(pass, worker, {expert.output, activated, rows, result.row(0), result.stride, false});
        each_row(worker, rows, [&](int64_t place) {
            const int64_t row = members[place];
            pass.kernels.rows.add_scaled(sum.row(row), result.row(place), routing.row(row)[number], width);
        });
    }
    each_row(worker, pass.rows, [&](int64_t row) {
        if (!add) std::memset(target.row(row), 0, target.stride * sizeof(float));
        pass.kernels.rows.add(target.row(row), sum.row(row), width);
    });
}

void Logits::run(Pass& pass, Worker& worker) const {
    const auto count = static_cast<int64_t>(pass.wanted.size());
    const int64_t stride = head->panels * panel_width;
    const Rows to = pass.prepared.rows(head->depth);
    auto* normed = reinterpret_cast<float*>(worker.scratch);
    each_row(worker, count, [&](int64_t place) {
        norm.apply(pass.kernels, pass.buffers[hidden].row(pass.wanted[place]), width, normed);
        pass.kernels.linear.prepare(head->activations, normed, width, place, to);
    });
    multiply(pass, worker, {head, to, count, pass.logits, stride, false});
    if (factor == 1 && cap == 0) return;
    each_row(worker, count, [&](int64_t place) {
        float* row = pass.logits + place * stride;
        if (factor != 1) pass.kernels.rows.scale(row, factor, vocabulary);
        if (cap != 0) pass.kernels.rows.softcap(row, cap, vocabulary);
    });
}

}  // namespace stretto
