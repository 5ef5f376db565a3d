// Attention and index scores for AVX-512.
#include "attention_kernel.h"
#include "x86/simd_avx512.h"

namespace ga {
const AttentionKernels attention_avx512 = attention_table<Avx512>();
}
