"""Infer the C++ types of a call's arguments from the source before the call.

Needed for the calls that leave no types in the wheel (the macros without a cache), and a second opinion on the others.
It knows declarations and the initialisers of `auto` that op-plugin uses; what it does not know is "?", never a guess.
"""

import re

from .cpp_calls import Call, closing, split_arguments
from .kinds import NO_TENSOR

UNKNOWN = "?"
LETTERS = {
    "T": "at::Tensor Tensor optional<at::Tensor> optional<Tensor> TensorWrapper",
    "L": "at::TensorList TensorList at::ArrayRef<at::Tensor> TensorListWrapper optional<at::TensorList>",
    "S": "at::Scalar Scalar optional<at::Scalar>",
    "l": "at::ArrayRef<at::Scalar>",
    "I": "at::IntArrayRef IntArrayRef optional<at::IntArrayRef> at::OptionalIntArrayRef at::SymIntArrayRef "
    "at::OptionalSymIntArrayRef optional<IntArrayRef> at::ArrayRef<int64_t> at::OptionalArrayRef<int64_t> "
    "at::OptionalArrayRef<at::SymInt> at::OptionalArrayRef<SymInt>",
    "B": "at::ArrayRef<bool>",
    "s": "char*",
    "w": "int int32_t uint32_t at::ScalarType aclDataType",
    "i": "int64_t uint64_t size_t",
    "c": "int8_t uint8_t char",
    "b": "bool",
    "d": "double",
    "f": "float",
}
LETTER_OF = {spelling: letter for letter, spellings in LETTERS.items() for spelling in spellings.split()}
# A type, perhaps with template arguments and marks of a reference, then the name, then what may follow a declared name.
DECLARATION = (
    r"(?:^|[;{}(,\n])\s*((?:(?:const|static|constexpr)\s+)*[A-Za-z_][\w:]*(?:<(?:[^<>;(){}=]|<[^<>]*>)*>)?"
    r"(?:\s*const)?\s*[&*]*)\s*\bNAME\s*(?P<then>[=;,({)\[:]|$)"
)
OPTIONAL = r"optional<\s*([^;(){}]*?)\s*>\s*&?\s*NAME\b"
DEFINED = r"^\s*(?:static |inline )*([\w:<>]+[&*]?)\s+NAME\("
NOT_A_TYPE = {"return", "else", "case", "delete", "new", "throw", "goto"}
TENSOR_MAKERS = re.compile(
    r"^(?:at::(?:empty|zeros|ones|full|scalar_tensor|empty_like|zeros_like|empty_strided)\w*"
    r"|(?:\w+::)*(?:OpPreparation|npu_preparation)::(?:apply_tensor|copy_|cast_)\w*|(?:\w+::)*npu_dtype_cast|at::Tensor)\s*[({]"
)
ENDINGS = (
    (r"\.(?:to|contiguous|reshape|view|clone|squeeze|unsqueeze|transpose|permute|select|expand|slice|detach|flatten)"
     r"\([^;]*\)$", "T"),
    (r"\.(?:size|numel|dim|element_size)\([^;]*\)$", "i"),
    (r"\.(?:sizes|strides)\(\)$", "I"),
    (r"(?:\.scalar_type\(\)|\bGetAclDataType\([^;]*\)|\bconvert_to_acl_data_type\([^;]*\))$", "w"),
    (r"\.(?:c_str|data)\(\)$", "s"),
)  # fmt: skip
LITERALS = (
    (r"true|false", "b"),
    (r"[-+]?(?:0x)?\d+", "w"),
    (r"[-+]?\d+(?:u?ll?|ull?)", "i"),
    (r"[-+]?(?:\d+\.\d*|\.?\d+)(?:e[-+]?\d+)?f", "f"),
    (r"[-+]?(?:\d+\.\d*|\.\d+|\d+(?=e))(?:e[-+]?\d+)?", "d"),
    (r'"[^"]*"', "s"),
)


