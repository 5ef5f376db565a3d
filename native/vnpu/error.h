// Status codes of CANN's interface, and the text that explains the last one in this thread.
#pragma once
#include <stdint.h>

#include <string>

#define GA_EXPORT extern "C" __attribute__((visibility("default")))

namespace ga::vnpu {

using Status = int32_t;

constexpr Status kOk = 0;
constexpr Status kInvalidParameter = 107000;   // runtime
constexpr Status kInvalidDevice = 107001;
constexpr Status kNoContext = 107002;
constexpr Status kInvalidHandle = 107017;
constexpr Status kNotSupported = 207000;
constexpr Status kOutOfMemory = 207001;
constexpr Status kNullArgument = 161001;       // operators
constexpr Status kInvalidArgument = 161002;
constexpr Status kRuntimeError = 361001;
constexpr Status kInternal = 561000;
constexpr Status kKernelNotFound = 561003;
constexpr Status kAclInvalidParameter = 100000;
constexpr Status kAclOperatorNotFound = 100024;

// What aclGetRecentErrMsg tells next in this thread.
void set_error(std::string text);

// Sets the text and returns the code.
Status fail(Status code, std::string text);

}  // namespace ga::vnpu
