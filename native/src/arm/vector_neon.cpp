// The row-wise kernels (norm, rope, swiglu, add) for NEON. Limit: memory, or the L1 cache for rows that fit it.
#include "arm/simd_neon.h"
#include "vector_kernel.h"

namespace ga {
const VectorKernels vector_neon = vector_table<Neon>();
}
