/* The number of threads that kernels use. */
#pragma once
#include "gallium/abi.h"

#ifdef __cplusplus
extern "C" {
#endif
/* 0, or -1 if count is not in [1, 256]. Not while a kernel runs. */
GA_EXPORT int32_t ga_set_threads(int32_t count);
GA_EXPORT int32_t ga_threads(void);
/* Pins thread i, for i from 1 to count - 1, to CPU cpus[i]; others, and thread 0, which is the caller's own, run where the
 * system puts them. count 0: none is pinned. 0, or -1: this system has no such thing, or a CPU does not exist. Not while a
 * kernel runs. */
GA_EXPORT int32_t ga_pin_threads(const int32_t* cpus, int32_t count);
#ifdef __cplusplus
}
#endif
