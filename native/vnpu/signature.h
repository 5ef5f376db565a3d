// Where the arguments of each exported operator function lie, from its signature: one letter per parameter.
#pragma once
#include <stdint.h>

#include <string>
#include <vector>

namespace ga::vnpu {

// The words that a trampoline stores, by the calling convention of the machine.
#if defined(__aarch64__)
constexpr int kIntegerWords = 8;
#else
constexpr int kIntegerWords = 6;
#endif
constexpr int kFloatWords = 8;
constexpr int kRegisterWords = kIntegerWords + kFloatWords;

struct Parameter {
    char kind;      // T L S l I F B s i w h c b d f P
    int16_t word;   // index into the registers, then the stack
};

struct Signature {
    std::string name;                 // without the prefix aclnn
    std::vector<Parameter> parameters;
    Parameter workspace{'W', 0}, executor{'E', 0};
    int stack_words = 0;
    bool known = false;
    std::vector<bool> dynamic;        // outputs whose shape is known only after running
};

// All functions that have a stub, in the order of the stubs.
std::vector<Signature>& signatures();

// Lays the parameters of `kinds` out by the calling convention; false if a letter is unknown.
bool lay_out(const char* kinds, Signature* out);

}  // namespace ga::vnpu