def letter_of(spelled: str) -> str:
    """The kind letter of a type as it is written in the sources."""
    bare = re.sub(r"\b(?:const|static|constexpr)\b|&", "", spelled)
    bare = re.sub(r"\s+", "", bare).replace("c10::optional", "optional").replace("std::optional", "optional")
    bare = bare.replace("c10::", "at::").replace("::std::", "std::")
    if re.fullmatch(r"std::array<bool,\d+>", bare):
        return "B"
    return LETTER_OF.get(bare, UNKNOWN)


def enclosing_function(text: str) -> str:
    """The text from the last line that begins a function at the outermost indentation; all of it if there is none."""
    starts = [
        match.start() for match in re.finditer(r"^(?! |\}|#|using|namespace|//)\S[^;\n]*\([^;]*$", text, re.MULTILINE)
    ]
    return text[starts[-1] :] if starts else text


def infer(call: Call) -> str:
    return "".join(_expression(argument, call.text, 0) for argument in call.arguments)


def _expression(expression: str, text: str, depth: int) -> str:
    expression = expression.strip()
    if depth > 8 or not expression:
        return UNKNOWN
    for pattern, letter in LITERALS:
        if re.fullmatch(pattern, expression, re.IGNORECASE):
            return letter
    if re.fullmatch(r"\w+", expression):
        return _variable(expression, text, depth + 1)
    if match := re.match(r"(?:static|const|reinterpret)_cast<\s*([^>]+?)\s*>\s*\(", expression):
        return letter_of(match.group(1))
    if TENSOR_MAKERS.match(expression):
        return "T"
    return _composed(expression, text, depth + 1)


def _composed(expression: str, text: str, depth: int) -> str:
    if match := re.fullmatch(r"(?:\w+::)*make_wrapper\((.*)\)", expression, re.DOTALL):
        return _expression(split_arguments(match.group(1))[0], text, depth)
    if match := re.match(r"c10::value_or_else\(\s*(\w+)\s*,", expression):
        return _variable(match.group(1), text, depth)
    if match := re.fullmatch(r"[^?]+\?(.+):(.+)", expression, re.DOTALL):
        first, second = (_expression(part, text, depth) for part in match.groups())
        return first if first == second or second == UNKNOWN else second if first == UNKNOWN else UNKNOWN
    if match := re.fullmatch(r"(\w+)\.(?:value|value_or)\((.*)\)", expression, re.DOTALL):
        return _unwrapped(match.group(1), text) or _expression(match.group(2), text, depth)
    for pattern, letter in ENDINGS:
        if re.search(pattern, expression):
            return letter
    if match := re.match(r"((?:\w+::)*\w+)\s*([({])", expression):
        return _called(match.group(1), text)
    return UNKNOWN


def _unwrapped(name: str, text: str) -> str:
    """The letter of what an optional variable holds, or "" if it is not declared as one."""
    found = re.findall(OPTIONAL.replace("NAME", name), enclosing_function(text))
    return letter_of(found[-1]) if found else ""


def _called(name: str, text: str) -> str:
    """The letter of a constructor, or of the return type of a function defined earlier in the file."""
    letter = letter_of(name)
    if letter != UNKNOWN:
        return letter
    found = re.findall(DEFINED.replace("NAME", name), text, re.MULTILINE)
    return letter_of(found[-1]) if found else UNKNOWN


def _variable(name: str, text: str, depth: int) -> str:
    for scope in (enclosing_function(text), text):
        declared = [
            match
            for match in re.finditer(DECLARATION.replace("NAME", name), scope)
            if match.group(1).split("<")[0].split()[0] not in NOT_A_TYPE
        ]
        if declared:
            return _declared(declared[-1], scope, depth)
    return UNKNOWN


def _declared(match: re.Match[str], scope: str, depth: int) -> str:
    spelled, then = match.group(1), match.group("then")
    if then == "[" and "char" in spelled:
        return "s"
    if then == "{" and scope.startswith("nullptr}", match.end()):
        return NO_TENSOR
    if "auto" not in spelled.split():
        return letter_of(spelled)
    if then not in "=({":
        return UNKNOWN
    start = match.end() if then == "=" else match.end() - 1
    end = scope.find(";", start) if then == "=" else closing(scope, start)
    return _expression(scope[start:end].lstrip("({"), scope[: match.start()], depth)
