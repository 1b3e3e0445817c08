#include "machine/pool.hpp"

#include <stdexcept>
#include <string>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif
#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace stretto {
namespace {

void pause() noexcept {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

long process_id() noexcept {
#if defined(_WIN32)
    return 0;  // no fork
#else
    return getpid();
#endif
}

// A thread that waits this long (some 20 microseconds) waits for one that the system has taken off its core; its own
// core may be what that one needs.
constexpr int patience = 400;

}  // namespace

void Worker::barrier() {
    Meeting& m = meeting_;
    if (m.count == 1) {
        m.counters[turn_ & 1][0].next.store(0, std::memory_order_relaxed);
        return;
    }
    const uint32_t generation = m.generation.load(std::memory_order_relaxed);
    if (m.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == m.count) {
        m.arrived.store(0, std::memory_order_relaxed);
        // The counters of the next `each`: its last use lies before the barrier before this one.
        for (int i = 0; i < m.count; i++) m.counters[turn_ & 1][i].next.store(0, std::memory_order_relaxed);
        m.generation.store(generation + 1, std::memory_order_release);
        return;
    }
    for (int spins = 0; m.generation.load(std::memory_order_acquire) == generation;) {
        if (++spins < patience) {
            pause();
        } else {
            std::this_thread::yield();
        }
    }
}

Pool& Pool::instance() {
    static Pool pool;
    return pool;
}

Pool::~Pool() {
    if (process_ == process_id()) {
        stop();
    } else {
        for (std::thread& thread : threads_) thread.detach();  // a forked child has no such threads to join
    }
}

void Pool::resize(int threads) {
    if (threads < 1 || threads > max_threads)
        throw std::invalid_argument("threads is " + std::to_string(threads) + ", expected 1 to " +
                                    std::to_string(max_threads));
    const std::lock_guard lock(mutex_);
    wanted_ = threads;
}

void Pool::start() {
    stop();
    process_ = process_id();
    meeting_.count = wanted_;
    meeting_.arrived = 0;
    for (auto& counters : meeting_.counters) counters = std::make_unique<Meeting::Counter[]>(wanted_);
    while (static_cast<int>(scratch_.size()) < wanted_) scratch_.push_back(Block(scratch_bytes));
    ending_ = false;
    running_ = wanted_;
    const uint32_t seen = work_.load();
    for (int index = 1; index < wanted_; index++) threads_.emplace_back([this, index, seen] { serve(index, seen); });
}

void Pool::stop() {
    if (threads_.empty()) return;
    ending_ = true;
    work_.fetch_add(1, std::memory_order_release);
    work_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
}

void Pool::serve(int index, uint32_t seen) {
    for (;;) {
        work_.wait(seen, std::memory_order_acquire);
        seen = work_.load(std::memory_order_acquire);
        if (ending_) return;
        Worker worker(meeting_, index, scratch_[index].data());
        call_(context_, worker);
        done_.fetch_add(1, std::memory_order_release);
    }
}

void Pool::run_erased(Call call, void* context) {
    const std::lock_guard lock(mutex_);
    if (running_ != 0 && process_ != process_id())
        throw std::runtime_error(
            "the native kernels were used before this process was forked, and their threads do not live in the child; "
            "load the "
            "model in the child, or start processes with multiprocessing's 'spawn'");
    if (running_ != wanted_) start();
    // Every pass begins at turn 0; an odd number of turns may have ended the last one.
    for (auto& counters : meeting_.counters)
        for (int i = 0; i < running_; i++) counters[i].next.store(0, std::memory_order_relaxed);
    call_ = call;
    context_ = context;
    done_.store(0, std::memory_order_relaxed);
    if (running_ > 1) {
        work_.fetch_add(1, std::memory_order_release);
        work_.notify_all();
    }
    Worker worker(meeting_, 0, scratch_[0].data());
    call(context, worker);
    for (int spins = 0; done_.load(std::memory_order_acquire) != running_ - 1;) {
        if (++spins < patience) {
            pause();
        } else {
            std::this_thread::yield();
        }
    }
}

}  // namespace stretto
