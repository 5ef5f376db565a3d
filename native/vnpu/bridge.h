// From C to Python: decoded arguments to one callable per operator.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "error.h"
#include "handles.h"

namespace ga::vnpu {

// One argument of an operator called by name; the kinds are the letters of signatures.
struct Argument {
    char kind;
    union {
        const void* pointer;  // a handle, or what P points to
        int64_t integer;
        double real;
        const char* text;
    };
};

struct Signature;

// Decodes a call's stored words by its signature and submits it to the stream.
Status call_operator(size_t index, const Signature& signature, const uint64_t* words, void* stream);

// The same for an operator that was registered by name ("atb.PagedAttention").
Status call_named(const char* name, const Argument* arguments, size_t count, void* stream);

}  // namespace ga::vnpu
