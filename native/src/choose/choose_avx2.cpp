#include "../lanes/avx2.hpp"
#include "filter_kernel.hpp"
