// Products with packed matrices for NEON with dot products: int8 and int4. bytes_dotprod.h has layout and limit; floats
// are NEON's.
#include "arm/bytes_dotprod.h"
#include "arm/linear_neon.h"

namespace ga {

const LinearKernels linear_dotprod = {
    "dotprod",
    {product_float32_neon, product_bfloat16_neon, product<Grouped<DotprodInt8>>, product<Grouped<DotprodInt4>>},
    {Form::kFloat32, Form::kRounded, Form::kBytes, Form::kBytes},
    nullptr,
    quantise_neon,
    {sums_int8_dotprod, sums_int4_dotprod},
    round_to_bfloat16_neon};

}  // namespace ga
