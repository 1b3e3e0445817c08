#include <cstring>

#include "attention.hpp"

namespace stretto {
namespace {

// Copies `count` elements that lie `stride` bytes apart. As bytes: a NaN may change on its way as a float.
template <int bytes>
void copy(const char* from, char* to, int64_t count, int64_t stride) {
    for (int64_t i = 0; i < count; ++i) std::memcpy(to + i * stride, from + i * stride, bytes);
}

}  // namespace

void move_row(const LayerStorage& storage, int64_t from, int64_t to) {
    const int64_t size = storage.head_size, share = block_slots * size * (storage.bf16 ? 2 : 4);
    char *keys = static_cast<char*>(storage.keys), *values = static_cast<char*>(storage.values);
    for (int64_t head = 0; head < storage.kv_heads; ++head) {
        const auto part = [&](int64_t slot) { return (slot / block_slots * storage.kv_heads + head) * share; };
        const auto key = [&](int64_t slot) { return keys + part(slot) + slot % block_slots * 4; };
        if (storage.bf16) {
            const auto value = [&](int64_t slot) {
                return values + part(slot) + slot % block_slots / 2 * size * 4 + slot % 2 * 2;
            };
            copy<4>(key(from), key(to), size / 2, block_slots * 4);
            copy<2>(value(from), value(to), size, 4);
        } else {
            const auto value = [&](int64_t slot) { return values + part(slot) + slot % block_slots * size * 4; };
            copy<4>(key(from), key(to), size, block_slots * 4);
            copy<4>(value(from), value(to), size, 4);
        }
    }
}

}  // namespace stretto
