#include "plan.hpp"

#include <algorithm>
#include <limits>
#include <vector>

namespace stretto {

struct AttentionPlan::Impl::Memory {
    std::vector<View> views;
    std::vector<Tile> tiles;
    std::vector<Block> blocks;
    std::vector<Lanes> lanes;
    std::vector<int64_t> index, chunks[row_sizes];
};

AttentionPlan::Impl::Impl() : memory(std::make_unique<Memory>()) {}
AttentionPlan::Impl::~Impl() = default;

namespace {

using Memory = AttentionPlan::Impl::Memory;

int32_t narrow(int64_t x) {
    using Limits = std::numeric_limits<int32_t>;
    return static_cast<int32_t>(std::clamp<int64_t>(x, Limits::min(), Limits::max()));
}

bool before(const Block& block, int64_t first, int32_t level) {
    const int64_t group = block.first / group_lanes, other = first / group_lanes;
    if (group != other) return group < other;
    return block.level != level ? block.level < level : block.first < first;
}

// Whether 16 slots are a storage block, in order.
bool aligned(const int64_t* slots) {
    int64_t differ = slots[0] % block_slots;
    for (int64_t i = 1; i < block_slots; ++i) differ |= slots[i] ^ (slots[0] + i);
    return differ == 0;
}

// Lays the entries of one view out in blocks, kept in ascending order of group, level and index.
class Layout {
public:
    explicit Layout(Memory& memory) : memory_(memory), begin_(memory.blocks.size()) {}

    // Positions start...start + count - 1, seen by all rows; numbered from `entry`.
    void span(const int64_t* slots, int64_t start, int64_t count, int64_t entry) {
        int64_t i = 0;
        while (i < count) {
            const int64_t index = start + i, room = block_slots - index % block_slots;
            if (room == block_slots && count - i >= room && later(index) && aligned(slots + i)) {
                memory_.blocks.push_back({index, 0, narrow(slots[i] / block_slots), -1, narrow(entry + i), seen_by_all,
                                          seen_by_all, 0xffff});
                last_ = memory_.blocks.size() - 1;
                i += room;
            } else {
                const int64_t stop = std::min(count, i + room);
                for (; i < stop; ++i) place(slots[i], start + i, seen_by_all, entry + i);
            }
        }
    }

    // An entry whose index is taken already goes to the next level.
    void place(int64_t slot, int64_t index, int64_t order, int64_t entry) {
        const int64_t lane = index % block_slots;
        Block* block = &block_at(index - lane, 0);
        while (block->present >> lane & 1) block = &block_at(index - lane, block->level + 1);
        const bool fits = slot % block_slots == lane;
        const int32_t home = fits ? narrow(slot / block_slots) : gathered;
        block->place = block->present == 0 || block->place == home ? home : gathered;
        block->present |= 1u << lane;
        block->least = std::min(block->least, narrow(order));
        block->most = std::max(block->most, narrow(order));
        Lanes& lanes = memory_.lanes[static_cast<size_t>(block->lanes)];
        lanes.slot[lane] = narrow(slot);
        lanes.order[lane] = narrow(order);
        lanes.entry[lane] = narrow(entry);
    }

    // Groups the blocks into tiles; returns how many blocks there are.
    size_t finish() {
        for (size_t i = begin_; i < memory_.blocks.size(); ++i) {
            const Block& block = memory_.blocks[i];
            const bool fresh = i == begin_ || memory_.blocks[i - 1].level != block.level ||
                               memory_.tiles.back().group != block.first / group_lanes;
            if (fresh) memory_.tiles.push_back({block.first / group_lanes, static_cast<int32_t>(i), 0});
            ++memory_.tiles.back().blocks;
        }
        return memory_.blocks.size() - begin_;
    }

private:
    // Whether a block of level 0 at `first` comes behind all there are.
    bool later(int64_t first) const {
        return memory_.blocks.size() == begin_ || before(memory_.blocks.back(), first, 0);
    }

