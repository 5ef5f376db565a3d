// The row-wise kernels (norm, rope, swiglu, add) for AVX2.
#include "vector_kernel.h"
#include "x86/simd_avx2.h"

namespace ga {
const VectorKernels vector_avx2 = vector_table<Avx2>();
}
