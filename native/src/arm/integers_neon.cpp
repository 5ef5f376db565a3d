// Integer sums with a checkpoint's own integers for NEON: bytes_neon.h has layout and limit.
#include "arm/bytes_neon.h"
#include "arm/integers_tiles.h"
#include "arm/linear_neon.h"

namespace ga {

void sums_int8_neon(const ga_matrix& w, const Activations& a, const SumBlock& s) {
    if (w.integers->is_static)
        integer_sums<NeonInt8<true>>(w, a, s);
    else
        integer_sums<NeonInt8<false>>(w, a, s);
}

void sums_int4_neon(const ga_matrix& w, const Activations& a, const SumBlock& s) { integer_sums<NeonInt4>(w, a, s); }

}  // namespace ga
