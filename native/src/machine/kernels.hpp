// The kernels of one path, picked once per process.
#pragma once

#include "attention/attention.hpp"
#include "choose/choose.hpp"
#include "linear/linear.hpp"
#include "machine/measure.hpp"
#include "rows/rows.hpp"

namespace stretto {

struct Kernels {
    const char* name;
    const LinearKernels& linear;
    const AttentionKernels& attention;
    const RowKernels& rows;
    const ChooseKernels& choose;
    const MeasureKernels& measure;
};

// The kernels of the path that STRETTO_ISA names, else of the widest that this machine can run.
// Throws std::invalid_argument where STRETTO_ISA names none, or one that this machine cannot run.
const Kernels& kernels();

// The kernels of the path of that name; throws likewise.
const Kernels& kernels_of(const char* name);

}  // namespace stretto
