#include "../lanes/avx2.hpp"

namespace stretto::avx2 {
namespace {

constexpr int query_lines = 4, query_blocks = 1;
constexpr int value_lines = 2, value_registers = 2;

}  // namespace
}  // namespace stretto::avx2

#include "dot_pairs.hpp"

#include "attention_kernel.hpp"
