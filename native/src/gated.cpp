// Products as parts of one job, and SwiGLU with the next product's quantisation inside the first product's tasks:
// what gate and up give never leaves the cache of the core that computed it.
#include "gated.h"

#include <string.h>

#include <algorithm>
#include <atomic>

#include "runs.h"
#include "vector_kernels.h"

namespace ga {
namespace {

// Calls body(part, piece) for pieces_of(part) pieces of every part; each thread goes through its run of them in order.
template <class P, class Count, class Body>
void for_pieces(const std::vector<P>& parts, const Count& pieces_of, const Body& body) {
    std::vector<int64_t> ends(parts.size());
    int64_t total = 0;
    for (size_t i = 0; i < parts.size(); ++i) ends[i] = total += pieces_of(parts[i]);
    parallel_runs(total, 1, [&](int64_t piece, int64_t) {
        const size_t i = static_cast<size_t>(std::upper_bound(ends.begin(), ends.end(), piece) - ends.begin());
        body(parts[i], piece - (i ? ends[i - 1] : 0));
    });
}

// The columns [begin, end) of `part.inner`: whole groups and panels of gate, and as many of up. Where a block of y would
// begin is a matter of rows and panels; ours are small, so y is set back by what lies before them. False: no memory.
bool gated_piece(const GatedPart& part, int64_t begin, int64_t end) {
    const ga_matrix& w = *part.w;
    const int64_t width = part.inner->width(), first = begin / kPanelRows, last = round_up(end, kPanelRows) / kPanelRows;
    const int64_t up_first = (width + begin) / kPanelRows, up_last = round_up(width + end, kPanelRows) / kPanelRows;
    const int64_t stride = (last - first) * kPanelRows, up_stride = (up_last - up_first) * kPanelRows;
    const Product product = product_for(w);
    const int64_t rows = part.row_end - part.row_begin, most = linear_kernels().rows_at_once, at_once = rows < most ? rows : most;
    thread_local Buffer buffer;
    auto* row = reinterpret_cast<float*>(
        buffer.get(static_cast<size_t>(stride + at_once * (stride + up_stride)) * sizeof(float)));
    if (!row) return false;
    float *gate = row + stride, *up = gate + at_once * stride;
    const auto swiglu = vector_kernels().swiglu;
    for (int64_t r = part.row_begin; r < part.row_end; r += at_once) {
        const int64_t stop = r + at_once < part.row_end ? r + at_once : part.row_end;
        product(w, *part.x, {r, stop, first, last, gate - r * stride - first * kPanelRows, stride});
        product(w, *part.x, {r, stop, up_first, up_last, up - r * up_stride - up_first * kPanelRows, up_stride});
        for (int64_t i = r; i < stop; ++i) {
            const float* from = up + (i - r) * up_stride + (width + begin) % kPanelRows;
            swiglu(gate + (i - r) * stride, from, row, end - begin);
            part.inner->put(i, begin, end, row);
        }
    }
    return true;
}

}  // namespace

void multiply(const std::vector<Part>& parts) {
    int64_t panels = 0, rows = 0;
    for (const Part& part : parts) {
        panels += panels_of(*part.w);
        rows = std::max(rows, part.row_end - part.row_begin);
    }
    const int64_t step = panels_per_piece(panels, rows);
    const auto pieces = [&](const Part& part) { return (panels_of(*part.w) + step - 1) / step; };
    for_pieces(parts, pieces, [&](const Part& part, int64_t piece) {
        const int64_t begin = piece * step, all = panels_of(*part.w), end = begin + step < all ? begin + step : all;
        product_for(*part.w)(*part.w, *part.x, {part.row_begin, part.row_end, begin, end, part.y, part.y_stride});
    });
}

bool Inner::reserve(int64_t rows, const ga_matrix& down) {
    rows_ = rows;
    width_ = down.cols;
    if (!down.integers) {
        whole_ = nullptr;
        return prepared_.reserve(rows, down, activations_);
    }
    whole_ = reinterpret_cast<float*>(buffer_.get(static_cast<size_t>(rows * width_) * sizeof(float)));
    return whole_ != nullptr;
}

void Inner::put(int64_t row, int64_t begin, int64_t end, const float* x) const {
    if (whole_)
        memcpy(whole_ + row * width_ + begin, x, static_cast<size_t>(end - begin) * sizeof(float));
    else
        prepared_.put(row, begin, end, x);
}

bool Inner::finish(const ga_matrix& down, Activations& out) {
    if (whole_) return prepared_.prepare(whole_, rows_, width_, down, out);
    out = activations_;
    return true;
}

bool multiply_gated(const std::vector<GatedPart>& parts) {
    int64_t width = 0;
    for (const GatedPart& part : parts) width += part.inner->width();
    int64_t step = linear_kernels().cols_at_once;
    while (step > kGroup && width < step * threads() * 4) step /= 2;
    const auto pieces = [&](const GatedPart& part) { return (part.inner->width() + step - 1) / step; };
    std::atomic<bool> good{true};
    for_pieces(parts, pieces, [&](const GatedPart& part, int64_t piece) {
        const int64_t begin = piece * step, all = part.inner->width();
        if (!gated_piece(part, begin, begin + step < all ? begin + step : all)) good = false;
    });
    return good;
}

}  // namespace ga
