/* The number of threads that kernels use. */
#pragma once
#include "gallium/abi.h"

#ifdef __cplusplus
extern "C" {
#endif
/* 0, or -1 if count is not in [1, 256]. Not while a kernel runs. */
GA_EXPORT int32_t ga_set_threads(int32_t count);
GA_EXPORT int32_t ga_threads(void);
#ifdef __cplusplus
}
#endif
