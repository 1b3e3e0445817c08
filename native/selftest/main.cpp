// Compares every op of every path that this machine runs with a scalar version in double precision, and rows with
// themselves in other company. Exits with 1 where anything differs.
//
//   stretto_selftest [--seed N] [--quick] [--only WORD] [--skip WORD] [--digest FILE]
//
// STRETTO_ISA restricts it to one path; WORD is part of a suite's name. FILE receives a hash of the bits of all results
// for each path and check: builds at other optimization levels must write the same.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "check.hpp"

namespace {

using namespace stretto::selftest;

constexpr NamedSuite suites[] = {
    {"linear", check_linear},
    {"linear rows", check_linear_rows},
    {"prepare", check_prepare},
    {"attention", check_attention},
    {"attention rows", check_attention_rows},
    {"storage", check_storage},
    {"rows", check_rows},
    {"route", check_route},
    {"choose", check_choose},
    {"filter", check_filter},
};
constexpr NamedSuite common[] = {{"packing", check_packing}, {"pool", check_pool}, {"controls", check_controls}};

struct Options {
    uint64_t seed = 1;
    Effort effort{false};
    std::string only, skip = "nothing", digest;

    bool wants(const std::string& suite) const {
        return suite.find(only) != std::string::npos && suite.find(skip) == std::string::npos;
    }
};

bool print(const char* path, const Report& report, double seconds, std::FILE* digests) {
    for (const Check& check : report.checks) {
        const std::string error =
            check.share > 0 ? text("worst error %.1e, %.2f of what is allowed", check.worst, check.share) : "";
        std::printf("%-8s %-50s %10lld compared  %s\n", path, check.name.c_str(), static_cast<long long>(check.count),
                    error.c_str());
        if (!check.failure.empty())
            std::printf("FAILED   %s, %s: %s\n", path, check.name.c_str(), check.failure.c_str());
        if (digests != nullptr)
            std::fprintf(digests, "%-8s %-50s %016llx\n", path, check.name.c_str(),
                         static_cast<unsigned long long>(check.digest));
    }
    std::printf("%-8s %.1f s\n", path, seconds);
    std::fflush(stdout);
    return report.good();
}

template <class Suites>
bool run(const char* name, const stretto::Kernels& kernels, const Suites& suites, const Options& options,
         std::FILE* digests) {
    const auto start = std::chrono::steady_clock::now();
    Report report;
    for (const NamedSuite& suite : suites)
        if (options.wants(suite.name)) suite.run(kernels, Random(options.seed), options.effort, report);
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
    return print(name, report, passed.count(), digests);
}

Options read(int count, char** arguments) {
    Options options;
    for (int i = 1; i < count; ++i) {
        const std::string word = arguments[i];
        const bool more = i + 1 < count;
        if (word == "--quick")
            options.effort.quick = true;
        else if (word == "--seed" && more)
            options.seed = std::strtoull(arguments[++i], nullptr, 10);
        else if (word == "--only" && more)
            options.only = arguments[++i];
        else if (word == "--skip" && more)
            options.skip = arguments[++i];
        else if (word == "--digest" && more)
            options.digest = arguments[++i];
        else
            throw std::invalid_argument("unknown or incomplete argument " + word +
                                        ", expected [--seed N] [--quick] [--only WORD] "
                                        "[--skip WORD] [--digest FILE]");
    }
    return options;
}

int test(const Options& options) {
    const char* const forced = std::getenv("STRETTO_ISA");
    const bool all = forced == nullptr || *forced == '\0';
    const stretto::Kernels* widest = all ? nullptr : &stretto::kernels_of(forced);
    std::FILE* const digests = options.digest.empty() ? nullptr : std::fopen(options.digest.c_str(), "w");
    if (!options.digest.empty() && digests == nullptr)
        throw std::invalid_argument("cannot write --digest " + options.digest);
    bool good = true;
    std::printf("seed %llu\n", static_cast<unsigned long long>(options.seed));
    for (const char* path : {"generic", "avx2", "avx512"}) {
        if (!all && std::string(path) != forced) continue;
        try {
            widest = &stretto::kernels_of(path);
        } catch (const std::invalid_argument&) {
            std::printf("%-8s is not for this machine\n", path);
            continue;
        }
        good &= run(path, *widest, suites, options, digests);
    }
    good &= run("", *widest, common, options, digests);
    if (digests != nullptr) std::fclose(digests);
    std::printf(good ? "All passed.\n" : "FAILED.\n");
    return good ? 0 : 1;
}

}  // namespace

int main(int count, char** arguments) {
    try {
        return test(read(count, arguments));
    } catch (const std::invalid_argument& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 2;
    }
}
