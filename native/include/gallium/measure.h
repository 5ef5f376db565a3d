/* What this machine can do at best, measured with the level and the threads in use. */
#pragma once
#include "gallium/abi.h"

#ifdef __cplusplus
extern "C" {
#endif
/* Bytes per second of reading `bytes` of memory once by all threads; the best of `rounds`. 0: out of memory. */
GA_EXPORT double ga_measure_read(int64_t bytes, int32_t rounds);
/* Operations (multiplications and additions) per second of the innermost instruction of a product with a matrix of this
 * kind, operands in registers or the first cache, by all threads; the best of `rounds`. */
GA_EXPORT double ga_measure_peak(int64_t kind, int32_t rounds);
#ifdef __cplusplus
}
#endif
