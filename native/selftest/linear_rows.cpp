// Each row's bits alone and in company, over any pieces and threads.
#include <algorithm>
#include <atomic>
#include <thread>

#include "linear_case.hpp"

namespace stretto::selftest {
namespace {

// Every row's result by itself, copied out of its company in memory too.
Buffer<float> each_alone(const LinearKernels& linear, const LinearCase& c, const PreparedRows& x,
                         const Buffer<float>& before, int64_t stride, bool add, Random& random) {
    Buffer<float> all = before;
    for (int64_t row = 0; row < x.rows; ++row) {
        Buffer<float> one(stride);
        std::copy_n(before.data() + row * stride, stride, one.data());
        multiply(linear, c, x.slice(row, 1), 1, add, random, one, stride);
        std::copy_n(one.data(), stride, all.data() + row * stride);
    }
    return all;
}

void run_on_threads(const LinearKernels& linear, const LinearCase& c, const PreparedRows& x, int threads, bool add,
                    Buffer<float>& out, int64_t stride) {
    const Product product{&c.matrix, x.view(), x.rows, out.data(), stride, add};
    const int64_t pieces = linear.pieces(c.matrix, x.rows, threads);
    std::atomic<int64_t> next{0};
    std::vector<std::thread> team;
    for (int i = 0; i < threads; ++i)
        team.emplace_back([&] {
            const Buffer<char> scratch(linear_scratch);
            for (int64_t piece; (piece = next++) < pieces;) linear.run(product, piece, pieces, scratch.data());
        });
    for (std::thread& thread : team) thread.join();
}

void check_company(const LinearKernels& linear, Check& check, const Format& format, const Shape& shape,
                   const std::vector<int64_t>& sizes, Random& random) {
    const LinearCase c(linear, format, shape, random);
    int64_t most = 1;
    for (const int64_t rows : sizes) most = std::max(most, rows);
    const PreparedRows x = random_rows(linear, c, most, random);
    const int64_t stride = c.matrix.panels * 32 + 16 * random.below(2);
    const bool add = random.one_in(2);
    Buffer<float> before(most * stride);
    if (add)
        for (float& value : before) value = random.normal();
    const Buffer<float> alone = each_alone(linear, c, x, before, stride, add, random);
    for (const int64_t rows : sizes) {
        const int64_t first = random.between(0, most - rows);
        Buffer<float> start(rows * stride);
        std::copy_n(before.data() + first * stride, rows * stride, start.data());
        const PreparedRows part = x.slice(first, rows);
        for (const int threads : {1, 2, 3, 16}) {
            Buffer<float> together = start;
            const bool apart = threads == 2 || threads == 3;
            check.about(c.name() + text(", %lld rows, %d threads", static_cast<long long>(rows), threads));
            if (apart)
                run_on_threads(linear, c, part, threads, add, together, stride);
            else
                multiply(linear, c, part, threads, add, random, together, stride);
            for (int64_t row = 0; row < rows; ++row)
                check.same(together.data() + row * stride, alone.data() + (first + row) * stride, c.shape.outputs);
        }
    }
}

}  // namespace

void check_linear_rows(const Kernels& kernels, Random random, Effort effort, Report& report) {
    Check& few = report.check("linear: rows alone and in company");
    Check& many = report.check("linear: rows alone and in prompts");
    for (const Format& format : formats) {
        std::vector<int64_t> sizes;
        for (int64_t rows = 1; rows <= 40; rows += effort.quick ? 3 : 1) sizes.push_back(rows);
        for (int64_t i = 0; i < effort.of(3); ++i) {
            const auto shards = static_cast<int32_t>(i == 0 ? 8 : random.between(1, 8));
            check_company(kernels.linear, few, format,
                          {random.between(1, 120), random.between(1, 300), shards, random.one_in(2), false}, sizes,
                          random);
        }
        std::vector<int64_t> prompts = {64, 65, 127, 128, 129, 200};
        if (effort.quick) prompts = {65, 131};
        check_company(kernels.linear, many, format, {97, effort.quick ? 331 : 700, 8, true, false}, prompts, random);
        // Where a path cannot keep all inputs of so many rows at hand.
        check_company(kernels.linear, many, format, {35, effort.quick ? 4100 : 6001, 3, false, false}, {1, 129},
                      random);
        if (!effort.quick) check_company(kernels.linear, many, format, {33, 161, 2, false, false}, {600}, random);
    }
}

}  // namespace stretto::selftest
