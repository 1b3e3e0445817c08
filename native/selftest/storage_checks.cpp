// Writing and moving rows: the right bits at the right places, and no other place touched.
#include <algorithm>
#include <cmath>

#include "attention_case.hpp"

namespace stretto::selftest {
namespace {

// The storage that a lane should have, number by number as attention.hpp places them.
struct Wanted {
    explicit Wanted(const Lane& lane) : keys(lane.keys), values(lane.values) {}

    static void put(const Buffer<char>& part, bool bf16, int64_t place, float x) {
        if (bf16)
            reinterpret_cast<uint16_t*>(part.data())[place] = to_bf16(x);
        else
            std::memcpy(part.data() + place * 4, &x, 4);
    }
    static void copy(const Buffer<char>& part, bool bf16, int64_t from, int64_t to) {
        const int64_t size = bf16 ? 2 : 4;
        std::copy_n(part.data() + from * size, size, part.data() + to * size);
    }
    Buffer<char> keys, values;
};

}  // namespace

void check_storage(const Kernels& kernels, Random random, Effort effort, Report& report) {
    Check& write = report.check("attention: writing rows");
    Check& move = report.check("attention: moving rows");
    for (int64_t i = 0; i < effort.of(40); ++i) {
        const HeadShape shape = random_heads(random);
        Lane lane(shape, 4, random);
        Wanted wanted(lane);
        write.about(shape.name()), move.about(shape.name());
        Buffer<float> key(shape.kv_width()), value(shape.kv_width());
        for (int64_t round = 0; round < 30; ++round) {
            const int64_t slot = random.below(64);
            for (Buffer<float>* part : {&key, &value})
                for (float& x : *part) x = random.one_in(50) ? NAN : random.normal();
            kernels.attention.write(lane.storage(), slot, key.data(), value.data());
            for (int64_t head = 0; head < shape.kv_heads; ++head)
                for (int64_t d = 0; d < shape.size; ++d) {
                    Wanted::put(wanted.keys, shape.bf16, lane.key_place(slot, head, d), key[head * shape.size + d]);
                    Wanted::put(wanted.values, shape.bf16, lane.value_place(slot, head, d),
                                value[head * shape.size + d]);
                }
        }
        write.same_bytes(lane.keys.data(), wanted.keys.data(), lane.keys.bytes());
        write.same_bytes(lane.values.data(), wanted.values.data(), lane.values.bytes());
        for (int64_t round = 0; round < 30; ++round) {
            const int64_t from = random.below(64), to = random.below(64);
            move_row(lane.storage(), from, to);
            for (int64_t head = 0; head < shape.kv_heads; ++head)
                for (int64_t d = 0; d < shape.size; ++d) {
                    Wanted::copy(wanted.keys, shape.bf16, lane.key_place(from, head, d), lane.key_place(to, head, d));
                    Wanted::copy(wanted.values, shape.bf16, lane.value_place(from, head, d),
                                 lane.value_place(to, head, d));
                }
        }
        move.same_bytes(lane.keys.data(), wanted.keys.data(), lane.keys.bytes());
        move.same_bytes(lane.values.data(), wanted.values.data(), lane.values.bytes());
    }
}

}  // namespace stretto::selftest
