// The noise of sampling, and an entry point that lets tests see the random words.
#include "philox.h"

#include <math.h>

#include "gallium/sample.h"

namespace ga {

double gumbel(uint32_t word) {
    const double u = (static_cast<double>(word) + 0.5) * 0x1p-32;
    return -log(-log(u));
}

}  // namespace ga

void ga_philox(const uint32_t* counter, const uint32_t* key, uint32_t* words) {
    const ga::Words out = ga::philox({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
    for (int i = 0; i < 4; ++i) words[i] = out.w[i];
}
