#include "machine/pool.hpp"

#include <stdexcept>
#include <string>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif
#if !defined(_WIN32)
#include <unistd.h>
#endif
#if defined(__linux__)
#include <sched.h>
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

#if defined(__linux__)

// The cores that this process may run on.
std::vector<int> cores() {
    std::vector<int> found;
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return found;
    for (int core = 0; core < CPU_SETSIZE; core++)
        if (CPU_ISSET(core, &set)) found.push_back(core);
    return found;
}

int core_now() { return sched_getcpu(); }

// Ties the calling thread; without effect where the system refuses.
void tie_to(int core) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    sched_setaffinity(0, sizeof set, &set);
}

#else

std::vector<int> cores() { return {}; }
int core_now() { return -1; }
void tie_to(int) {}

#endif

// A thread that waits this long (some 20 microseconds) waits for one that the system has taken off its core; its own
// core may be what that one needs.
constexpr int patience = 10000;

template <class Condition>
void wait_until(Condition&& met) {
    for (int spins = 0; !met();) {
        if (++spins < patience) {
            pause();
        } else {
            std::this_thread::yield();
        }
    }
}

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
    wait_until([&] { return m.generation.load(std::memory_order_acquire) != generation; });
}

Pool& Pool::instance() {
    static Pool pool;
    return pool;
}

Pool::~Pool() {
    if (process_ == process_id()) {
        stop();
    } else {
        for (auto& sleeper : sleepers_) sleeper->thread.detach();  // a forked child has no such threads to join
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
    while (static_cast<int>(scratch_.size()) < wanted_) scratch_.push_back(Memory(scratch_bytes));
    ending_ = false;
    running_ = wanted_;
    const std::vector<int> available = cores();
    const bool tied = wanted_ > 1 && static_cast<int>(available.size()) == wanted_;
    for (int number = 0; number < (tied ? wanted_ : wanted_ - 1); number++) {
        sleepers_.push_back(std::make_unique<Sleeper>());
        Sleeper& sleeper = *sleepers_.back();
        if (tied) sleeper.core = available[number];
        sleeper.thread = std::thread([this, &sleeper] { serve(sleeper); });
    }
}

void Pool::stop() {
    ending_ = true;
    for (auto& sleeper : sleepers_) {
        sleeper->calls.fetch_add(1, std::memory_order_release);
        sleeper->calls.notify_one();
        sleeper->thread.join();
    }
    sleepers_.clear();
}

void Pool::serve(Sleeper& sleeper) {
    if (sleeper.core >= 0) tie_to(sleeper.core);
    for (uint32_t seen = 0;;) {
        sleeper.calls.wait(seen, std::memory_order_acquire);
        seen = sleeper.calls.load(std::memory_order_acquire);
        if (ending_) return;
        Worker worker(meeting_, sleeper.index, scratch_[sleeper.index].data());
        call_(context_, worker);
        done_.fetch_add(1, std::memory_order_release);
    }
}

void Pool::run_erased(Call call, void* context) {
    const std::lock_guard lock(mutex_);
    if (running_ != 0 && process_ != process_id())
        throw std::runtime_error(
            "the native kernels were used before this process was forked, and their threads do not live in the child; "
            "load the model in the child, or start processes with multiprocessing's 'spawn'");
    if (running_ != wanted_) start();
    // Every pass begins at turn 0; an odd number of turns may have ended the last one.
    for (auto& counters : meeting_.counters)
        for (int i = 0; i < running_; i++) counters[i].next.store(0, std::memory_order_relaxed);
    call_ = call;
    context_ = context;
    done_.store(0, std::memory_order_relaxed);
    const int here = core_now();
    int index = 1;
    for (auto& sleeper : sleepers_) {
        if (index == running_ || (here >= 0 && sleeper->core == here)) continue;
        sleeper->index = index++;
        sleeper->calls.fetch_add(1, std::memory_order_release);
        sleeper->calls.notify_one();
    }
    Worker worker(meeting_, 0, scratch_[0].data());
    call(context, worker);
    wait_until([&] { return done_.load(std::memory_order_acquire) == running_ - 1; });
}

}  // namespace stretto
