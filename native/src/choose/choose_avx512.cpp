#include "../lanes/avx512.hpp"
#include "choose_kernel.hpp"
