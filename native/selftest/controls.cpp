// Kernels with one mistake each. The checks must find every one of them, else they prove nothing.
#include <cmath>

#include "attention/plan.hpp"
#include "check.hpp"

namespace stretto::selftest {
namespace {

const Kernels* honest;  // what the broken kernels break

// ---- linear ----

void with_matrix(const Product& product, const Matrix& matrix, int64_t piece, int64_t pieces, void* scratch) {
    Product other = product;
    other.matrix = &matrix;
    honest->linear.run(other, piece, pieces, scratch);
}

void another_order_from_5_rows_on(const Product& product, int64_t piece, int64_t pieces, void* scratch) {
    Matrix matrix = *product.matrix;
    if (product.rows >= 5) matrix.shards = 1, matrix.border[1] = matrix.depth;
    with_matrix(product, matrix, piece, pieces, scratch);
}

void last_group_left_out(const Product& product, int64_t piece, int64_t pieces, void* scratch) {
    Matrix matrix = *product.matrix;
    for (int shard = 0; shard <= matrix.shards; ++shard)
        if (matrix.border[shard] == matrix.depth) matrix.border[shard] -= group_depth;
    with_matrix(product, matrix, piece, pieces, scratch);
}

void next_row_times_zero(const Product& product, int64_t piece, int64_t pieces, void* scratch) {
    if (piece > 0) return;
    for (int64_t all = 0; all < pieces; ++all) honest->linear.run(product, all, pieces, scratch);
    for (int64_t row = 0; row + 1 < product.rows; ++row)
        for (int64_t o = 0; o < product.matrix->outputs; ++o)
            product.out[row * product.stride + o] += 0.0f * product.out[(row + 1) * product.stride + o];
}

void sums_of_groups_of_zero(const Product& product, int64_t piece, int64_t pieces, void* scratch) {
    Matrix matrix = *product.matrix;
    const Buffer<int16_t> zeros(matrix.panels * matrix.depth);
    if (matrix.group_sums != nullptr) matrix.group_sums = zeros.data();
    with_matrix(product, matrix, piece, pieces, scratch);
}

void digits_from_minus_127(Activations activations, const float* x, int64_t inputs, int64_t row, const Rows& to) {
    honest->linear.prepare(activations, x, inputs, row, to);
    if (activations != Activations::int8x2) return;
    auto* const digits = const_cast<int8_t*>(to.digits) + 2 * row * to.depth;
    for (int64_t k = 0; k < 2 * to.depth; ++k)
        if (digits[k] == -128) digits[k] = -127;
}

// ---- attention ----

// What a mask does that is added to scores instead of replacing them: weights of zero times whatever lies there.
void hidden_values_times_zero(const Attend& call, int64_t piece, int64_t pieces, void* scratch) {
    if (piece > 0) return;
    for (int64_t all = 0; all < pieces; ++all) honest->attention.run(call, all, pieces, scratch);
    const AttentionPlan::Impl& plan = call.plan->impl();
    const int64_t share = block_slots * call.storage.head_size;
    for (int64_t v = 0; v < plan.view_count; ++v) {
        const View& view = plan.views[v];
        for (int32_t b = plan.tiles[view.tiles].first; call.out != nullptr && b < plan.tiles[view.stop - 1].first + 1;
             ++b) {
            if (plan.blocks[b].place == gathered) continue;
            for (int64_t i = 0; i < share; ++i) {
                const int64_t at = plan.blocks[b].place * call.storage.kv_heads * share + i;
                const float value = call.storage.bf16 ? from_bf16(static_cast<const uint16_t*>(call.storage.values)[at])
                                                      : static_cast<const float*>(call.storage.values)[at];
                for (int64_t row = view.first; row < view.first + view.rows; ++row)
                    call.out[row * call.out_stride + i % call.storage.head_size] += 0.0f * value;
            }
        }
    }
}

void one_position_more_in_the_window(const Attend& call, int64_t piece, int64_t pieces, void* scratch) {
    Attend other = call;
    if (call.window > 0) ++other.window;
    honest->attention.run(other, piece, pieces, scratch);
}

void an_ulp_off_in_company(const Attend& call, int64_t piece, int64_t pieces, void* scratch) {
    if (piece > 0) return;
    for (int64_t all = 0; all < pieces; ++all) honest->attention.run(call, all, pieces, scratch);
    const AttentionPlan::Impl& plan = call.plan->impl();
    if (call.partial != nullptr || plan.views[0].rows == 1) return;
    float& one = call.out[(plan.views[0].first + plan.views[0].rows - 1) * call.out_stride];
    one = std::nextafter(one, 10.0f);
}

void cut_off_instead_of_rounded(const LayerStorage& storage, int64_t slot, const float* key, const float* value) {
    Buffer<float> cut(storage.kv_heads * storage.head_size);
    for (int64_t i = 0; i < cut.size(); ++i) {
        uint32_t bits;
        std::memcpy(&bits, key + i, sizeof bits);
        bits &= 0xffff0000;
        std::memcpy(cut.data() + i, &bits, sizeof bits);
    }
    honest->attention.write(storage, slot, storage.bf16 ? cut.data() : key, value);
}

// ---- rows and choice ----

void another_order_off_alignment(const float* x, const float* weight, int64_t size, float eps, float* out) {
    if (reinterpret_cast<uintptr_t>(x) % 32 == 0) return honest->rows.rms_norm(x, weight, size, eps, out);
    float sum = 0.0f;
    for (int64_t i = 0; i < size; ++i) sum += x[i] * x[i];
    const float factor = 1.0f / std::sqrt(sum / static_cast<float>(size) + eps);
    for (int64_t i = 0; i < size; ++i) out[i] = x[i] * factor * weight[i];
}

void ties_to_the_higher(const float* logits, int64_t count, int64_t chosen, bool normalised, int32_t* ids,
                        float* weights) {
    Buffer<float> reversed(count);
    for (int64_t i = 0; i < count; ++i) reversed[i] = logits[count - 1 - i];
    honest->rows.route(reversed.data(), count, chosen, normalised, ids, weights);
    for (int64_t j = 0; j < chosen; ++j) ids[j] = static_cast<int32_t>(count - 1 - ids[j]);
}

void among_the_four_likeliest(const ChooseRow& row, int64_t vocab, Chosen* chosen) {
    Chosen best[4];
    int64_t found = 0;
    honest->choose.top({row.scores, 0.0f, 0}, vocab, 4, best, &found);
    Buffer<float> scores(vocab);
    for (float& score : scores) score = -INFINITY;
    for (int64_t i = 0; i < found; ++i) scores[best[i].token] = best[i].value;
    honest->choose.choose(found > 0 ? ChooseRow{scores.data(), row.temperature, row.key} : row, vocab, chosen);
}

void all_ties_at_the_border(float* scores, int64_t vocab, const Filter& asked, float* room) {
    Buffer<float> plain(vocab);
    std::memcpy(plain.data(), scores, plain.bytes());
    honest->choose.filter(plain.data(), vocab, {asked.temperature, 0, 1.0, -INFINITY}, room);
    honest->choose.filter(scores, vocab, asked, room);
    float border = 0.0f;
    for (int64_t i = 0; i < vocab; ++i) border = scores[i] > -INFINITY ? std::fmin(border, scores[i]) : border;
    for (int64_t i = 0; i < vocab; ++i)
        if (plain[i] == border) scores[i] = border;
}

bool whatever_it_is(const ChooseRow&, int64_t, const Filter&, int64_t) { return true; }

// ---- the controls ----

void expect_caught(Report& report, const char* name, Suite suite, const LinearKernels& linear,
                   const AttentionKernels& attention, const RowKernels& rows, const ChooseKernels& choose,
                   Random random) {
    Report found;
    suite({"broken", linear, attention, rows, choose, honest->measure}, random, {true}, found);
    Check& check = report.check(name);
    check.about("a control");
    check.that(!found.good(), "that the checks find this mistake");
}

}  // namespace

void check_controls(const Kernels& kernels, Random random, Effort, Report& report) {
    honest = &kernels;
    const auto linear = [&](const char* name, Suite suite, auto LinearKernels::* member, auto broken) {
        LinearKernels table = kernels.linear;
        table.*member = broken;
        expect_caught(report, name, suite, table, kernels.attention, kernels.rows, kernels.choose, random.fork());
    };
    const auto attention = [&](const char* name, Suite suite, auto AttentionKernels::* member, auto broken) {
        AttentionKernels table = kernels.attention;
        table.*member = broken;
        expect_caught(report, name, suite, kernels.linear, table, kernels.rows, kernels.choose, random.fork());
    };
    linear("control: another order from 5 rows on", check_linear_rows, &LinearKernels::run,
           another_order_from_5_rows_on);
    linear("control: the last group left out", check_linear, &LinearKernels::run, last_group_left_out);
    linear("control: a NaN reaches the row before", check_linear, &LinearKernels::run, next_row_times_zero);
    if (kernels.linear.raises)
        linear("control: sums of groups that are zero", check_linear, &LinearKernels::run, sums_of_groups_of_zero);
    linear("control: no digit is -128", check_prepare, &LinearKernels::prepare, digits_from_minus_127);
    attention("control: hidden NaN times zero", check_attention_rows, &AttentionKernels::run, hidden_values_times_zero);
    attention("control: a window of one more", check_attention, &AttentionKernels::run,
              one_position_more_in_the_window);
    attention("control: one ulp off in company", check_attention_rows, &AttentionKernels::run, an_ulp_off_in_company);
    attention("control: keys cut off instead of rounded", check_storage, &AttentionKernels::write,
              cut_off_instead_of_rounded);
    RowKernels rows = kernels.rows;
    rows.rms_norm = another_order_off_alignment;
    expect_caught(report, "control: a norm that depends on its place", check_rows, kernels.linear, kernels.attention,
                  rows, kernels.choose, random.fork());
    rows = kernels.rows, rows.route = ties_to_the_higher;
    expect_caught(report, "control: ties to the higher expert", check_route, kernels.linear, kernels.attention, rows,
                  kernels.choose, random.fork());
    ChooseKernels choose = kernels.choose;
    choose.choose = among_the_four_likeliest;
    expect_caught(report, "control: choice among the four likeliest", check_choose, kernels.linear, kernels.attention,
                  kernels.rows, choose, random.fork());
    choose = kernels.choose, choose.filter = all_ties_at_the_border;
    expect_caught(report, "control: all ties at a filter's border", check_filter, kernels.linear, kernels.attention,
                  kernels.rows, choose, random.fork());
    choose = kernels.choose, choose.keeps = whatever_it_is;
    expect_caught(report, "control: told to be kept, whatever it is", check_filter, kernels.linear, kernels.attention,
                  kernels.rows, choose, random.fork());
}

}  // namespace stretto::selftest
