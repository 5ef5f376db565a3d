// Element-wise reduction over ranks, in the order of the ranks.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "codes.h"

namespace ga::vnpu::hccl {

// Reduces `count` elements of `ranks` sources into `to`. 16-bit floats are reduced in float32 and rounded once.
using Reducer = void (*)(const char* const* sources, uint32_t ranks, char* to, size_t count);

// Null: there is no such reduction of this type.
Reducer reducer(DataType dtype, Reduction reduction);

}  // namespace ga::vnpu::hccl
