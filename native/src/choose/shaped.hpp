// Rows whose scores a filter narrows before the rule of choice reads them.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "choose/choose.hpp"
#include "machine/kernels.hpp"

namespace stretto {

// Whether it drops anything.
inline bool narrows(const Filter& filter, int64_t vocabulary) {
    return (filter.count > 0 && filter.count < vocabulary) || filter.share < 1 || filter.least > -HUGE_VALF;
}

// The row as it is, or, where it draws at random and the filter drops something, a filtered copy of it in `room`.
inline ChooseRow shaped(const ChooseRow& row, int64_t vocabulary, const Filter& filter, std::vector<float>& room) {
    if (row.temperature == 0 || !narrows(filter, vocabulary)) return row;
    room.resize(3 * vocabulary);
    std::memcpy(room.data(), row.scores, vocabulary * sizeof(float));
    kernels().choose.filter(room.data(), vocabulary, filter, room.data() + vocabulary);
    return {room.data(), 1, row.key};
}

// The choice from such a row. What wins among all elements wins among those that a filter keeps, if it is one of them:
// mostly it is, so that the filter's work is saved.
inline Chosen choose_shaped(const ChooseRow& row, int64_t vocabulary, const Filter& filter, std::vector<float>& room) {
    Chosen chosen;
    kernels().choose.choose(row, vocabulary, &chosen);
    if (row.temperature == 0 || !narrows(filter, vocabulary)) return chosen;
    if (kernels().choose.keeps(row, vocabulary, filter, chosen.token)) return chosen;
    kernels().choose.choose(shaped(row, vocabulary, filter, room), vocabulary, &chosen);
    return chosen;
}

}  // namespace stretto
