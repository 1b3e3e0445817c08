// Times attention over a long context beside what the machine can do: a streaming read of the same cache by the same
// threads, and a loop of bf16 products in registers. Prints the best of many repetitions.
//
//   bench_attention [positions] [threads] [avx512 | avx2 | generic]
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

#include "../src/attention/attention.hpp"

using namespace stretto;

namespace {

constexpr int64_t heads = 32, kv_heads = 8, head_size = 64;
constexpr int layers = 16;  // more caches than fit a processor's, as the layers of a model are

// Starts `threads` threads that do work(layer, thread) layer by layer in step, over and over; returns the least seconds
// that a layer took. The shorter what is timed, the less neighbours disturb the best of it.
template <class Work>
double best_of(int times, int layers, int threads, Work work) {
    std::atomic<int64_t> arrived{0};
    double best = 1e9;
    const auto member = [&](int thread) {
        int64_t expected = 0;
        const auto meet = [&] {
            expected += threads;
            ++arrived;
            while (arrived.load() < expected) {}
        };
        for (int i = 0; i < times * layers; ++i) {
            const auto start = std::chrono::steady_clock::now();  // before the others can begin
            meet();
            work(i % layers, thread);
            meet();
            const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
            if (thread == 0) best = std::min(best, seconds);
        }
    };
    std::vector<std::thread> others;
    for (int t = 1; t < threads; ++t) others.emplace_back(member, t);
    member(0);
    for (std::thread& thread : others) thread.join();
    return best;
}

char* pages(size_t bytes) {
    constexpr size_t huge = 2 << 20;
    bytes = (bytes + huge - 1) / huge * huge;
#if defined(_WIN32)
    void* memory = _aligned_malloc(bytes, huge);
#else
    void* memory = std::aligned_alloc(huge, bytes);
#endif
#if defined(__linux__)
    madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return static_cast<char*>(memory);
}

int64_t add_up(const char* from, size_t bytes) {
    int64_t sums[32] = {};
    for (size_t i = 0; i + sizeof sums <= bytes; i += sizeof sums) {
        int64_t words[32];
        std::memcpy(words, from + i, sizeof words);
        for (int w = 0; w < 32; ++w) sums[w] += words[w];
    }
    int64_t all = 0;
    for (const int64_t sum : sums) all += sum;
    return all;
}

#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("avx512f,avx512bf16"))) float products_in_registers(int64_t rounds) {
    const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
    // Different starts: equal sums would be computed once.
    const __m512 one = _mm512_set1_ps(1);
    __m512 s0 = one, s1 = s0 + one, s2 = s1 + one, s3 = s2 + one, s4 = s3 + one, s5 = s4 + one;
    __m512 s6 = s5 + one, s7 = s6 + one, s8 = s7 + one, s9 = s8 + one, s10 = s9 + one, s11 = s10 + one;
    for (int64_t i = 0; i < rounds; ++i) {
        s0 = _mm512_dpbf16_ps(s0, ones, ones), s1 = _mm512_dpbf16_ps(s1, ones, ones);
        s2 = _mm512_dpbf16_ps(s2, ones, ones), s3 = _mm512_dpbf16_ps(s3, ones, ones);
        s4 = _mm512_dpbf16_ps(s4, ones, ones), s5 = _mm512_dpbf16_ps(s5, ones, ones);
        s6 = _mm512_dpbf16_ps(s6, ones, ones), s7 = _mm512_dpbf16_ps(s7, ones, ones);
        s8 = _mm512_dpbf16_ps(s8, ones, ones), s9 = _mm512_dpbf16_ps(s9, ones, ones);
        s10 = _mm512_dpbf16_ps(s10, ones, ones), s11 = _mm512_dpbf16_ps(s11, ones, ones);
    }
    return (s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7 + s8 + s9 + s10 + s11)[0];
}

double peak(int threads) {
    if (!__builtin_cpu_supports("avx512bf16")) return 0;
    constexpr int64_t rounds = 50'000;
    std::atomic<float> sink{0};
    const double best = best_of(50, 1, threads, [&](int, int) { sink = products_in_registers(rounds); });
    return static_cast<double>(threads * rounds * 12 * 64) / best;
}
#else
double peak(int) { return 0; }
#endif

struct Pass {
    std::vector<int64_t> slots, script, index;
};

// `rows` rows behind `cached` positions; their blocks lie in shuffled order, as a pool hands them out.
Pass pass_of(int64_t cached, int64_t rows) {
    Pass pass;
    const int64_t blocks = (cached + rows + block_slots - 1) / block_slots;
    std::vector<int64_t> order(static_cast<size_t>(blocks));
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(i);
    for (size_t i = 0; i < order.size(); ++i) std::swap(order[i], order[i * 7919 % order.size()]);
    for (int64_t i = 0; i < cached + rows; ++i)
        pass.slots.push_back(order[static_cast<size_t>(i / block_slots)] * block_slots + i % block_slots);
    pass.script = {0, rows, 0, 1, static_cast<int64_t>(reinterpret_cast<intptr_t>(pass.slots.data())), 0, cached, rows};
    for (int64_t row = 0; row < rows; ++row) {
        pass.script.insert(pass.script.end(), {pass.slots[static_cast<size_t>(cached + row)], cached + row, row});
        pass.index.push_back(cached + row);
    }
    return pass;
}

