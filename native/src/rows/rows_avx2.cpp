#include "../lanes/avx2.hpp"
#include "rows_kernel.hpp"
