/* The instruction-set level that kernels use: a number from 0, generic, on. What follows depends on the architecture.
 *   x86-64: avx2 (with FMA and F16C), avx512 (with VNNI and BF16), amx; amx-emulated: the AMX code with its tiles in
 *           software, for tests on machines without AMX, never the best level
 *   arm64:  neon, dotprod, i8mm (with BF16) */
#pragma once
#include "gallium/abi.h"

#ifdef __cplusplus
extern "C" {
#endif
/* Its name, or null: this architecture has no such level. */
GA_EXPORT const char* ga_level_name(int32_t level);
/* Whether ga_set_level takes it on this machine. */
GA_EXPORT int32_t ga_has_level(int32_t level);
/* The best level of this machine. */
GA_EXPORT int32_t ga_best_level(void);
GA_EXPORT int32_t ga_level(void);
/* Whether this build runs the level in software: amx-emulated always, avx512 in the build that tests it. */
GA_EXPORT int32_t ga_emulated(int32_t level);
/* 0, or -1 if this machine or this build does not have the level. Not while a kernel runs. */
GA_EXPORT int32_t ga_set_level(int32_t level);
#ifdef __cplusplus
}
#endif
