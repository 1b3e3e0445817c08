#include "../lanes/avx512.hpp"
#include "filter_kernel.hpp"
