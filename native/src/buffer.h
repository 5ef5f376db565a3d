// A buffer that only grows: scratch that one thread keeps between calls.
#pragma once
#include <stddef.h>
#include <stdlib.h>

namespace ga {

class Buffer {
public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { free(data_); }

    // At least `bytes`, on a cache line; contents are lost on growth. Null if there is no memory.
    char* get(size_t bytes) {
        if (bytes > size_) {
            free(data_);
            const size_t rounded = (bytes + bytes / 4 + 4095) / 4096 * 4096;
            data_ = static_cast<char*>(aligned_alloc(4096, rounded));
            size_ = data_ ? rounded : 0;
        }
        return data_;
    }

private:
    char* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace ga
