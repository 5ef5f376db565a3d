// The row-wise kernels (norm, rope, swiglu, add) for AVX-512.
#include "vector_kernel.h"
#include "x86/simd_avx512.h"

namespace ga {
const VectorKernels vector_avx512 = vector_table<Avx512>();
}
