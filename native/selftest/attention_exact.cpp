// Attention in double precision, with bounds on what rounding may do to each number.
#include <algorithm>
#include <cmath>

#include "attention_case.hpp"

namespace stretto::selftest {
namespace {

struct Seen {
    int64_t number;  // of the entry
    Entry entry;
    double score, off;  // off: how far rounding may have taken the score
};

// The entries that a row sees, with their scores.
std::vector<Seen> seen_by(const Lane& lane, const PassCase& pass, const ViewCase& view, const Call& call, int64_t row,
                          int64_t head) {
    const HeadShape& shape = lane.shape;
    const int64_t kv_head = head / shape.group;
    const float* query = call.query.data() + (view.first + row) * shape.width() + head * shape.size;
    std::vector<double> scaled;
    for (int64_t d = 0; d < shape.size; ++d) {
        const float x = query[d] * call.scale;
        scaled.push_back(shape.bf16 ? from_bf16(to_bf16(x)) : x);
    }
    const std::vector<Entry> entries = view.entries();
    const auto count = static_cast<int64_t>(entries.size());
    const int64_t own = pass.index[static_cast<size_t>(view.first + row)];
    std::vector<Seen> seen;
    for (int64_t e = 0; e < count; ++e) {
        const Entry& entry = entries[static_cast<size_t>(e)];
        if (!view.mutual && entry.order > row) continue;
        if (call.window > 0 && entry.index <= own - call.window) continue;
        double bias = 0;
        if (call.bias.size() > 0)
            bias = call.bias[(row * call.bias_heads + (call.bias_heads == 1 ? 0 : kv_head)) * count + e];
        if (bias == -INFINITY) continue;
        double score = 0, size = 0;
        for (int64_t d = 0; d < shape.size; ++d) {
            const double product = scaled[static_cast<size_t>(d)] * lane.key(entry.slot, kv_head, d);
            score += product, size += std::fabs(product);
        }
        double off = size * (2.0 * static_cast<double>(shape.size) + 2.0) * half_ulp;
        if (call.cap > 0)
            off += (4 * call.cap + 2 * std::fabs(score)) * half_ulp, score = call.cap * std::tanh(score / call.cap);
        off += (std::fabs(score) + std::fabs(bias)) * half_ulp;
        seen.push_back({e, entry, score + bias, off});
    }
    return seen;
}

}  // namespace

Exact exact(const Lane& lane, const PassCase& pass, const ViewCase& view, const Call& call, int64_t row, int64_t head) {
    const int64_t size = lane.shape.size, kv_head = head / lane.shape.group;
    const std::vector<Seen> seen = seen_by(lane, pass, view, call, row, head);
    Exact result;
    result.groups.resize(static_cast<size_t>(pass.groups()));
    result.out.resize(static_cast<size_t>(size)), result.allowed = result.out;
    result.mass.resize(view.entries().size()), result.mass_allowed = result.mass;
    double top = -INFINITY;
    for (const Seen& s : seen) {
        Exact::Group& group = result.groups[static_cast<size_t>(s.entry.index / group_lanes)];
        group.any = true;
        group.top = std::fmax(group.top, s.score), top = std::fmax(top, s.score);
        result.top_allowed = std::fmax(result.top_allowed, s.off);
    }
    for (Exact::Group& group : result.groups) group.out.resize(static_cast<size_t>(size)), group.allowed = group.out;
    // Sums and merges round once for each entry and a few times for each group.
    const double adding =
        (static_cast<double>(seen.size()) + 8.0 * static_cast<double>(result.groups.size()) + 16.0) * half_ulp;
    double sum = 0, sum_off = 0;
    std::vector<double> off(static_cast<size_t>(size));
    for (const Seen& s : seen) {
        Exact::Group& group = result.groups[static_cast<size_t>(s.entry.index / group_lanes)];
        const double weight = std::exp(s.score - top), within = std::exp(s.score - group.top);
        // Of the weight: the scores of the entry and of the largest, their difference, and the exponential.
        const double share = s.off + result.top_allowed + 4 * (top - s.score) * half_ulp + adding + 8 * half_ulp;
        const double stored = share + (lane.shape.bf16 ? 0x1p-8 : 0);
        sum += weight, sum_off += weight * share;
        group.sum += within, group.share += within * share;
        for (int64_t d = 0; d < size; ++d) {
            const double value = lane.value(s.entry.slot, kv_head, d);
            const auto i = static_cast<size_t>(d);
            result.out[i] += weight * value, off[i] += weight * std::fabs(value) * stored;
            group.out[i] += within * value, group.allowed[i] += within * std::fabs(value) * stored + 1e-35;
        }
        result.mass[static_cast<size_t>(s.number)] += weight;
        result.mass_allowed[static_cast<size_t>(s.number)] += weight * share;
    }
    if (seen.empty()) return result;
    for (size_t d = 0; d < off.size(); ++d) {
        result.out[d] /= sum;
        result.allowed[d] = off[d] / sum + std::fabs(result.out[d]) * (sum_off / sum + 2 * half_ulp) + 1e-35;
    }
    for (size_t e = 0; e < result.mass.size(); ++e) {
        result.mass[e] /= sum;
        result.mass_allowed[e] = result.mass_allowed[e] / sum + result.mass[e] * (sum_off / sum + 2 * half_ulp) + 1e-35;
    }
    for (Exact::Group& group : result.groups)
        if (group.sum > 0) group.share /= group.sum;
    return result;
}

}  // namespace stretto::selftest
