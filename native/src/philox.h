// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, SC 2011): random words as a pure function of counter and key.
#pragma once
#include <stdint.h>

namespace ga {

struct Words {
    uint32_t w[4];
};

static inline Words philox(Words c, uint32_t k0, uint32_t k1) {
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c.w[0];
        const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * c.w[2];
        c = {{static_cast<uint32_t>(p1 >> 32) ^ c.w[1] ^ k0, static_cast<uint32_t>(p1),
              static_cast<uint32_t>(p0 >> 32) ^ c.w[3] ^ k1, static_cast<uint32_t>(p0)}};
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

// The words of tokens 4 * quad .. 4 * quad + 3.
static inline Words token_words(uint64_t seed, int32_t position, uint32_t quad) {
    return philox({{static_cast<uint32_t>(position), quad, 0, 0}}, static_cast<uint32_t>(seed),
                  static_cast<uint32_t>(seed >> 32));
}

// Gumbel noise of one word, float64.
double gumbel(uint32_t word);

}  // namespace ga