AttentionPlan plan_of(const Pass& pass) {
    return {pass.script.data(), static_cast<int64_t>(pass.script.size()), pass.index.data(),
            static_cast<int64_t>(pass.index.size())};
}

}  // namespace

int main(int count, char** words) {
    const int64_t positions = count > 1 ? std::atoll(words[1]) : 8000;
    const int threads = count > 2 ? std::atoi(words[2]) : 2;
    const std::string path = count > 3 ? words[3] : "avx512";
    const AttentionKernels& kernels = path == "avx512" ? avx512::attention_kernels
                                      : path == "avx2" ? avx2::attention_kernels
                                                       : generic::attention_kernels;
    const int64_t blocks = (positions + 512 + block_slots - 1) / block_slots;
    const size_t layer_bytes = static_cast<size_t>(blocks * block_slots * kv_heads * head_size * 2);
    char* keys = pages(layer_bytes * layers);
    char* values = pages(layer_bytes * layers);
    for (char* part : {keys, values}) {
        auto* numbers = reinterpret_cast<uint16_t*>(part);
        uint32_t state = 1;
        for (size_t i = 0; i < layer_bytes * layers / 2; ++i) {
            state = state * 1664525 + 1013904223;
            numbers[i] = static_cast<uint16_t>((state >> 16 & 0x80ff) | 0x3f00);  // 0.5 to 1.99, either sign
        }
    }
    std::vector<char*> scratch;
    for (int t = 0; t < threads; ++t) scratch.push_back(pages(attention_scratch));

    const size_t read_bytes = static_cast<size_t>(positions * kv_heads * head_size * 2);
    std::atomic<int64_t> sink{0};
    const auto streaming_read = [&] {
        const double best = best_of(5, layers, threads, [&](int layer, int t) {
            const size_t share = read_bytes / static_cast<size_t>(threads);
            const size_t from = layer_bytes * static_cast<size_t>(layer) + share * static_cast<size_t>(t);
            sink += add_up(keys + from, share) + add_up(values + from, share);
        });
        return static_cast<double>(2 * read_bytes) / best;
    };
    const double most = peak(threads);
    std::printf("%s, %d threads, %d positions, %d heads, %d K/V heads of %d, bf16; peak %.0f GFLOP/s\n", path.c_str(),
                threads, int(positions), int(heads), int(kv_heads), int(head_size), most / 1e9);

    for (const int64_t rows : {1, 8, 512}) {
        const Pass pass = pass_of(positions, rows);
        const AttentionPlan plan = plan_of(pass);
        std::vector<float> query(static_cast<size_t>(rows * heads * head_size)), out(query.size());
        for (size_t i = 0; i < query.size(); ++i) query[i] = static_cast<float>(i * 7919 % 1000) / 500 - 1;
        std::atomic<int64_t> next[layers * 16] = {};  // a counter for each repetition
        std::vector<int> rounds(static_cast<size_t>(threads));
        const int times = rows > 8 ? 1 : 16;
        const auto attend = [&](int layer, int t) {
            const LayerStorage storage{keys + layer_bytes * static_cast<size_t>(layer),
                                       values + layer_bytes * static_cast<size_t>(layer), true, kv_heads, head_size};
            const Attend call{&plan, storage, query.data(), heads * head_size, out.data(), heads * head_size, heads,
                              0.125f, 0.0f, 0, nullptr, 0, nullptr, nullptr, 0};
            const int64_t pieces = kernels.pieces(call, threads);
            std::atomic<int64_t>& counter = next[rounds[static_cast<size_t>(t)]++];
            for (int64_t piece = counter++; piece < pieces; piece = counter++)
                kernels.run(call, piece, pieces, scratch[static_cast<size_t>(t)]);
        };
        const double before = streaming_read();
        const double time = best_of(times, rows > 8 ? 4 : layers, threads, attend);
        const double read = std::max(before, streaming_read());
        const int64_t pairs = rows * positions + rows * (rows + 1) / 2;
        const double operations = 4.0 * heads * head_size * static_cast<double>(pairs);
        const double bytes = static_cast<double>(2 * read_bytes);
        std::printf("%4d rows: %8.3f ms  %6.1f GB/s (%.2f of a streaming read, %.1f)  %6.1f GFLOP/s (%.2f of peak)\n",
                    int(rows), time * 1e3, bytes / time / 1e9, bytes / time / read, read / 1e9,
                    operations / time / 1e9, most > 0 ? operations / time / most : 0.0);
    }

    const Pass one = pass_of(positions, 1), prompt = pass_of(1000, 256);
    Pass many = pass_of(500 * 64, 64);
    many.script.clear();
    for (int64_t view = 0; view < 64; ++view) {
        const int64_t* own = many.slots.data() + view * 512;
        const auto address = static_cast<int64_t>(reinterpret_cast<intptr_t>(own));
        many.script.insert(many.script.end(), {view, 1, 0, 1, address, 0, 500, 1, own[500], 500, 0});
    }
    for (const auto& [name, pass] : {std::pair<const char*, const Pass*>{"one row", &one},
                                     {"256 rows behind 1,000 positions", &prompt},
                                     {"64 rows of 500 positions each", &many}})
        std::printf("plan of %s: %.1f us\n", name, 1e6 * best_of(200, 1, 1, [&](int, int) { plan_of(*pass); }));
    return sink == 1;
}
