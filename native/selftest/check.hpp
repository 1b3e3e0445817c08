// What the checks are made of: random numbers that a seed repeats, memory of exact size, and results that say what was
// compared, how far it was off, and which bits it had.
#pragma once

#include <cstdint>
#include <cstring>
#include <deque>
#include <new>
#include <string>
#include <vector>

#include "machine/kernels.hpp"

namespace stretto::selftest {

class Random {
public:
    explicit Random(uint64_t seed) : state_(seed) {}
    uint64_t bits();  // SplitMix64
    int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
    int64_t between(int64_t first, int64_t last) { return first + below(last - first + 1); }
    bool one_in(int64_t n) { return below(n) == 0; }
    float unit() { return static_cast<float>(static_cast<int64_t>(bits() >> 40) - (1 << 23)) / (1 << 23); }  // [-1, 1)
    float normal();  // nearly: a sum of uniforms
    Random fork() { return Random(bits()); }
    template <class T>
    void shuffle(std::vector<T>& items) {
        for (size_t i = items.size(); i > 1; --i)
            std::swap(items[i - 1], items[static_cast<size_t>(below(static_cast<int64_t>(i)))]);
    }

private:
    uint64_t state_;
};

// 64-byte aligned, not a byte longer than asked: address sanitizers see what is read behind its end. Filled with bytes
// of 0xff, which as fp32 and bf16 are NaN and as integers -1: what is read before it is written shows.
template <class T>
class Buffer {
public:
    explicit Buffer(int64_t count = 0) : count_(count), data_(allocate(count)) { poison(); }
    ~Buffer() { ::operator delete(data_, std::align_val_t(64)); }
    Buffer(Buffer&& other) noexcept : Buffer() { swap(other); }
    Buffer(const Buffer& other) : Buffer(other.count_) { std::memcpy(data_, other.data_, bytes()); }
    Buffer& operator=(Buffer other) noexcept {
        swap(other);
        return *this;
    }

    T* data() const { return data_; }
    int64_t size() const { return count_; }
    size_t bytes() const { return static_cast<size_t>(count_) * sizeof(T); }
    T& operator[](int64_t i) const { return data_[i]; }
    T* begin() const { return data_; }
    T* end() const { return data_ + count_; }
    void poison() { std::memset(static_cast<void*>(data_), 0xff, bytes()); }

private:
    static T* allocate(int64_t count) {
        return static_cast<T*>(::operator new(static_cast<size_t>(count) * sizeof(T), std::align_val_t(64)));
    }
    void swap(Buffer& other) noexcept {
        std::swap(count_, other.count_);
        std::swap(data_, other.data_);
    }
    int64_t count_;
    T* data_;
};

// One line of the report.
class Check {
public:
    explicit Check(std::string name) : name(std::move(name)) {}

    // What the following comparisons are about; said where one fails.
    void about(std::string what) { about_ = std::move(what); }

    void that(bool good, const char* expected);
    // |got - want| <= allowed; NaN where NaN is wanted, infinity where infinity is.
    void near(double got, double want, double allowed);
    // The same bits, where any NaN is as good as another.
    void same(const float* got, const float* want, int64_t count);
    void same(const Buffer<float>& got, const Buffer<float>& want) { same(got.data(), want.data(), got.size()); }
    void same_bytes(const void* got, const void* want, size_t bytes);

    const std::string name;
    int64_t count = 0;
    double worst = 0, share = 0;  // the largest error, and the largest part of what was allowed
    std::string failure;          // the first one
    uint64_t digest = 0xcbf29ce484222325;

private:
    void fail(const std::string& how);
    void take(uint64_t bits) { digest = (digest ^ bits) * 0x9e3779b97f4a7c15, digest ^= digest >> 29; }
    std::string about_;
};

// How much is done: sanitizers make everything many times slower.
struct Effort {
    bool quick;
    int64_t of(int64_t cases) const { return quick ? (cases + 3) / 4 : cases; }
};

struct Report {
    std::deque<Check> checks;
    Check& check(const char* name) { return checks.emplace_back(name); }
    bool good() const;
};

// Calls run(piece) for all pieces in a random order, or on several threads at once.
template <class Run>
void shuffled(int64_t pieces, Random& random, Run&& run) {
    std::vector<int64_t> order;
    for (int64_t piece = 0; piece < pieces; ++piece) order.push_back(piece);
    random.shuffle(order);
    for (const int64_t piece : order) run(piece);
}

constexpr double half_ulp = 0x1p-24;  // of 1 in fp32: the relative error of one rounding

float from_bf16(uint16_t bits);
uint16_t to_bf16(float x);  // to nearest, halves to even; NaN stays NaN
double from_f16(uint16_t bits);
std::string text(const char* format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 1, 2)))
#endif
    ;

// The checks of each component. All take the kernels they judge: the controls hand in broken ones.
using Suite = void (*)(const Kernels&, Random, Effort, Report&);
void check_linear(const Kernels&, Random, Effort, Report&);
void check_linear_rows(const Kernels&, Random, Effort, Report&);
void check_prepare(const Kernels&, Random, Effort, Report&);
void check_packing(const Kernels&, Random, Effort, Report&);
void check_attention(const Kernels&, Random, Effort, Report&);
void check_attention_rows(const Kernels&, Random, Effort, Report&);
void check_storage(const Kernels&, Random, Effort, Report&);
void check_rows(const Kernels&, Random, Effort, Report&);
void check_route(const Kernels&, Random, Effort, Report&);
void check_choose(const Kernels&, Random, Effort, Report&);
void check_filter(const Kernels&, Random, Effort, Report&);
void check_pool(const Kernels&, Random, Effort, Report&);

struct NamedSuite {
    const char* name;
    Suite run;
};

// Runs the broken variants; each must fail. Reports one line for each that was caught.
void check_controls(const Kernels&, Random, Effort, Report&);

}  // namespace stretto::selftest
