#include <cstring>

#include "lanes/generic.hpp"
#include "linear/linear.hpp"
#include "linear/pack.hpp"

namespace stretto::generic {
namespace {

constexpr double products_per_ns = 12;

#include "linear/linear_kernel.hpp"
#include "linear/prepare_kernel.hpp"
#include "linear/tiles_generic.hpp"

}  // namespace

const LinearKernels linear_kernels = {128, false, pieces, run, prepare};

}  // namespace stretto::generic
