// Entry point of products with packed matrices.
#include "linear.h"

#include "integers.h"
#include "pool.h"
#include "rows.h"
#include "vector_kernels.h"

namespace ga {

bool Prepared::prepare(const float* x, int64_t rows, int64_t stride, const ga_matrix& w, Activations& out) {
    const int64_t cols = w.cols, kind = w.kind;
    out = Activations{};
    out.rows = rows;
    out.cols = cols;
    out.padded = padded_cols(cols, kind);
    if (kind == kFloat32) {
        out.plain = x;
        out.stride = stride;
        return true;
    }
    if (w.integers) return prepare_integers(x, stride, *w.integers, out);
    const LinearKernels& kernels = linear_kernels();
    const int64_t padded = out.padded;
    if (kind == kBfloat16 && kernels.round_to_bfloat16) {
        auto* rounded = reinterpret_cast<float*>(buffer_.get(static_cast<size_t>(rows * padded) * 4 + 64));
        if (!rounded) return false;
        for_rows(rows, cols, [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r)
                kernels.round_to_bfloat16(x + r * stride, cols, padded, rounded + r * padded);
        });
        out.rounded = rounded;
        return true;
    }
    if (kind == kBfloat16) {
        auto* bfloat16 = reinterpret_cast<uint16_t*>(buffer_.get(static_cast<size_t>(rows * padded) * 2 + 64));
        if (!bfloat16) return false;
        for_rows(rows, cols, [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r)
                kernels.to_bfloat16(x + r * stride, cols, padded, bfloat16 + r * padded);
        });
        out.bfloat16 = bfloat16;
        return true;
    }
    const int64_t groups = padded / kGroup;
    const size_t quant_bytes = static_cast<size_t>(round_up(rows * padded, 64));
    char* memory = buffer_.get(quant_bytes + static_cast<size_t>(rows * groups) * 12 + 64);
    if (!memory) return false;
    auto* quants = reinterpret_cast<int8_t*>(memory);
    auto* scales = reinterpret_cast<float*>(memory + quant_bytes);
    auto* offsets = scales + rows * groups;
    auto* sums = reinterpret_cast<int32_t*>(offsets + rows * groups);
    for_rows(rows, cols, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
            kernels.quantise(x + r * stride, cols, padded, quants + r * padded, scales + r * groups,
                             sums + r * groups, offsets + r * groups);
    });
    out.groups = groups;
    out.quants = quants;
    out.scales = scales;
    out.sums = sums;
    out.offsets = offsets;
    return true;
}

bool Prepared::prepare_integers(const float* x, int64_t stride, const ga_integers& how, Activations& out) {
    const int64_t rows = out.rows, padded = out.padded, groups = how.groups;
    const size_t quant_bytes = static_cast<size_t>(round_up(rows * padded, 64));
    char* memory = buffer_.get(quant_bytes + static_cast<size_t>(rows * (groups + 1)) * 4 + 64);
    if (!memory) return false;
    auto* quants = reinterpret_cast<int8_t*>(memory);
    auto* scales = reinterpret_cast<float*>(memory + quant_bytes);
    auto* sums = reinterpret_cast<int32_t*>(scales + rows);
    for_rows(rows, out.cols, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
            scales[r] = quantise_row(x + r * stride, out.cols, padded, how, quants + r * padded, sums + r * groups);
    });
    out.groups = groups;
    out.quants = quants;
    out.scales = scales;
    out.sums = sums;
    return true;
}

void multiply(const ga_matrix& w, const Activations& x, float* y, int64_t y_stride) {
    const int64_t panels = panels_of(w), step = panels_per_task(panels, 1);
    const Product product = product_for(w);
    parallel((panels + step - 1) / step, [&](int task, int) {
        const int64_t begin = task * step, end = begin + step < panels ? begin + step : panels;
        product(w, x, {0, x.rows, begin, end, y, y_stride});
    });
}

void swiglu_rows(const float* gate_up, float* y, int64_t rows, int64_t width) {
    const auto swiglu = vector_kernels().swiglu;
    for_rows(rows, width * 3, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
            swiglu(gate_up + r * 2 * width, gate_up + r * 2 * width + width, y + r * width, width);
    });
}

int64_t panels_per_task(int64_t panels, int64_t matrices) {
    const int64_t wanted = panels * matrices / (static_cast<int64_t>(threads()) * 4);
    return wanted >= 8 ? 8 : wanted >= 4 ? 4 : wanted >= 2 ? 2 : 1;
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

int32_t ga_gated_mlp(const ga_mlp_args* args) {
    const ga_mlp_args a = *args;
    if (a.tokens == 0) return 0;
    const int64_t width = a.down.cols;
    thread_local ga::Prepared prepared;
    thread_local ga::Buffer buffer;
    auto* gate_up = reinterpret_cast<float*>(buffer.get(static_cast<size_t>(a.tokens * 3 * width) * sizeof(float)));
    if (!gate_up) return 1;
    float* inner = gate_up + a.tokens * 2 * width;
    ga::Activations x;
    if (!prepared.prepare(a.x, a.tokens, a.x_stride, a.gate_up, x)) return 1;
    ga::multiply(a.gate_up, x, gate_up, 2 * width);
    ga::swiglu_rows(gate_up, inner, a.tokens, width);
    if (!prepared.prepare(inner, a.tokens, width, a.down, x)) return 1;
    ga::multiply(a.down, x, a.y, a.down.rows);
    return 0;
}
