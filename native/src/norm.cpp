// Entry points of the row-wise kernels: RMS norm with and without addition, and plain addition.
#include "gallium/norm.h"

#include "rows.h"
#include "vector_kernels.h"

void ga_rms_norm(const ga_norm_args* args) {
    const ga_norm_args a = *args;
    const auto norm = ga::vector_kernels().norm;
    ga::for_rows(a.outer * a.inner, a.width * 2, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            const float* x = a.x + (r / a.inner) * a.x_stride + (r % a.inner) * a.width;
            const int64_t at = r * a.width;
            norm(x, a.residual ? a.residual + at : nullptr, a.gain, a.sum ? a.sum + at : nullptr, a.y + at, a.width,
                 static_cast<float>(a.eps));
        }
    });
}

void ga_add(const ga_add_args* args) {
    const ga_add_args a = *args;
    const auto add = ga::vector_kernels().add;
    const int64_t step = 4096;
    ga::for_rows((a.count + step - 1) / step, step, [&](int64_t begin, int64_t end) {
        const int64_t from = begin * step, to = end * step < a.count ? end * step : a.count;
        add(a.x + from, a.y + from, a.z + from, to - from);
    });
}
