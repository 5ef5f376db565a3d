// Entry point of SwiGLU.
#include "gallium/norm.h"
#include "rows.h"
#include "vector_kernels.h"

void ga_swiglu(const ga_swiglu_args* args) {
    const ga_swiglu_args a = *args;
    const auto swiglu = ga::vector_kernels().swiglu;
    ga::for_rows(a.rows, a.width * 3, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
            swiglu(a.x + r * a.x_stride, a.x + r * a.x_stride + a.width, a.y + r * a.width, a.width);
    });
}
