// Products with packed matrices for AMX.
#include "x86/linear_bfloat16_tiles.h"

namespace ga {
const LinearKernels linear_amx = tile_table<HardwareTiles>();
}
