// The setters of attributes, and how attributes travel to Python.
#include "aclop_attributes.h"

#include "error.h"
#include "handles.h"

using namespace ga::vnpu;

extern "C" {
void* aclCreateIntArray(const int64_t* values, uint64_t count);
void* aclCreateFloatArray(const float* values, uint64_t count);
}

namespace ga::vnpu {
namespace {

Argument text_argument(const char* text) {
    Argument argument{'s', {nullptr}};
    argument.text = text;
    return argument;
}

const char* type_name(char type) {  // as text that outlives the call
    switch (type) {
        case 'b': return "b";
        case 'i': return "i";
        case 'f': return "f";
        case 's': return "s";
        case 'D': return "D";
        case 'B': return "B";
        case 'I': return "I";
        case 'F': return "F";
        default: return "N";
    }
}

Status no_attributes() { return fail(kAclInvalidParameter, "an attribute was set without a place for it, or without a name"); }

// Runs `fill` on the attribute of this name.
template <typename Fill>
Status set(void* attributes, const char* name, char type, Fill fill) {
    if (attributes == nullptr || name == nullptr) return no_attributes();
    fill(static_cast<Attributes*>(attributes)->fresh(name, type));
    return kOk;
}

}  // namespace

Attribute& Attributes::fresh(const char* name, char type) {
    for (Attribute& attribute : all) {
        if (attribute.name != name) continue;
        attribute = Attribute{};
        attribute.name = name;
        attribute.type = type;
        return attribute;
    }
    all.emplace_back();
    all.back().name = name;
    all.back().type = type;
    return all.back();
}

AttributeArguments::AttributeArguments(const Attributes& attributes, std::vector<Argument>* out) {
    for (const Attribute& attribute : attributes.all) {
        out->push_back(text_argument(attribute.name.c_str()));
        out->push_back(text_argument(type_name(attribute.type)));
        Argument value{attribute.type, {nullptr}};
        switch (attribute.type) {
            case 'f': value.real = attribute.real; break;
            case 's': value.text = attribute.text.c_str(); break;
            case 'b':
            case 'i': value.integer = attribute.integer; break;
            case 'D':
                value.kind = 'i';
                value.integer = attribute.integer;
                break;
            case 'F': lists_.push_back(value.pointer = aclCreateFloatArray(attribute.floats.data(), attribute.floats.size())); break;
            default:  // lists of integers, of bools and of lists
                value.kind = 'I';
                lists_.push_back(value.pointer = aclCreateIntArray(attribute.integers.data(), attribute.integers.size()));
                break;
        }
        out->push_back(value);
    }
}

AttributeArguments::~AttributeArguments() {
    for (const void* list : lists_) destroy_handle(static_cast<const Handle*>(list));
}

}  // namespace ga::vnpu

GA_EXPORT void* aclopCreateAttr() { return new Attributes; }
GA_EXPORT void aclopDestroyAttr(const void* attributes) { delete static_cast<const Attributes*>(attributes); }

GA_EXPORT Status aclopSetAttrBool(void* attributes, const char* name, uint8_t value) {
    return set(attributes, name, 'b', [value](Attribute& to) { to.integer = value != 0; });
}

GA_EXPORT Status aclopSetAttrInt(void* attributes, const char* name, int64_t value) {
    return set(attributes, name, 'i', [value](Attribute& to) { to.integer = value; });
}

GA_EXPORT Status aclopSetAttrDataType(void* attributes, const char* name, int32_t value) {
    return set(attributes, name, 'D', [value](Attribute& to) { to.integer = value; });
}

GA_EXPORT Status aclopSetAttrFloat(void* attributes, const char* name, float value) {
    return set(attributes, name, 'f', [value](Attribute& to) { to.real = static_cast<double>(value); });
}

GA_EXPORT Status aclopSetAttrString(void* attributes, const char* name, const char* value) {
    return set(attributes, name, 's', [value](Attribute& to) { to.text = value != nullptr ? value : ""; });
}

GA_EXPORT Status aclopSetAttrListBool(void* attributes, const char* name, int32_t count, const uint8_t* values) {
    return set(attributes, name, 'B', [=](Attribute& to) { to.integers.assign(values, values + count); });
}

GA_EXPORT Status aclopSetAttrListFloat(void* attributes, const char* name, int32_t count, const float* values) {
    return set(attributes, name, 'F', [=](Attribute& to) { to.floats.assign(values, values + count); });
}

GA_EXPORT Status aclopSetAttrListInt(void* attributes, const char* name, int32_t count, const int64_t* values) {
    return set(attributes, name, 'I', [=](Attribute& to) { to.integers.assign(values, values + count); });
}

GA_EXPORT Status aclopSetAttrListListInt(void* attributes, const char* name, int32_t count, const int32_t* counts,
                                         const int64_t* const* values) {
    return set(attributes, name, 'N', [=](Attribute& to) {
        for (int32_t i = 0; i < count; ++i) {
            to.integers.push_back(counts[i]);
            to.integers.insert(to.integers.end(), values[i], values[i] + counts[i]);
        }
    });
}
