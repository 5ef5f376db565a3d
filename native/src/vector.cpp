// The portable row-wise kernels, and the choice of the table for the level in use.
#include "level.h"
#include "simd_portable.h"
#include "vector_kernel.h"

namespace ga {

const VectorKernels vector_portable = vector_table<Portable>();

const VectorKernels& vector_kernels() {
#if defined(GA_X86)
    if (level() >= Level::avx512) return vector_avx512;
    if (level() == Level::avx2) return vector_avx2;
#elif defined(GA_ARM)
    if (level() >= Level::neon) return vector_neon;
#endif
    return vector_portable;
}

}  // namespace ga
