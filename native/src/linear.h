// Products with packed matrices: preparing activations, and cutting the work into tasks.
#pragma once
#include <stdint.h>

#include "buffer.h"
#include "linear_kernels.h"

namespace ga {

// Memory for prepared activations, kept by one calling thread.
class Prepared {
public:
    // Rows of x (`stride` floats apart) for a matrix like w; valid until the next call. False: no memory.
    bool prepare(const float* x, int64_t rows, int64_t stride, const ga_matrix& w, Activations& out);

private:
    bool prepare_integers(const float* x, int64_t stride, const ga_integers& how, Activations& out);
    Buffer buffer_;
};

// y = W x + bias for all prepared rows, split over the thread pool.
void multiply(const ga_matrix& w, const Activations& x, float* y, int64_t y_stride);

// swiglu of rows of [gate | up] into contiguous rows of `width`.
void swiglu_rows(const float* gate_up, float* y, int64_t rows, int64_t width);

// Panels per task: enough tasks for all threads, long enough for a task to be worth its start.
int64_t panels_per_task(int64_t panels, int64_t matrices);

}  // namespace ga
