// Attention and index scores for AVX2.
#include "attention_kernel.h"
#include "x86/simd_avx2.h"

namespace ga {
const AttentionKernels attention_avx2 = attention_table<Avx2>();
}
