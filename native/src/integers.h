// Quantising a whole row of activations, for matrices with `integers`.
#pragma once
#include <stdint.h>

#include "gallium/linear.h"

namespace ga {

// One row in 8 bits (padding columns are 0) and its sums over each of the matrix's groups; returns the row's scale.
float quantise_row(const float* x, int64_t cols, int64_t padded, const ga_integers& how, int8_t* quants, int32_t* sums);

}  // namespace ga
