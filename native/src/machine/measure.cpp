#include "machine/measure.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "machine/kernels.hpp"
#include "machine/pool.hpp"

namespace stretto {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

}  // namespace

double streaming_read(std::size_t bytes, int repeats) {
    static Memory memory;  // kept: touching pages costs more than reading them
    if (memory.size() < bytes) {
        memory = Memory(bytes);
        std::memset(memory.data(), 1, bytes);
    }
    const MeasureKernels& kernels = stretto::kernels().measure;
    constexpr int64_t piece_bytes = 1 << 20;
    const int64_t pieces = static_cast<int64_t>(bytes) / piece_bytes;
    std::vector<double> seconds;
    for (int repeat = 0; repeat < repeats; repeat++) {
        const double start = now();
        Pool::instance().run([&](Worker& worker) {
            float sum = 0;
            worker.each(pieces,
                        [&](int64_t piece) { sum += kernels.read(memory.data() + piece * piece_bytes, piece_bytes); });
            *reinterpret_cast<volatile float*>(worker.scratch) = sum;
        });
        seconds.push_back(now() - start);
    }
    return static_cast<double>(pieces * piece_bytes) / median(seconds) / 1e9;
}

double peak(int kind) {
    const MeasureKernels& kernels = stretto::kernels().measure;
    std::vector<double> rates;
    for (int repeat = 0; repeat < 7; repeat++) {
        double operations[max_threads] = {};
        const double start = now();
        Pool::instance().run([&](Worker& worker) {
            operations[worker.index] = kernels.spin(kind, 200000, reinterpret_cast<float*>(worker.scratch));
            worker.barrier();
        });
        double sum = 0;
        for (double each : operations) sum += each;
        rates.push_back(sum / (now() - start));
    }
    return median(rates);
}

}  // namespace stretto
