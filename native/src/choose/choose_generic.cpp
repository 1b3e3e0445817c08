#include "../lanes/generic.hpp"
#include "filter_kernel.hpp"
