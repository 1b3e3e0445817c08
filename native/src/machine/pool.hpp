// The threads of this library: they sleep between passes and spin within one.
//
// A pass is one body that every thread runs from end to end; inside, work is handed out in small pieces and threads
// meet at barriers. A thread takes the pieces of its own range in order, so that it reads memory as one stream, and
// then helps the others: a thread that the system has taken off its core holds up one piece, not a half.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "machine/arena.hpp"

namespace stretto {

constexpr int max_threads = 256;

// What the threads of a pass share. Counters lie on cache lines of their own.
struct Meeting {
    struct alignas(64) Counter {
        std::atomic<int64_t> next{0};
    };
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<uint32_t> generation{0};
    std::unique_ptr<Counter[]> counters[2];  // per thread, for calls of `each` with even and odd numbers
    int count = 1;
};

// One thread in a pass.
class Worker {
public:
    Worker(Meeting& meeting, int index, std::byte* scratch) : index(index), scratch(scratch), meeting_(meeting) {}

    const int index;
    std::byte* const scratch;  // scratch_bytes of this thread's own, 64-byte aligned
    int count() const { return meeting_.count; }

    // Waits until all threads are here; what they wrote before is seen by all behind it.
    void barrier();

    // Calls body(piece) for each piece from 0 to pieces - 1 once, on whichever thread is free, and meets at a barrier.
    // All threads call it with the same number of pieces.
    template <class Body>
    void each(int64_t pieces, Body&& body) {
        Meeting::Counter* counters = meeting_.counters[turn_ & 1].get();
        turn_++;
        const int threads = meeting_.count;
        for (int ahead = 0; ahead < threads; ahead++) {
            const int owner = (index + ahead) % threads;
            const int64_t first = pieces * owner / threads, last = pieces * (owner + 1) / threads;
            for (;;) {
                const int64_t piece = first + counters[owner].next.fetch_add(1, std::memory_order_relaxed);
                if (piece >= last) break;
                body(piece);
            }
        }
        barrier();
    }

private:
    Meeting& meeting_;
    uint32_t turn_ = 0;
};

constexpr std::size_t scratch_bytes = 1 << 20;

// Where there are as many threads as cores, each sleeping thread is tied to a core of its own, and the one that shares
// the caller's core at the start of a pass sits it out: beside other busy processes the system might else leave two of
// ours on one core. The calling thread is never tied.
class Pool {
public:
    // The pool of this process. Threads start with the first pass.
    static Pool& instance();
    ~Pool();

    // Number of threads of a pass, the calling one included. Throws std::invalid_argument outside 1 to max_threads.
    void resize(int threads);
    int threads() const { return wanted_; }

    // Runs body on all threads; returns when all are done. Passes of several callers follow one another.
    // Throws std::runtime_error in a process forked from one that had started the threads: they do not exist there.
    template <class Body>
    void run(Body&& body) {
        run_erased(
            [](void* context, Worker& worker) { (*static_cast<std::remove_reference_t<Body>*>(context))(worker); },
            &body);
    }

private:
    using Call = void (*)(void* context, Worker& worker);
    struct alignas(64) Sleeper {
        std::atomic<uint32_t> calls{0};  // rises with every pass that it takes part in; it sleeps on it
        int index = 0;                   // its number in the pass
        int core = -1;                   // that it is tied to
        std::thread thread;
    };

    void run_erased(Call call, void* context);
    void start();
    void stop();
    void serve(Sleeper& sleeper);

    std::mutex mutex_;
    std::vector<std::unique_ptr<Sleeper>> sleepers_;
    std::vector<Memory> scratch_;
    Meeting meeting_;
    alignas(64) std::atomic<int> done_{0};
    Call call_ = nullptr;
    void* context_ = nullptr;
    std::atomic<bool> ending_{false};
    int wanted_ = 1;
    int running_ = 0;  // threads of a pass, the calling one included; 0: none started yet
    long process_ = 0;
};

}  // namespace stretto
