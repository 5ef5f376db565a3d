// Attention and index scores for NEON. Limit: reading keys and values once per tile of rows; with many rows, the FMA units.
#include "arm/simd_neon.h"
#include "attention_kernel.h"

namespace ga {
const AttentionKernels attention_neon = attention_table<Neon>();
}
