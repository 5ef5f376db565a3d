// The row-wise kernels (norm, rope, swiglu, add) of one instruction-set level, as a table of functions.
#pragma once
#include <stdint.h>

namespace ga {

struct VectorKernels {
    const char* level;
    // y = s / sqrt(mean(s^2) + eps) * gain with s = x, or x + residual, which is also stored in `sum`.
    void (*norm)(const float* x, const float* residual, const float* gain, float* sum, float* y, int64_t n, float eps);
    // `heads` vectors of `width`: rotate the first `dim`. `table` holds dim cosines, then dim signed sines. y may be x.
    void (*rope)(const float* x, float* y, int64_t heads, int64_t width, int64_t dim, const float* table,
                 bool interleaved);
    // y[i] = gate * sigmoid(gate) * up
    void (*swiglu)(const float* gate, const float* up, float* y, int64_t n);
    void (*add)(const float* x, const float* y, float* z, int64_t n);
};

extern const VectorKernels vector_portable;
extern const VectorKernels vector_avx2;    // x86 only
extern const VectorKernels vector_avx512;  // x86 only
extern const VectorKernels vector_neon;    // arm64 only

// The table of the level in use.
const VectorKernels& vector_kernels();

}  // namespace ga
