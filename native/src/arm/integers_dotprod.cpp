// Integer sums with a checkpoint's own integers for NEON with dot products: bytes_dotprod.h has layout and limit.
#include "arm/bytes_dotprod.h"
#include "arm/integers_tiles.h"
#include "arm/linear_neon.h"

namespace ga {

void sums_int8_dotprod(const ga_matrix& w, const Activations& a, const SumBlock& s) {
    integer_sums<DotprodInt8>(w, a, s);
}

void sums_int4_dotprod(const ga_matrix& w, const Activations& a, const SumBlock& s) {
    integer_sums<DotprodInt4>(w, a, s);
}

}  // namespace ga
