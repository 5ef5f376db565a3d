// Device memory is host memory, counted per device.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "error.h"

namespace ga::vnpu {

constexpr int32_t kHost = -1;

struct Block {
    char* begin = nullptr;
    size_t size = 0;
    int32_t device = 0;  // or kHost: pinned
};

// The block that holds this address, with the blocks of the same device that follow it without a gap (maps of virtual
// memory are made piece by piece); false if none does.
bool find_block(const void* address, Block* out);

// A range of addresses that belongs to a device now, and no longer (virtual memory).
void add_block(const Block& block);
bool remove_block(const void* begin);

// Counts bytes against a device's memory; kOutOfMemory with a text if there is too little.
Status charge(int32_t device, size_t bytes);
void credit(int32_t device, size_t bytes);

// Changes whenever memory is given back: views of it made before may be stale.
uint64_t memory_generation();

}  // namespace ga::vnpu
