// Products with packed matrices: preparing activations, and cutting the work into tasks.
#pragma once
#include <stdint.h>

#include "buffer.h"
#include "linear_kernels.h"

namespace ga {

// Memory for prepared activations, kept by one calling thread.
class Prepared {
public:
    // Rows of x (`stride` floats apart) in the form that a matrix like w wants; valid until the next call. False: no memory.
    bool prepare(const float* x, int64_t rows, int64_t stride, const ga_matrix& w, Activations& out);

    // Room for `rows` rows that come piece by piece, by `put`: not those for a matrix with `integers`, which have one scale.
    bool reserve(int64_t rows, const ga_matrix& w, Activations& out);
    // Columns [begin, end) of some row: `x` points to the first of them. They begin on a group, and end on one or with the
    // row. Calls from several threads may go on at once.
    void put(int64_t row, int64_t begin, int64_t end, const float* x) const;

    // The rows of `from` that `rows_of` names, in that order; valid until the next call. False: no memory.
    bool gather(const Activations& from, const int64_t* rows_of, int64_t rows, const ga_matrix& w, Activations& out);

private:
    void put_integers(int64_t row, const ga_integers& how, const float* x) const;

    Buffer buffer_;
    Form form_ = Form::kFloat32;
    int64_t cols_ = 0, padded_ = 0, groups_ = 0;
    float *floats_ = nullptr, *scales_ = nullptr, *offsets_ = nullptr;  // as in Activations
    uint16_t* bfloat16_ = nullptr;
    int8_t* quants_ = nullptr;
    int32_t* sums_ = nullptr;
};

// y = W x + bias for all prepared rows, split over the thread pool.
void multiply(const ga_matrix& w, const Activations& x, float* y, int64_t y_stride);

// Panels per piece of a job: enough pieces for all threads, long enough for a piece to be worth its start. A piece of
// few rows is read at memory's speed in a few microseconds, and a thread may have to wait for another's last one.
int64_t panels_per_piece(int64_t panels, int64_t rows);
constexpr int64_t kFewRows = 16;

}  // namespace ga
