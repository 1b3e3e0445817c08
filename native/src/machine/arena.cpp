#include "machine/arena.hpp"

#include <cstdint>
#include <new>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <sys/mman.h>
#endif

namespace stretto {
namespace {

constexpr std::size_t huge = std::size_t{2} << 20;
constexpr std::size_t page = 4096;
constexpr std::size_t chunk = std::size_t{256} << 20;  // address space: pages come when they are first written to

std::size_t round_up(std::size_t size, std::size_t multiple) { return (size + multiple - 1) / multiple * multiple; }

}  // namespace

Memory::Memory(std::size_t bytes) : size_(bytes) {
    if (bytes == 0) return;
    const std::size_t alignment = bytes >= huge ? huge : page;
    mapped_ = round_up(bytes, alignment) + (alignment == huge ? huge : 0);
#if defined(_WIN32)
    base_ = VirtualAlloc(nullptr, mapped_, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
    if (base_ == nullptr) throw std::bad_alloc();
#else
    base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (base_ == MAP_FAILED) {
        base_ = nullptr;
        throw std::bad_alloc();
    }
#endif
    const auto address = reinterpret_cast<std::uintptr_t>(base_);
    data_ = static_cast<std::byte*>(base_) + (round_up(address, alignment) - address);
#if defined(__linux__)
    if (alignment == huge) madvise(data_, round_up(bytes, huge), MADV_HUGEPAGE);
#endif
}

Memory::~Memory() {
    if (base_ == nullptr) return;
#if defined(_WIN32)
    VirtualFree(base_, 0, MEM_RELEASE);
#else
    munmap(base_, mapped_);
#endif
}

std::byte* Arena::allocate(std::size_t bytes) {
    bytes = round_up(bytes, page);
    if (chunks_.empty() || used_ + bytes > chunks_.back().size()) {
        chunks_.emplace_back(bytes > chunk ? bytes : chunk);
        used_ = 0;
    }
    std::byte* piece = chunks_.back().data() + used_;
    used_ += bytes;
    return piece;
}

}  // namespace stretto
