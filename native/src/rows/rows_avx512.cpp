#include "../lanes/avx512.hpp"
#include "rows_kernel.hpp"
