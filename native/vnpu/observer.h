// Tells whoever writes a report of copies between host and device and of waits for the device.
#pragma once
#include <stdint.h>

namespace ga::vnpu {

// `what` is a static text such as "copy host to device"; nothing happens unless an observer is set.
void observe(const char* what, int64_t bytes);

}  // namespace ga::vnpu
