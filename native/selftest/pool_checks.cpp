// The threads: every piece once, barriers that hold, another number of threads, and a clear refusal in a forked child.
#include <atomic>
#include <stdexcept>

#include "machine/pool.hpp"

#include "check.hpp"

#if !defined(_WIN32)
#include <sys/wait.h>
#include <unistd.h>
#endif

namespace stretto::selftest {
namespace {

void check_pieces(Check& check, int threads, Random& random) {
    std::vector<int64_t> counts;
    for (int i = 0; i < 40; ++i) counts.push_back(random.below(i % 5 == 0 ? 1000 : 9));
    std::vector<std::vector<std::atomic<int>>> taken;
    for (const int64_t count : counts) taken.emplace_back(static_cast<size_t>(count));
    std::atomic<int> bodies{0};
    Pool::instance().run([&](Worker& worker) {
        ++bodies;
        for (size_t turn = 0; turn < counts.size(); ++turn)
            worker.each(counts[turn], [&](int64_t piece) { ++taken[turn][static_cast<size_t>(piece)]; });
    });
    check.about(text("%d threads", threads));
    check.that(bodies == threads, "one body for each thread");
    for (const auto& turn : taken)
        for (const std::atomic<int>& times : turn) check.that(times == 1, "every piece once");
}

// Every thread writes its place, and behind the barrier reads the others'.
void check_barriers(Check& check, int threads) {
    std::vector<int> places(static_cast<size_t>(threads));
    std::atomic<int> wrong{0};
    Pool::instance().run([&](Worker& worker) {
        for (int turn = 1; turn <= 200; ++turn) {
            places[static_cast<size_t>(worker.index)] = turn;
            worker.barrier();
            for (const int place : places) wrong += place != turn;
            worker.barrier();
        }
    });
    check.about(text("%d threads", threads));
    check.that(wrong == 0, "what others wrote before the barrier");
}

// Scratch of each thread's own, aligned and all of it there.
void check_scratch(Check& check, int threads) {
    std::atomic<int> wrong{0};
    Pool::instance().run([&](Worker& worker) {
        wrong += reinterpret_cast<uintptr_t>(worker.scratch) % 64 != 0;
        std::memset(worker.scratch, worker.index + 1, scratch_bytes);
        worker.barrier();
        for (size_t i = 0; i < scratch_bytes; i += 4095)
            wrong += static_cast<int>(worker.scratch[i]) != worker.index + 1;
    });
    check.about(text("%d threads", threads));
    check.that(wrong == 0, "memory of the thread's own");
}

void check_refusals(Check& check) {
    for (const int threads : {0, -1, max_threads + 1}) {
        bool refused = false;
        try {
            Pool::instance().resize(threads);
        } catch (const std::invalid_argument&) {
            refused = true;
        }
        check.about(text("%d threads", threads));
        check.that(refused, "a refusal");
    }
#if !defined(_WIN32)
    check.about("a forked child");
    const pid_t child = fork();
    if (child == 0) {
        int status = 1;
        try {
            Pool::instance().run([](Worker&) {});
        } catch (const std::runtime_error&) {
            status = 0;
        }
        _exit(status);
    }
    int status = -1;
    waitpid(child, &status, 0);
    check.that(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a refusal, and no deadlock or crash");
#endif
}

}  // namespace

void check_pool(const Kernels&, Random random, Effort effort, Report& report) {
    Check& pieces = report.check("pool: every piece once");
    Check& barriers = report.check("pool: barriers");
    Check& scratch = report.check("pool: scratch");
    Check& refusals = report.check("pool: refusals");
    for (int64_t i = 0; i < effort.of(8); ++i)
        for (const int threads : {1, 2, 3, 4, 2}) {
            Pool::instance().resize(threads);
            check_pieces(pieces, threads, random);
            check_pieces(pieces, threads, random);
            check_barriers(barriers, threads);
            check_scratch(scratch, threads);
        }
    check_refusals(refusals);
}

}  // namespace stretto::selftest
