// Products that are one job together, and those that end in SwiGLU: what MLPs and mixtures of experts are made of.
#pragma once
#include <stdint.h>

#include <vector>

#include "linear.h"

namespace ga {

// y = W x + bias for some of the rows of x; y holds row 0 of x.
struct Part {
    const ga_matrix* w;
    const Activations* x;
    int64_t row_begin, row_end;
    float* y;
    int64_t y_stride;
};

// All parts, split over the thread pool as one job.
void multiply(const std::vector<Part>& parts);

// swiglu(gate_up(x)) as the product with `down` wants it. Pieces of rows come from several threads.
class Inner {
public:
    bool reserve(int64_t rows, const ga_matrix& down);  // false: no memory
    void put(int64_t row, int64_t begin, int64_t end, const float* x) const;
    bool finish(const ga_matrix& down, Activations& out);  // when all is there; false: no memory
    int64_t width() const { return width_; }

private:
    Prepared prepared_;
    Buffer buffer_;
    Activations activations_;
    float* whole_ = nullptr;  // rows that are quantised as a whole wait here
    int64_t rows_ = 0, width_ = 0;
};

// swiglu(W x + bias) for some of the rows of x, into the same rows of `inner`. W has the gate's rows, then up's.
struct GatedPart {
    const ga_matrix* w;
    const Activations* x;
    int64_t row_begin, row_end;
    const Inner* inner;
};

bool multiply_gated(const std::vector<GatedPart>& parts);  // false: no memory

}  // namespace ga
