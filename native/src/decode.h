// Stored rows to float32, for every coding that checkpoints use.
#pragma once
#include <stdint.h>

#include "gallium/linear.h"

namespace ga {

struct Coding {
    int64_t block;  // values per block
    int64_t bytes;  // bytes per block
    void (*decode)(const uint8_t* blocks, int64_t count, float* out);
};

const Coding& coding(int64_t storage);

inline int64_t row_bytes(const Coding& c, int64_t cols) { return cols / c.block * c.bytes; }

// One group of 32 values as d * q + m, from a coding that is made of such lines. `index` counts groups within the row.
struct Line {
    float d, m;
    uint8_t q[32];
};
bool has_lines(int64_t storage);
void read_line(int64_t storage, const uint8_t* row, int64_t index, Line& line);

}  // namespace ga
