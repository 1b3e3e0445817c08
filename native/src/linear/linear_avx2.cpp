#include <immintrin.h>

#include <cstring>

#include "lanes/avx2.hpp"
#include "linear/linear.hpp"
#include "linear/pack.hpp"

namespace stretto::avx2 {
namespace {

constexpr double products_per_ns = 80;

#include "linear/linear_kernel.hpp"
#include "linear/prepare_kernel.hpp"
#include "linear/tiles_avx2.hpp"

}  // namespace

const LinearKernels linear_kernels = {0, true, pieces, run, prepare};

}  // namespace stretto::avx2
