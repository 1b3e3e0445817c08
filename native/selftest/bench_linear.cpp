// Packed linear layers of a Llama with 1.04 G weights: milliseconds a pass, beside a streaming read and the arithmetic
// peak of the same run; or, with --check, the bits of every row alone and in company, and values against a
// double-precision loop.
//
//   bench_linear [--check] [--format int8,int8x2,int8-fast,int4,int4-zeros,bf16,fp32] [--rows 1,8,...] [--threads 2]
//                [--layers 16] [--repeats 15]
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "bench_linear_check.hpp"
#include "bench_linear_layers.hpp"

namespace {

using namespace stretto;

// Threads that run one function each at once.
class Team {
public:
    explicit Team(int size) : size(size) {
        for (int number = 1; number < size; ++number) threads.emplace_back([this, number] { follow(number); });
    }
    ~Team() {
        stop = true, ++round;
        for (std::thread& thread : threads) thread.join();
    }
    void run(const std::function<void(int)>& function) {
        work = &function, left = size - 1, ++round;
        function(0);
        while (left) std::this_thread::yield();
    }
    const int size;

private:
    void follow(int number) {
        for (int seen = 0;;) {
            while (round == seen) std::this_thread::yield();
            seen = round;
            if (stop) return;
            (*work)(number);
            --left;
        }
    }
    std::vector<std::thread> threads;
    const std::function<void(int)>* work = nullptr;
    std::atomic<int> round{0}, left{0};
    std::atomic<bool> stop{false};
};

// One thread alone is timed by its own processor time, which leaves out the time that neighbours take from it.
bool alone = false;

double now() {
#if defined(__linux__)
    timespec time;
    clock_gettime(alone ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
#else
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
#endif
}

// Runs that consist of steps. `best` adds up each step's fastest time, which a neighbour on the same cores disturbs
// little; `median` is over whole runs.
struct Times { double best, median; };

Times time_steps(int repeats, size_t steps, const std::function<void(size_t)>& run) {
    std::vector<double> fastest(steps, 1e9), whole;
    for (int i = 0; i < repeats; ++i) {
        const double start = now();
        double last = start;
        for (size_t step = 0; step < steps; ++step) {
            run(step);
            const double end = now();
            fastest[step] = std::min(fastest[step], end - last);
            last = end;
        }
        whole.push_back(last - start);
    }
    std::sort(whole.begin(), whole.end());
    double best = 0;
    for (const double time : fastest) best += time;
    return {best, whole[whole.size() / 2]};
}

void bench(const Format& format, const std::vector<int64_t>& row_counts, Team& team, int layers, int repeats) {
    const LinearKernels& linear = kernels().linear;
    struct Shape { int64_t outputs, inputs; int shards; bool add; };
    std::vector<Shape> shapes;
    for (int i = 0; i < layers; ++i) {
        shapes.insert(shapes.end(), {{3072, 2048, 1, false}, {2048, 2048, 8, true}});
        shapes.insert(shapes.end(), {{16384, 2048, 1, false}, {2048, 8192, 8, true}});
    }
    shapes.push_back({32000, 2048, 1, false});
    int64_t weights = 0;
    for (const Shape& shape : shapes) weights += shape.outputs * shape.inputs;
    const size_t bytes = size_t(weights * format.bytes);
    Pages arena(bytes);
    const int64_t chunk = 1 << 20;
    fill(format, arena.data, chunk, Random{1});
    const size_t pattern = size_t(chunk * format.bytes);
    for (size_t at = pattern; at < bytes; at += pattern) {
        std::memcpy(static_cast<char*>(arena.data) + at, arena.data, std::min(pattern, bytes - at));
    }
    std::vector<std::unique_ptr<Layer>> built;
    double all_bytes = 0;
    int64_t at = 0;
    for (const Shape& shape : shapes) {
        const char* place = static_cast<char*>(arena.data) + int64_t(at * format.bytes);
        built.push_back(std::make_unique<Layer>(format, shape.outputs, shape.inputs, shape.shards, place,
                                                Random{uint64_t(at + 7)}));
        at += shape.outputs * shape.inputs;
        all_bytes += built.back()->bytes(format);
    }
    const int64_t most = *std::max_element(row_counts.begin(), row_counts.end());
    Prepared narrow(most, 2048), wide(most, 8192);
    Pages out(size_t(most) * 32000 * 4);
    Random random{3};
    for (int64_t row = 0; row < most; ++row) {
        std::vector<float> x(8192);
        for (float& value : x) value = random.unit();
        linear.prepare(format.activations, x.data(), 2048, row, narrow.x);
        linear.prepare(format.activations, x.data(), 8192, row, wide.x);
    }
    std::vector<std::unique_ptr<Pages>> scratch;
    for (int i = 0; i < team.size; ++i) scratch.push_back(std::make_unique<Pages>(linear_scratch));

    std::atomic<float> keep{0};
    const size_t part = size_t(4) << 20, parts = bytes / part / team.size;
    const auto read = [&](size_t step) {
        team.run([&](int number) {
            keep = kernels().measure.read(static_cast<char*>(arena.data) + (number * parts + step) * part, part);
        });
    };
    double operations = 0;
    const auto spin = [&](size_t) {
        team.run([&](int number) {
            alignas(64) float values[256] = {};
            const double done = kernels().measure.spin(format.peak, 50000, values);
            if (number == 0) operations = done * team.size;
            keep = values[0];
        });
    };
    for (const int64_t rows : row_counts) {
        const auto layer = [&](size_t i) {
            const Rows& x = shapes[i].inputs == 2048 ? narrow.x : wide.x;
            const Shape& shape = shapes[i];
            const Product product{&built[i]->matrix, x, rows, static_cast<float*>(out.data), shape.outputs, shape.add};
            const int64_t pieces = linear.pieces(built[i]->matrix, rows, team.size);
            std::atomic<int64_t> next{0};
            team.run([&](int number) {
                for (int64_t piece; (piece = next++) < pieces;) {
                    linear.run(product, piece, pieces, scratch[number]->data);
                }
            });
        };
        const auto reading = [&] { return team.size * parts * part / time_steps(3, parts, read).best / 1e9; };
        const double before = reading();
        const Times pass = time_steps(rows > 64 ? std::max(2, repeats / 5) : repeats, shapes.size(), layer);
        const double after = reading();
        const double peak = [&] { const double time = time_steps(20, 1, spin).best; return operations / time / 1e9; }();
        const double digits = format.activations == Activations::int8x2 ? 2 : 1;
        const double speed = all_bytes / pass.best / 1e9, rate = 2.0 * weights * rows * digits / pass.best / 1e9;
        std::printf("%-10s %3lld rows: %8.2f ms (median %8.2f)  %5.1f GB/s = %.2f of a read (%.1f, %.1f)  "
                    "%6.1f Gop/s = %.2f of peak (%.0f)\n",
                    format.name, static_cast<long long>(rows), pass.best * 1e3, pass.median * 1e3, speed,
                    speed / std::max(before, after), before, after, rate, rate / peak, peak);
        std::fflush(stdout);
    }
}

std::vector<std::string> split(const std::string& text) {
    std::vector<std::string> parts;
    for (size_t from = 0; from <= text.size();) {
        const size_t to = std::min(text.find(',', from), text.size());
        parts.push_back(text.substr(from, to - from));
        from = to + 1;
    }
    return parts;
}

}  // namespace

int main(int count, char** arguments) {
    std::vector<std::string> names;
    for (const Format& format : formats) names.push_back(format.name);
    std::vector<int64_t> rows = {1, 2, 4, 8, 12, 16, 32, 256, 512};
    int threads = 2, layers = 16, repeats = 15;
    bool checking = false;
    for (int i = 1; i < count; ++i) {
        const std::string option = arguments[i], value = i + 1 < count ? arguments[i + 1] : "";
        if (option == "--check") { checking = true; continue; }
        if (option == "--format") names = split(value);
        else if (option == "--rows") {
            rows.clear();
            for (const std::string& part : split(value)) rows.push_back(std::stoll(part));
        } else if (option == "--threads") threads = std::stoi(value);
        else if (option == "--layers") layers = std::stoi(value);
        else if (option == "--repeats") repeats = std::stoi(value);
        else { std::printf("unknown option %s\n", option.c_str()); return 2; }
        ++i;
    }
    alone = threads == 1;
    bool good = true;
    Team team(checking ? 1 : threads);
    for (const Format& format : formats) {
        if (std::find(names.begin(), names.end(), format.name) == names.end()) continue;
        if (checking) good &= check(format);
        else bench(format, rows, team, layers, repeats);
    }
    return good ? 0 : 1;
}
