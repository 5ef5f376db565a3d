// The rotations of a step's positions. One angle at a time: a position's bits don't depend on its neighbours.
#include <math.h>

#include "gallium/rope.h"
#include "rows.h"

void ga_rope_table(const ga_rope_table_args* args) {
    const ga_rope_table_args a = *args;
    const int64_t half = a.dim / 2;
    const int64_t next = a.interleaved ? 2 : 1, partner = a.interleaved ? 1 : half;
    constexpr int64_t kAngleInFloats = 64;  // an angle takes as long as moving so many floats
    ga::for_rows(a.tokens, half * kAngleInFloats, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            float* cosines = a.table + t * 2 * a.dim;
            float* sines = cosines + a.dim;
            for (int64_t i = 0; i < half; ++i) {
                const double angle = a.positions[t] * a.frequencies[i];
                const auto c = static_cast<float>(cos(angle)), s = static_cast<float>(sin(angle));
                cosines[i * next] = cosines[i * next + partner] = c;
                sines[i * next] = -s;
                sines[i * next + partner] = s;
            }
        }
    });
}
