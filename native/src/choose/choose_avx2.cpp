#include "../lanes/avx2.hpp"
#include "choose_kernel.hpp"
