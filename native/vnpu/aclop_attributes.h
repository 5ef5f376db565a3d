// The attributes of one call of the older interface of single operators.
#pragma once
#include <stdint.h>

#include <string>
#include <vector>

#include "bridge.h"

namespace ga::vnpu {

// What a setter stored. `type` is the letter that Python reads (ops/aclop.py): b bool, i int, f float, s string, D dtype
// code, and of lists B, I, F, N (list of lists of int).
struct Attribute {
    std::string name;
    char type = 'i';
    int64_t integer = 0;
    double real = 0;
    std::string text;
    std::vector<int64_t> integers;  // of N: the length of each inner list before its values
    std::vector<float> floats;
};

struct Attributes {
    std::vector<Attribute> all;

    // The attribute of this name, emptied if it was set before.
    Attribute& fresh(const char* name, char type);
};

// Attributes as arguments: three for each, its name, its type and its value. Owns the handles of lists.
class AttributeArguments {
public:
    AttributeArguments(const Attributes& attributes, std::vector<Argument>* out);
    ~AttributeArguments();
    AttributeArguments(const AttributeArguments&) = delete;
    AttributeArguments& operator=(const AttributeArguments&) = delete;

private:
    std::vector<const void*> lists_;
};

}  // namespace ga::vnpu
