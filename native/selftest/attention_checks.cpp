// Attention over random views against double precision: outputs, masses and partial results.
#include <cmath>

#include "attention_case.hpp"

namespace stretto::selftest {
namespace {

void fill_all(const Kernels& kernels, Lane& lane, const ViewCase& view, Random& random) {
    for (const Entry& entry : view.entries()) lane.fill(kernels, entry.slot, random);
}

// The context 0...count - 1, cut into spans anywhere.
std::vector<Span> context(Lane& lane, int64_t count, Random& random) {
    std::vector<Span> spans;
    const std::vector<int64_t> slots = lane.place(0, count, 4);
    for (int64_t start = 0; start < count;) {
        const int64_t size = random.one_in(2) ? count - start : random.between(1, count - start);
        spans.push_back({start, {slots.begin() + start, slots.begin() + start + size}});
        start += size;
    }
    return spans;
}

enum Kind { plain, tree, mutual, wild, kinds };

// A view at the end of the pass; its rows and their indices join it.
void add_view(PassCase& pass, Lane& lane, Kind kind, int64_t length, int64_t rows, Random& random) {
    ViewCase view{pass.rows(), rows, kind == mutual, context(lane, length, random), {}};
    const int64_t ancestors = kind == tree ? random.between(0, 20) : 0;
    for (int64_t i = 0; i < ancestors; ++i) view.extras.push_back({lane.scratch(), length + i, by_all});
    const std::vector<int64_t> own = lane.place(length + ancestors, rows, kind == tree ? 1 : 3);
    for (int64_t i = 0; i < rows; ++i) {
        view.extras.push_back({own[static_cast<size_t>(i)], length + ancestors + i, i});
        pass.index.push_back(length + ancestors + i);
    }
    if (kind == wild) {
        // Entries that others stand at already, in no order, seen from any row on; and a span over another.
        for (int64_t i = random.between(0, 60); i > 0; --i)
            view.extras.push_back({lane.scratch(), random.below(length + 40), random.between(by_all, rows)});
        const int64_t start = random.below(length + 1);
        view.spans.push_back({start, lane.place(start, random.between(0, 50), 3)});
        random.shuffle(view.extras);
        for (int64_t i = pass.rows() - rows; i < pass.rows(); ++i)
            pass.index[static_cast<size_t>(i)] = random.below(length + 60);
    }
    pass.views.push_back(std::move(view));
}

Call random_call(const Lane& lane, const PassCase& pass, Random& random) {
    Call call;
    call.query = Buffer<float>(pass.rows() * lane.shape.width());
    const float sharp = random.one_in(4) ? 6.0f : 1.0f;
    for (float& x : call.query) x = sharp * random.normal();
    call.scale = 1.0f / std::sqrt(static_cast<float>(lane.shape.size));
    if (random.one_in(3)) call.cap = 4.0f + 30.0f * std::fabs(random.unit());
    if (random.one_in(3)) call.window = random.between(1, 400);
    if (pass.views.size() > 1 || random.one_in(2)) return call;
    const ViewCase& view = pass.views[0];
    call.bias_heads = random.one_in(2) ? 1 : lane.shape.kv_heads;
    call.bias = Buffer<float>(view.rows * call.bias_heads * static_cast<int64_t>(view.entries().size()));
    for (float& x : call.bias) x = random.one_in(5) ? -INFINITY : random.normal();
    return call;
}

std::string describe(const Lane& lane, const PassCase& pass, const Call& call) {
    return lane.shape.name() + text(", %zu views, %lld rows, first with %zu entries, cap %g, window %lld%s",
                                    pass.views.size(), static_cast<long long>(pass.rows()),
                                    pass.views[0].entries().size(), static_cast<double>(call.cap),
                                    static_cast<long long>(call.window), call.bias.size() > 0 ? ", bias" : "");
}

struct Checks {
    Check &values, &mass, &partial, &merge;
};

// Partial results, group by group, and what merging them gives.
void check_partial(const Kernels& kernels, const Checks& checks, const Lane& lane, const PassCase& pass,
                   const Call& call, const Buffer<float>& whole, int64_t stride, Random& random) {
    const ViewCase& view = pass.views[0];
    const int64_t size = lane.shape.size, groups = pass.groups(), each = 2 + size, heads = lane.shape.heads();
    const AttentionPlan plan = pass.plan();
    Buffer<float> partial(view.rows * heads * groups * each), untouched(whole.size()), out(untouched), merged(size);
    Attend attended = attend(lane, pass, plan, call, out, stride);
    attended.partial = partial.data(), attended.groups = groups;
    run_shuffled(kernels.attention, attended, static_cast<int>(random.between(1, 4)), random);
    checks.partial.about(describe(lane, pass, call)), checks.merge.about(describe(lane, pass, call));
    checks.partial.same(out, untouched);
    for (int64_t row = 0; row < view.rows; ++row)
        for (int64_t head = 0; head < heads; ++head) {
            const float* const of_row = partial.data() + (row * heads + head) * groups * each;
            kernels.attention.merge(of_row, groups, size, merged.data());
            checks.merge.same(merged.data(), whole.data() + (view.first + row) * stride + head * size, size);
            if (head > 2 && head + 1 < heads) continue;
            const Exact want = exact(lane, pass, view, call, row, head);
            for (int64_t g = 0; g < groups; ++g) {
                const float* const got = of_row + g * each;
                const Exact::Group& group = want.groups[static_cast<size_t>(g)];
                checks.partial.near(got[0], static_cast<double>(static_cast<float>(group.top)),
                                    want.top_allowed + std::fabs(group.top) * 0x1p-22);
                const double factor = std::exp(got[0] - group.top);  // to what the exact maximum would have given
                checks.partial.near(got[1] * factor, group.sum, group.sum * group.share);
                for (int64_t d = 0; d < size; ++d)
                    checks.partial.near(got[2 + d] * factor, group.out[static_cast<size_t>(d)],
                                        group.allowed[static_cast<size_t>(d)]);
            }
        }
}

void check_pass(const Kernels& kernels, const Checks& checks, const Lane& lane, const PassCase& pass, Random& random) {
    const Call call = random_call(lane, pass, random);
    const HeadShape& shape = lane.shape;
    const int64_t stride = shape.width() + random.below(5);
    const bool single = pass.views.size() == 1, weighed = single && random.one_in(2);
    const auto entries = static_cast<int64_t>(pass.views[0].entries().size());
    const AttentionPlan plan = pass.plan();
    Buffer<float> out(pass.rows() * stride), mass(weighed ? pass.views[0].rows * shape.kv_heads * entries : 0);
    for (float& x : mass) x = 0.0f;
    Attend attended = attend(lane, pass, plan, call, out, stride);
    if (weighed) attended.mass = mass.data();
    run_shuffled(kernels.attention, attended, static_cast<int>(random.between(1, 5)), random);
    checks.values.about(describe(lane, pass, call)), checks.mass.about(describe(lane, pass, call));
    for (const ViewCase& view : pass.views) {
        const int64_t step = view.rows > 12 ? view.rows / 8 : 1;
        for (int64_t row = 0; row < view.rows; row += step) {
            std::vector<double> of_group, allowed;
            for (int64_t head = 0; head < shape.heads(); ++head) {
                if (!weighed && head > 2 && head + 1 < shape.heads()) continue;
                const Exact want = exact(lane, pass, view, call, row, head);
                const float* const got = out.data() + (view.first + row) * stride + head * shape.size;
                for (int64_t d = 0; d < shape.size; ++d)
                    checks.values.near(got[d], want.out[static_cast<size_t>(d)], want.allowed[static_cast<size_t>(d)]);
                if (!weighed) continue;
                of_group.resize(want.mass.size()), allowed.resize(want.mass.size());
                for (size_t e = 0; e < want.mass.size(); ++e)
                    of_group[e] += want.mass[e], allowed[e] += want.mass_allowed[e];
                if ((head + 1) % shape.group != 0) continue;
                const float* const sums = mass.data() + (row * shape.kv_heads + head / shape.group) * entries;
                for (size_t e = 0; e < of_group.size(); ++e)
                    checks.mass.near(sums[e], of_group[e],
                                     allowed[e] + of_group[e] * static_cast<double>(shape.group) * half_ulp);
                of_group.clear(), allowed.clear();
            }
        }
    }
    if (single) check_partial(kernels, checks, lane, pass, call, out, stride, random);
}

}  // namespace

void check_attention(const Kernels& kernels, Random random, Effort effort, Report& report) {
    const Checks checks{report.check("attention: values"), report.check("attention: mass"),
                        report.check("attention: partial results"), report.check("attention: merged partial results")};
    for (int64_t i = 0; i < effort.of(64); ++i) {
        Lane lane(random_heads(random), 420, random);
        PassCase pass;
        const int64_t views = random.one_in(2) ? 1 : random.between(2, 5);
        for (int64_t view = 0; view < views; ++view) {
            const int64_t length = random.one_in(5) ? 0 : random.below(random.one_in(3) ? 700 : 150);
            add_view(pass, lane, static_cast<Kind>(random.below(kinds)), length,
                     random.between(1, random.one_in(5) ? 40 : 6), random);
            fill_all(kernels, lane, pass.views.back(), random);
        }
        check_pass(kernels, checks, lane, pass, random);
    }
}

}  // namespace stretto::selftest
