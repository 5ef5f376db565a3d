"""C++ type → kind letter, as op-plugin's overloads of ConvertType map it (op_plugin/utils/op_api_common_base.h).

A type without an overload is passed by value as it is, so arithmetic types keep their class of register.
"""

import re

# A null pointer literal says nothing about what another call passes there, and hardly more does a tensor that is never
# defined: op-plugin passes it for lists too.
NULL = "0"
NO_TENSOR = "t"

KINDS = {
    "at::Tensor": "T",
    "std::optional<at::Tensor>": "T",
    "TensorWrapper": "T",
    "aclTensor*": "T",
    "at::TensorList": "L",
    "c10::ArrayRef<at::Tensor>": "L",
    "TensorListWrapper": "L",
    "c10::Scalar": "S",
    "std::optional<c10::Scalar>": "S",
    "c10::ArrayRef<c10::Scalar>": "l",
    "c10::ArrayRef<long>": "I",
    "c10::ArrayRef<c10::SymInt>": "I",
    "c10::OptionalArrayRef<long>": "I",
    "c10::OptionalArrayRef<c10::SymInt>": "I",
    "std::optional<c10::ArrayRef<long> >": "I",
    "aclIntArray*": "I",
    "aclFloatArray*": "F",
    "c10::ArrayRef<bool>": "B",
    "aclBoolArray*": "B",
    "char*": "s",
    "c10::ScalarType": "w",
    "aclDataType": "w",
    "int": "w",
    "unsigned int": "w",
    "long": "i",
    "unsigned long": "i",
    "short": "h",
    "signed char": "c",
    "unsigned char": "c",
    "char": "c",
    "bool": "b",
    # Two bytes, the value first: it travels in one integer register whose low byte is the value (0 if there is none).
    "std::optional<bool>": "b",
    "double": "d",
    "float": "f",
    "decltype(nullptr)": NULL,
}


def kind_of(cpp_type: str) -> str | None:
    """The letter of one C++ type as c++filt writes it; None if it is not known."""
    bare = " ".join(re.sub(r"\bconst\b|&", "", cpp_type).split()).replace(" *", "*")
    if re.fullmatch(r"std::array<bool, \d+ul>", bare):
        return "B"
    if re.fullmatch(r"char \(\) \[\d+\]", bare):
        return "s"  # a char array decays to a pointer
    return KINDS.get(bare)


def kinds_of(types: tuple[str, ...]) -> str | None:
    letters = [kind_of(one) for one in types]
    return None if None in letters else "".join(letter for letter in letters if letter)
