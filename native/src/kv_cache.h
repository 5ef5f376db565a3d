// Writing one token into the paged cache.
#pragma once
#include "gallium/attention.h"

namespace ga {

// Keys and values of one token, all heads, into `slot` = block * block_size + offset. Layouts are in attention.h.
void store_token(const ga_cache& cache, int32_t slot, const float* k, const float* v);

}  // namespace ga
