#include "attention_case.hpp"

#include <algorithm>
#include <atomic>
#include <thread>

namespace stretto::selftest {

std::string HeadShape::name() const {
    return text("%s, %lld x %lld heads of %lld", bf16 ? "bf16" : "fp32", static_cast<long long>(kv_heads),
                static_cast<long long>(group), static_cast<long long>(size));
}

HeadShape random_heads(Random& random) {
    const int64_t sizes[] = {2, 6, 14, 16, 18, 30, 32, 40, 64, 72, 80, 96, 128, 130};
    const int64_t size = random.one_in(12) ? 256 : sizes[random.below(14)];
    const int64_t group = random.one_in(10) ? random.between(33, 45) : random.between(1, 9);
    return {random.one_in(2), random.between(1, size > 64 || group > 9 ? 2 : 4), group, size};
}

Lane::Lane(const HeadShape& shape, int64_t blocks, Random& random)
    : shape(shape), keys(blocks * 16 * shape.kv_width() * (shape.bf16 ? 2 : 4)), values(keys.size()), random_(random) {
    for (int64_t block = 0; block < blocks; ++block) blocks_.push_back(block);
    random.shuffle(blocks_);
}

LayerStorage Lane::storage() const { return {keys.data(), values.data(), shape.bf16, shape.kv_heads, shape.size}; }

int64_t Lane::key_place(int64_t slot, int64_t head, int64_t d) const {
    const int64_t part = (slot / 16 * shape.kv_heads + head) * 16 * shape.size, s = slot % 16;
    return part + (shape.bf16 ? (d / 2 * 16 + s) * 2 + d % 2 : d * 16 + s);
}

int64_t Lane::value_place(int64_t slot, int64_t head, int64_t d) const {
    const int64_t part = (slot / 16 * shape.kv_heads + head) * 16 * shape.size, s = slot % 16;
    return part + (shape.bf16 ? (s / 2 * shape.size + d) * 2 + s % 2 : s * shape.size + d);
}

double Lane::element(const Buffer<char>& part, int64_t place) const {
    if (shape.bf16) return from_bf16(reinterpret_cast<const uint16_t*>(part.data())[place]);
    return reinterpret_cast<const float*>(part.data())[place];
}

int64_t Lane::scratch() {
    if (slots_.empty()) {
        for (int i = 0; i < 3; ++i) {
            for (int64_t s = 0; s < 16; ++s) slots_.push_back(blocks_.back() * 16 + s);
            blocks_.pop_back();
        }
        random_.shuffle(slots_);
    }
    const int64_t slot = slots_.back();
    slots_.pop_back();
    return slot;
}

std::vector<int64_t> Lane::place(int64_t start, int64_t count, int64_t scatter) {
    std::vector<int64_t> slots;
    int64_t block = -1;
    bool scattered = false;
    for (int64_t position = start; position < start + count; ++position) {
        if (position == start || position % 16 == 0) {
            scattered = random_.one_in(scatter);
            if (!scattered) block = blocks_.back(), blocks_.pop_back();
        }
        slots.push_back(scattered ? scratch() : block * 16 + position % 16);
    }
    return slots;
}

void Lane::fill(const Kernels& kernels, int64_t slot, Random& random) {
    Buffer<float> key(shape.kv_width()), value(shape.kv_width());
    for (float& x : key) x = random.normal();
    for (float& x : value) x = random.normal();
    kernels.attention.write(storage(), slot, key.data(), value.data());
}

std::vector<Entry> ViewCase::entries() const {
    std::vector<Entry> all;
    for (const Span& span : spans)
        for (size_t i = 0; i < span.slots.size(); ++i)
            all.push_back({span.slots[i], span.start + static_cast<int64_t>(i), by_all});
    all.insert(all.end(), extras.begin(), extras.end());
    return all;
}

AttentionPlan PassCase::plan() const {
    std::vector<int64_t> words;
    for (const ViewCase& view : views) {
        words.insert(words.end(), {view.first, view.rows, view.mutual, static_cast<int64_t>(view.spans.size())});
        for (const Span& span : view.spans)
            words.insert(words.end(), {static_cast<int64_t>(reinterpret_cast<intptr_t>(span.slots.data())), span.start,
                                       static_cast<int64_t>(span.slots.size())});
        words.push_back(static_cast<int64_t>(view.extras.size()));
        for (const Entry& extra : view.extras) words.insert(words.end(), {extra.slot, extra.index, extra.order});
    }
    return AttentionPlan(words.data(), static_cast<int64_t>(words.size()), index.data(), rows());
}

int64_t PassCase::groups() const {
    int64_t largest = 0;
    for (const ViewCase& view : views)
        for (const Entry& entry : view.entries()) largest = std::max(largest, entry.index);
    return largest / group_lanes + 1;
}

Attend attend(const Lane& lane, const PassCase&, const AttentionPlan& plan, const Call& call, Buffer<float>& out,
              int64_t out_stride) {
    Attend attend{};
    attend.plan = &plan;
    attend.storage = lane.storage();
    attend.query = call.query.data(), attend.query_stride = lane.shape.width();
    attend.out = out.data(), attend.out_stride = out_stride;
    attend.heads = lane.shape.heads();
    attend.scale = call.scale, attend.cap = call.cap, attend.window = call.window;
    attend.bias = call.bias.size() > 0 ? call.bias.data() : nullptr, attend.bias_heads = call.bias_heads;
    return attend;
}

void run_shuffled(const AttentionKernels& kernels, const Attend& call, int threads, Random& random) {
    static Buffer<char> scratch(attention_scratch);
    scratch.poison();
    const int64_t pieces = kernels.pieces(call, threads);
    shuffled(pieces, random, [&](int64_t piece) { kernels.run(call, piece, pieces, scratch.data()); });
}

void run_on_threads(const AttentionKernels& kernels, const Attend& call, int threads) {
    const int64_t pieces = kernels.pieces(call, threads);
    std::atomic<int64_t> next{0};
    std::vector<std::thread> team;
    for (int i = 0; i < threads; ++i)
        team.emplace_back([&] {
            const Buffer<char> scratch(attention_scratch);
            for (int64_t piece; (piece = next++) < pieces;) kernels.run(call, piece, pieces, scratch.data());
        });
    for (std::thread& thread : team) thread.join();
}

}  // namespace stretto::selftest
