#include "../lanes/generic.hpp"
#include "rows_kernel.hpp"
