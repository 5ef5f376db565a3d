/* Row-wise float32 kernels: RMS norm, addition, SwiGLU. Arguments travel in one struct; strides count floats. */
#pragma once
#include "gallium/abi.h"

#ifdef __cplusplus
extern "C" {
#endif

/* y[r] = s / sqrt(mean(s^2) + eps) * gain over `width`, where s = x[r], or residual[r] + x[r] if residual is given;
 * then s is stored in sum[r] too. A row is [outer][inner] of the input: rows = outer * inner vectors, the outer ones
 * x_stride apart, the inner ones `width` apart. y, sum and residual are contiguous. */
typedef struct {
    const float* x;
    const float* residual; /* or null */
    const float* gain;
    float* sum; /* or null */
    float* y;
    int64_t outer, inner, width, x_stride;
    double eps;
} ga_norm_args;
GA_EXPORT void ga_rms_norm(const ga_norm_args* args);

/* z = x + y, `count` floats. */
typedef struct {
    const float* x;
    const float* y;
    float* z;
    int64_t count;
} ga_add_args;
GA_EXPORT void ga_add(const ga_add_args* args);

/* y[r][i] = g * sigmoid(g) * u with g = x[r][i], u = x[r][width + i]; y is [rows][width]. */
typedef struct {
    const float* x;
    float* y;
    int64_t rows, width, x_stride;
} ga_swiglu_args;
GA_EXPORT void ga_swiglu(const ga_swiglu_args* args);

#ifdef __cplusplus
}
#endif
