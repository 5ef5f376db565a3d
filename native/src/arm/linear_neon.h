// What the levels above NEON take over from it.
#pragma once
#include "linear_kernels.h"

namespace ga {

void product_float32_neon(const ga_matrix& w, const Activations& a, const Block& b);
void product_bfloat16_neon(const ga_matrix& w, const Activations& a, const Block& b);  // of Activations::rounded
void to_bfloat16_neon(const float* x, int64_t cols, int64_t padded, uint16_t* out);
void round_to_bfloat16_neon(const float* x, int64_t cols, int64_t padded, float* out);
void quantise_neon(const float* x, int64_t cols, int64_t padded, int8_t* quants, float* scales, int32_t* sums,
                   float* offsets);
void sums_int8_neon(const ga_matrix& w, const Activations& a, const SumBlock& s);
void sums_int4_neon(const ga_matrix& w, const Activations& a, const SumBlock& s);
void sums_int8_dotprod(const ga_matrix& w, const Activations& a, const SumBlock& s);
void sums_int4_dotprod(const ga_matrix& w, const Activations& a, const SumBlock& s);
void sums_int8_i8mm(const ga_matrix& w, const Activations& a, const SumBlock& s);
void sums_int4_i8mm(const ga_matrix& w, const Activations& a, const SumBlock& s);

}  // namespace ga