    Block& block_at(int64_t first, int32_t level) {
        std::vector<Block>& blocks = memory_.blocks;
        if (last_ < blocks.size() && blocks[last_].first == first && blocks[last_].level == level) return blocks[last_];
        auto found = blocks.end();
        if (blocks.size() > begin_ && !before(blocks.back(), first, level))
            found = std::partition_point(blocks.begin() + static_cast<std::ptrdiff_t>(begin_), blocks.end(),
                                         [&](const Block& block) { return before(block, first, level); });
        last_ = static_cast<size_t>(found - blocks.begin());
        if (found != blocks.end() && found->first == first && found->level == level) return *found;
        const int32_t number = static_cast<int32_t>(memory_.lanes.size());
        memory_.lanes.emplace_back();
        std::fill_n(memory_.lanes.back().slot, block_slots, -1);
        std::fill_n(memory_.lanes.back().order, block_slots, seen_by_all);
        std::fill_n(memory_.lanes.back().entry, block_slots, 0);
        return *blocks.insert(found, {first, level, gathered, number, 0, std::numeric_limits<int32_t>::max(),
                                      std::numeric_limits<int32_t>::min(), 0});
    }

    Memory& memory_;
    size_t begin_;
    size_t last_ = std::numeric_limits<size_t>::max();  // where block_at looked last
};

// At most how many blocks the views' spans have.
size_t span_blocks(const int64_t* word, const int64_t* end) {
    int64_t blocks = 0;
    while (word < end) {
        int64_t spans = word[3];
        for (word += 4; spans > 0; --spans, word += 3) blocks += word[2] / block_slots + 2;
        word += 1 + 3 * word[0];
    }
    return static_cast<size_t>(blocks);
}

// Reads one view's description and returns what follows it.
const int64_t* read_view(const int64_t* word, Memory& memory, std::vector<int64_t>& costs) {
    View view{word[0], word[1], 0, word[2] != 0, static_cast<int32_t>(memory.tiles.size()), 0};
    int64_t spans = word[3];
    word += 4;
    Layout layout(memory);
    for (; spans > 0; --spans, word += 3) {
        layout.span(reinterpret_cast<const int64_t*>(static_cast<intptr_t>(word[0])), word[1], word[2], view.entries);
        view.entries += word[2];
    }
    const int64_t extras = *word++;
    for (int64_t i = 0; i < extras; ++i, word += 3) layout.place(word[0], word[1], word[2], view.entries++);
    costs.push_back(view.rows * static_cast<int64_t>(layout.finish()));
    view.stop = static_cast<int32_t>(memory.tiles.size());
    memory.views.push_back(view);
    return word;
}

}  // namespace

AttentionPlan::AttentionPlan(const int64_t* script, int64_t size, const int64_t* index, int64_t pass_rows)
    : impl_(std::make_unique<Impl>()) {
    Memory& memory = *impl_->memory;
    memory.index.assign(index, index + pass_rows);
    memory.blocks.reserve(span_blocks(script, script + size));
    std::vector<int64_t> costs;
    for (const int64_t *word = script, *end = script + size; word < end;) word = read_view(word, memory, costs);

    // The largest pieces of work first, so that the threads finish together.
    std::vector<size_t> order(memory.views.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return costs[a] > costs[b]; });
    std::vector<View> sorted;
    sorted.reserve(order.size());
    for (const size_t i : order) sorted.push_back(memory.views[i]);
    memory.views.swap(sorted);

    for (int s = 0; s < row_sizes; ++s) {
        std::vector<int64_t>& chunks = memory.chunks[s];
        chunks.reserve(memory.views.size() + 1);
        chunks.push_back(0);
        for (const View& view : memory.views) chunks.push_back(chunks.back() + ((view.rows - 1) >> s) + 1);
        impl_->chunks[s] = chunks.data();
    }
    impl_->view_count = static_cast<int64_t>(memory.views.size());
    impl_->views = memory.views.data();
    impl_->tiles = memory.tiles.data();
    impl_->blocks = memory.blocks.data();
    impl_->lanes = memory.lanes.data();
    impl_->index = memory.index.data();
}

AttentionPlan::~AttentionPlan() = default;
AttentionPlan::AttentionPlan(AttentionPlan&&) noexcept = default;

}  // namespace stretto
