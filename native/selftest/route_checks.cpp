// The choice of experts, ties among them.
#include <algorithm>
#include <cmath>

#include "check.hpp"

namespace stretto::selftest {

void check_route(const Kernels& kernels, Random random, Effort effort, Report& report) {
    Check& check = report.check("rows: experts");
    for (int64_t i = 0; i < effort.of(300); ++i) {
        const int64_t count = random.between(1, random.one_in(4) ? 300 : 40),
                      chosen = random.between(1, std::min<int64_t>(count, 9));
        const bool normalised = random.one_in(2);
        check.about(text("%lld of %lld experts", static_cast<long long>(chosen), static_cast<long long>(count)));
        Buffer<float> logits(count), weights(chosen);
        // Quarters: experts are exactly equal or far apart, so that their order is beyond doubt.
        for (float& x : logits) x = static_cast<float>(random.between(-20, 20)) * 0.25f;
        Buffer<int32_t> ids(chosen);
        kernels.rows.route(logits.data(), count, chosen, normalised, ids.data(), weights.data());
        std::vector<int32_t> order;
        for (int32_t expert = 0; expert < count; ++expert) order.push_back(expert);
        std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
        double total = 0;
        for (int64_t j = 0; j < (normalised ? chosen : count); ++j)
            total += std::exp(static_cast<double>(logits[order[static_cast<size_t>(j)]]));
        for (int64_t j = 0; j < chosen; ++j) {
            const int32_t expert = order[static_cast<size_t>(j)];
            check.near(ids[j], expert, 0);
            const double want = std::exp(static_cast<double>(logits[expert])) / total;
            check.near(weights[j], want, want * 40 * half_ulp);
        }
        // A row that is lost still names experts that there are.
        logits[random.below(count)] = random.one_in(2) ? NAN : INFINITY;
        kernels.rows.route(logits.data(), count, chosen, normalised, ids.data(), weights.data());
        std::vector<bool> named(static_cast<size_t>(count), false);
        for (const int32_t expert : ids) {
            const bool there = expert >= 0 && expert < count && !named[static_cast<size_t>(expert)];
            check.that(there, "different experts of a row with NaN");
            if (there) named[static_cast<size_t>(expert)] = true;
        }
    }
}

}  // namespace stretto::selftest
