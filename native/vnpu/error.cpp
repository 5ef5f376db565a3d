// The text of the last error, one per thread.
#include "error.h"

namespace ga::vnpu {
namespace {
thread_local std::string last_error;
}

void set_error(std::string text) { last_error = std::move(text); }

Status fail(Status code, std::string text) {
    set_error(std::move(text));
    return code;
}

}  // namespace ga::vnpu

// The text stays valid until the next error of the thread. Reading it clears it, as CANN's does.
GA_EXPORT const char* aclGetRecentErrMsg() {
    static thread_local std::string told;
    told.swap(ga::vnpu::last_error);
    ga::vnpu::last_error.clear();
    return told.empty() ? nullptr : told.c_str();
}

GA_EXPORT void ga_vnpu_set_error(const char* text) { ga::vnpu::set_error(text); }
