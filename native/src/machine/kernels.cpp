#include "machine/kernels.hpp"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "machine/instruction_set.hpp"

namespace stretto {
namespace {

#define STRETTO_TABLE(path)   \
    {#path,                   \
     path::linear_kernels,    \
     path::attention_kernels, \
     path::row_kernels,       \
     path::choose_kernels,    \
     path::measure_kernels}

// From the narrowest to the widest; a machine that runs one runs those before it.
const Kernels paths[] = {
    STRETTO_TABLE(generic),
#if defined(__x86_64__) || defined(_M_X64)
    STRETTO_TABLE(avx2),
    STRETTO_TABLE(avx512),
#endif
};

}  // namespace

const Kernels& kernels_of(const char* name) {
    const char* widest = instruction_set();
    std::string runnable;
    for (const Kernels& path : paths) {
        if (std::strcmp(path.name, name) == 0) return path;
        runnable += runnable.empty() ? path.name : std::string(", ") + path.name;
        if (std::strcmp(path.name, widest) == 0) break;
    }
    throw std::invalid_argument("STRETTO_ISA is '" + std::string(name) +
                                "', expected one that this machine runs: " + runnable);
}

const Kernels& kernels() {
    static const Kernels& chosen = [&]() -> const Kernels& {
        const char* forced = std::getenv("STRETTO_ISA");
        return kernels_of(forced != nullptr && *forced != '\0' ? forced : instruction_set());
    }();
    return chosen;
}

}  // namespace stretto
