#include "pass/pass.hpp"

#include <cmath>

namespace stretto {

void RopeTable::grow(int64_t largest) {
    while (static_cast<int64_t>(pages_.size()) * page <= largest) {
        const int64_t first = static_cast<int64_t>(pages_.size()) * page;
        auto turns = std::make_unique<float[]>(page * 2 * pairs());
        for (int64_t i = 0; i < page; i++) {
            const int64_t position = (first + i) / variants_, variant = (first + i) % variants_;
            for (int64_t pair = 0; pair < pairs(); pair++) {
                const float angle = static_cast<float>(position) * inverse_[variant * pairs() + pair];
                turns[(i * 2) * pairs() + pair] = static_cast<float>(std::cos(static_cast<double>(angle)) * factor_);
                turns[(i * 2 + 1) * pairs() + pair] =
                    static_cast<float>(std::sin(static_cast<double>(angle)) * factor_);
            }
        }
        pages_.push_back(std::move(turns));
    }
}

void Prepared::reserve(int64_t rows) {
    const int64_t groups = deepest / group_depth;
    capacity = rows;
    values = Memory(rows * deepest * sizeof(float));
    scales = Memory(rows * (groups + 1) * sizeof(float));
    sums = Memory(2 * rows * groups * sizeof(int32_t));
}

Rows Prepared::rows(int64_t depth) const {
    auto* const digits = values.as<int8_t>();
    // Digits take a quarter of the place of floats, or half of it where they are two.
    const auto* const raised = kernels().linear.raises ? values.as<uint8_t>() + 2 * capacity * deepest : nullptr;
    return {depth, values.as<float>(), values.as<uint16_t>(), digits, raised, scales.as<float>(), sums.as<int32_t>()};
}

void Pass::reserve(int64_t count) {
    if (count <= capacity) return;
    capacity = round_up(count, 16);
    for (Buffer& buffer : buffers) {
        buffer.stride = round_up(buffer.width, panel_width);
        buffer.memory = Memory(capacity * buffer.stride * sizeof(float));
    }
    prepared.reserve(capacity);
    routed.reserve(capacity);
}

}  // namespace stretto
