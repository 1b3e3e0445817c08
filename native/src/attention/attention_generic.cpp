#include "../lanes/generic.hpp"

namespace stretto::generic {
namespace {

constexpr int query_lines = 4, query_blocks = 1;
constexpr int value_lines = 2, value_registers = 2;

}  // namespace
}  // namespace stretto::generic

#include "dot_pairs.hpp"

#include "attention_kernel.hpp"
