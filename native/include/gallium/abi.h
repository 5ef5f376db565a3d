/* The C ABI of Gallium's CPU kernels: what every header of this library shares. */
#pragma once
#include <stdint.h>

#define GA_ABI_VERSION 5

#if defined(_WIN32)
#define GA_EXPORT __declspec(dllexport)
#else
#define GA_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif
/* Version of this ABI; the Python side refuses another one. */
GA_EXPORT int32_t ga_abi_version(void);
#ifdef __cplusplus
}
#endif
