// Activations as the products want them: as they are, in bfloat16, or in 8 bits.
#include <string.h>

#include "integers.h"
#include "linear.h"
#include "rows.h"

namespace ga {

// One piece of memory holds everything; what a form does not need takes no room.
bool Prepared::reserve(int64_t rows, const ga_matrix& w, Activations& out) {
    form_ = form_for(w);
    cols_ = w.cols;
    padded_ = padded_cols(w.cols, w.kind);
    groups_ = w.integers ? w.integers->groups : padded_ / kGroup;
    const bool bytes = form_ == Form::kBytes, halves = form_ == Form::kBfloat16;
    const int64_t element = bytes ? 1 : halves ? 2 : 4;
    const size_t values = static_cast<size_t>(round_up(rows * padded_ * element, 64));
    const int64_t scales = w.integers ? rows : rows * groups_;
    char* memory = buffer_.get(values + (bytes ? static_cast<size_t>(scales * 2 + rows * groups_) * 4 : 0) + 64);
    if (!memory) return false;
    floats_ = bytes || halves ? nullptr : reinterpret_cast<float*>(memory);
    bfloat16_ = halves ? reinterpret_cast<uint16_t*>(memory) : nullptr;
    quants_ = bytes ? reinterpret_cast<int8_t*>(memory) : nullptr;
    scales_ = bytes ? reinterpret_cast<float*>(memory + values) : nullptr;
    offsets_ = bytes ? scales_ + scales : nullptr;
    sums_ = bytes ? reinterpret_cast<int32_t*>(offsets_ + scales) : nullptr;
    out = Activations{};
    out.rows = rows;
    out.cols = cols_;
    out.padded = padded_;
    out.groups = bytes ? groups_ : 0;
    out.plain = form_ == Form::kFloat32 ? floats_ : nullptr;
    out.stride = form_ == Form::kFloat32 ? padded_ : 0;
    out.rounded = form_ == Form::kRounded ? floats_ : nullptr;
    out.bfloat16 = bfloat16_;
    out.quants = quants_;
    out.scales = scales_;
    out.sums = sums_;
    out.offsets = w.integers ? nullptr : offsets_;
    return true;
}

void Prepared::put(int64_t row, int64_t begin, int64_t end, const float* x) const {
    const LinearKernels& kernels = linear_kernels();
    const int64_t at = row * padded_ + begin, cols = end - begin;
    const int64_t padded = end == cols_ ? padded_ - begin : cols;  // padding belongs to the row's last piece
    const int64_t group = row * groups_ + begin / kGroup;
    switch (form_) {
        case Form::kFloat32: memcpy(floats_ + at, x, static_cast<size_t>(cols) * sizeof(float)); break;
        case Form::kRounded: kernels.round_to_bfloat16(x, cols, padded, floats_ + at); break;
        case Form::kBfloat16: kernels.to_bfloat16(x, cols, padded, bfloat16_ + at); break;
        case Form::kBytes:
            kernels.quantise(x, cols, padded, quants_ + at, scales_ + group, sums_ + group, offsets_ + group);
            break;
    }
}

void Prepared::put_integers(int64_t row, const ga_integers& how, const float* x) const {
    scales_[row] = quantise_row(x, cols_, padded_, how, quants_ + row * padded_, sums_ + row * groups_);
}

bool Prepared::prepare(const float* x, int64_t rows, int64_t stride, const ga_matrix& w, Activations& out) {
    if (form_for(w) == Form::kFloat32) {
        out = Activations{};
        out.rows = rows;
        out.cols = out.padded = w.cols;
        out.plain = x;
        out.stride = stride;
        return true;
    }
    if (!reserve(rows, w, out)) return false;
    for_rows(rows, cols_, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            if (w.integers)
                put_integers(r, *w.integers, x + r * stride);
            else
                put(r, 0, cols_, x + r * stride);
        }
    });
    return true;
}

bool Prepared::gather(const Activations& from, const int64_t* rows_of, int64_t rows, const ga_matrix& w,
                      Activations& out) {
    if (!reserve(rows, w, out)) return false;
    const auto copy = [](auto* to, const auto* source, int64_t row, int64_t source_row, int64_t count) {
        memcpy(to + row * count, source + source_row * count, static_cast<size_t>(count) * sizeof(*to));
    };
    for_rows(rows, cols_, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            const int64_t s = rows_of[r];
            if (from.plain) memcpy(floats_ + r * padded_, from.plain + s * from.stride, sizeof(float) * cols_);
            if (from.rounded) copy(floats_, from.rounded, r, s, padded_);
            if (from.bfloat16) copy(bfloat16_, from.bfloat16, r, s, padded_);
            if (!from.quants) continue;
            copy(quants_, from.quants, r, s, padded_);
            copy(scales_, from.scales, r, s, from.offsets ? groups_ : 1);
            copy(sums_, from.sums, r, s, groups_);
            if (from.offsets) copy(offsets_, from.offsets, r, s, groups_);
        }
    });
    return true;
}

}  // namespace ga

int32_t ga_activation_bits(int64_t kind) {
    const ga::Form form = ga::linear_kernels().form[kind];
    return form == ga::Form::kFloat32 ? 32 : form == ga::Form::kBytes ? 8 : 16;
}
