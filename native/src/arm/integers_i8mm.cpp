// Integer sums with a checkpoint's own integers for arm64's matrix instructions: bytes_i8mm.h has layout and limit.
#include "arm/bytes_i8mm.h"
#include "arm/integers_tiles.h"
#include "arm/linear_neon.h"

namespace ga {

void sums_int8_i8mm(const ga_matrix& w, const Activations& a, const SumBlock& s) {
    integer_sums<MatrixInt8>(w, a, s);
}

void sums_int4_i8mm(const ga_matrix& w, const Activations& a, const SumBlock& s) {
    integer_sums<MatrixInt4>(w, a, s);
}

}  // namespace ga
