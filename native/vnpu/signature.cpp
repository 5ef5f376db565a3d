// The table of signatures, filled by the loader from its data file.
#include "signature.h"

#include <string.h>

#include "error.h"

namespace ga::vnpu {
namespace {

// The names in the order of their stubs, written by the build.
const char* const kNames[] = {
#include "stub_names.inc"
};

class Layout {
public:
    int16_t place(bool is_float) {
        int& used = is_float ? floats_ : integers_;
        const int limit = is_float ? kFloatWords : kIntegerWords;
        if (used == limit) return static_cast<int16_t>(kRegisterWords + stack_++);
        return static_cast<int16_t>((is_float ? kIntegerWords : 0) + used++);
    }
    int stack() const { return stack_; }

private:
    int integers_ = 0, floats_ = 0, stack_ = 0;
};

}  // namespace

std::vector<Signature>& signatures() {
    static std::vector<Signature>* const all = [] {
        auto* made = new std::vector<Signature>;
        for (const char* name : kNames) made->emplace_back().name = name;
        return made;
    }();
    return *all;
}

bool lay_out(const char* kinds, Signature* out) {
    Layout layout;
    out->parameters.clear();
    for (const char* kind = kinds; *kind != 0; ++kind) {
        if (strchr("TLSlIFBsiwhcbdfP", *kind) == nullptr) return false;
        out->parameters.push_back({*kind, layout.place(*kind == 'd' || *kind == 'f')});
    }
    out->workspace.word = layout.place(false);
    out->executor.word = layout.place(false);
    out->stack_words = layout.stack();
    out->known = true;
    out->dynamic.assign(out->parameters.size(), false);
    return true;
}

}  // namespace ga::vnpu

using namespace ga::vnpu;

GA_EXPORT int32_t ga_vnpu_function_count() { return static_cast<int32_t>(signatures().size()); }

GA_EXPORT const char* ga_vnpu_function_name(int32_t index) { return signatures()[static_cast<size_t>(index)].name.c_str(); }

// Sets one function's signature; 0, or -1 if a letter is unknown.
GA_EXPORT int32_t ga_vnpu_set_signature(int32_t index, const char* kinds) {
    return lay_out(kinds, &signatures()[static_cast<size_t>(index)]) ? 0 : -1;
}

GA_EXPORT void ga_vnpu_set_dynamic(int32_t index, int32_t parameter) {
    signatures()[static_cast<size_t>(index)].dynamic[static_cast<size_t>(parameter)] = true;
}
