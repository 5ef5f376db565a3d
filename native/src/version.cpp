// The ABI version that this library was built with.
#include "gallium/abi.h"

int32_t ga_abi_version(void) { return GA_ABI_VERSION; }
