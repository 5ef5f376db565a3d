// Entry points of products with packed matrices.
#include "linear.h"

#include <new>

#include "gated.h"
#include "runs.h"

namespace ga {

void multiply(const ga_matrix& w, const Activations& x, float* y, int64_t y_stride) {
    const int64_t panels = panels_of(w), step = panels_per_piece(panels, x.rows);
    const Product product = product_for(w);
    parallel_runs(panels, step, [&](int64_t begin, int64_t end) {
        product(w, x, {0, x.rows, begin, end, y, y_stride});
    });
}

int64_t panels_per_piece(int64_t panels, int64_t rows) {
    const int64_t wanted = panels / (static_cast<int64_t>(threads()) * 4), most = rows <= kFewRows ? 4 : 8;
    return wanted >= most ? most : wanted >= 4 ? 4 : wanted >= 2 ? 2 : 1;
}

}  // namespace ga

int32_t ga_linear(const ga_linear_args* args) {
    const ga_linear_args a = *args;
    if (a.tokens == 0) return 0;
    thread_local ga::Prepared prepared;
    ga::Activations x;
    for (int64_t m = 0; m < a.count; ++m) {
        const ga_matrix& w = a.matrices[m];
        if (!prepared.prepare(a.x + m * a.x_matrix_stride, a.tokens, a.x_stride, w, x)) return 1;
        ga::multiply(w, x, a.y + m * a.y_matrix_stride, a.y_stride);
    }
    return 0;
}

int32_t ga_gated_mlp(const ga_mlp_args* args) try {
    const ga_mlp_args a = *args;
    if (a.tokens == 0) return 0;
    thread_local ga::Prepared prepared;
    thread_local ga::Inner inner;
    ga::Activations x;
    if (!prepared.prepare(a.x, a.tokens, a.x_stride, a.gate_up, x) || !inner.reserve(a.tokens, a.down)) return 1;
    if (!ga::multiply_gated({{&a.gate_up, &x, 0, a.tokens, &inner}}) || !inner.finish(a.down, x)) return 1;
    ga::multiply(a.down, x, a.y, a.down.rows);
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}
