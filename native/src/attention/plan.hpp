// What a plan holds: per view its blocks of 16 logical positions, in tiles of one group each. Plain pointers, so that
// the paths' translation units compile no container code.
#pragma once

#include <cstdint>
#include <memory>

#include "attention.hpp"

namespace stretto {

constexpr int32_t gathered = -1;
constexpr int32_t seen_by_all = -1;

// The entries of a block, lane by lane; lanes without one have slot -1.
struct Lanes {
    int32_t slot[block_slots];
    int32_t order[block_slots];
    int32_t entry[block_slots];
};

struct Block {
    int64_t first;        // logical index of lane 0
    int32_t level;        // how many entries with the same indices come before
    int32_t place;        // the storage block, where lane l is its slot l; or `gathered`
    int32_t lanes;        // number of its Lanes, or -1: all 16 present, in place, seen by all, entries in a row
    int32_t entry;        // number of lane 0's entry, where there are no Lanes
    int32_t least, most;  // of the orders
    uint32_t present;     // bit l: lane l has an entry
};

// The blocks of one group and level, up to 8, ascending.
struct Tile {
    int64_t group;
    int32_t first, blocks;
};

struct View {
    int64_t first, rows;  // in the pass
    int64_t entries;
    bool mutual;
    int32_t tiles, stop;  // the view's tiles are tiles...stop - 1, ascending by group, then level
};

constexpr int row_sizes = 6;  // views are cut into chunks of 1, 2, 4, 8, 16 or 32 rows

struct AttentionPlan::Impl {
    int64_t view_count;
    const View* views;  // the ones that cost most first
    const Tile* tiles;
    const Block* blocks;
    const Lanes* lanes;
    const int64_t* index;              // [pass rows]
    const int64_t* chunks[row_sizes];  // [view_count + 1]: how many chunks of 1 << s rows the views before have

    struct Memory;
    std::unique_ptr<Memory> memory;  // what the pointers name
    Impl();
    ~Impl();
};

}  // namespace stretto
