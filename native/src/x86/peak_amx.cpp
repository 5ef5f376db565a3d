// Peak of AMX: four independent tiles of sums. int8 and int4 are multiplied as bfloat16, so that is their peak too;
// float32 products use AVX-512 on this level.
#include "peak_kernels.h"
#include "x86/tiles_hardware.h"

namespace ga {
namespace {

template <class Step>
void burn(int64_t rounds, Step step) {
    TileShapes shapes;
    alignas(64) static const char zeros[1024] = {};
    for (int i = 0; i < 8; ++i) {
        shapes.row_bytes[i] = 64;
        shapes.rows[i] = 16;
    }
    HardwareTiles::configure(shapes);
    HardwareTiles::load<0>(zeros, 64);
    HardwareTiles::load<1>(zeros, 64);
    HardwareTiles::load<2>(zeros, 64);
    HardwareTiles::load<3>(zeros, 64);
    HardwareTiles::load<4>(zeros, 64);
    HardwareTiles::load<6>(zeros, 64);
    for (int64_t n = 0; n < rounds; ++n) step();
    HardwareTiles::release();
}

void burn_bfloat16(int64_t rounds) {
    burn(rounds, [] {
        HardwareTiles::dot_bfloat16<0, 4, 6>();
        HardwareTiles::dot_bfloat16<1, 4, 6>();
        HardwareTiles::dot_bfloat16<2, 4, 6>();
        HardwareTiles::dot_bfloat16<3, 4, 6>();
    });
}

constexpr int64_t kTile = 2 * 16 * 16 * 32;  // operations of one TDPBF16PS

}  // namespace

const PeakKernels peak_amx = {{0, 4 * kTile, 4 * kTile, 4 * kTile}, {nullptr, burn_bfloat16, burn_bfloat16, burn_bfloat16}};

}  // namespace ga
