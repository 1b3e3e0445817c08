#include "../lanes/generic.hpp"
#include "choose_kernel.hpp"
