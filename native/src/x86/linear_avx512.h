// The AVX-512 products that the AMX level uses too.
#pragma once
#include "linear_kernels.h"

namespace ga {

void product_float32_avx512(const ga_matrix& w, const Activations& a, const Block& block);
void sums_int4_avx512(const ga_matrix& w, const Activations& a, const SumBlock& s);
void to_bfloat16_avx512(const float* x, int64_t cols, int64_t padded, uint16_t* out);

}  // namespace ga
