// The Python face of the native library. It takes raw pointers and is not linked against PyTorch.
#include <nanobind/nanobind.h>

#include "instruction_set.hpp"

// Raised with every change of a signature below; stretto/kernels/native.py refuses a library of another age.
constexpr int abi_version = 1;

NB_MODULE(_native, module) {
    module.doc() = "Stretto's kernels in C++";
    module.def("abi_version", [] { return abi_version; }, "The version of this library's signatures.");
    module.def("instruction_set", &stretto::instruction_set,
               "The widest instruction set of this machine that kernels may use: 'avx512', 'avx2' or 'generic'.");
}
