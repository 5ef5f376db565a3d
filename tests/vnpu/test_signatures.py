"""The table of signatures: well formed, complete, and equal to what is known of 123 functions from elsewhere.

The known answers were found by hand for a prototype of the virtual NPU, by running models and from public declarations,
before the table was made from the wheel. Widths of integers are compared by class of register only: a declaration and
what the caller passes may differ there. The rest tests tools/vnpu_signatures, which writes the table.
"""

import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest
from tools.vnpu_signatures.cpp_calls import Call, split_arguments, without_comments
from tools.vnpu_signatures.cpp_types import infer
from tools.vnpu_signatures.kinds import kind_of, kinds_of
from tools.vnpu_signatures.naming import parameter_names
from tools.vnpu_signatures.table import Undecided, merged, sign
from tools.vnpu_signatures.wheel import Wheel
from tools.vnpu_signatures.yaml_exec import schema_arguments

DATA = Path(__file__).parents[2] / "src/gallium/vnpu/data"
LETTERS = "TLSlIFBsiwhcbdfP"

KNOWN = {
    "TT": "BitwiseNot Cos InplaceCopy InplaceDiv InplaceMul Max Neg Reciprocal Rsqrt Sigmoid Silu Sin Sqrt",
    "TTT": "BitwiseAndTensor BitwiseOrTensor Div Embedding EqTensor LtTensor Mul NeTensor SigmoidBackward SiluBackward",
    "TST": "Divs EqScalar FloorDivides GtScalar LeScalar LtScalar Muls PowTensorScalar",
    "TSST": "Adds Clamp Rsubs Subs",
    "TTTc": "BatchMatMul Matmul Mm",
    "TTS": "InplaceAdd InplaceLerps InplaceMaskedFillScalar",
    "TTST": "Add",
    "TS": "InplaceFillScalar InplaceMuls",
    "T": "InplaceOne InplaceZero",
    "TSS": "InplaceAdds",
    "TTTS": "InplaceAddcdiv InplaceAddcmul",
    "TTTSSTc": "Addmm",
    "SSST": "Arange",
    "TiT": "LogSoftmax Softmax Triu SwiGlu",
    "TTiT": "LogSoftmaxBackward",
    "TIbT": "All Any",
    "TIbwT": "Mean ReduceSum",
    "TSIbwT": "LinalgVectorNorm",
    "TiwT": "Cumsum",
    "LiT": "Cat Stack",
    "TIST": "ConstantPadNd",
    "TLT": "Index",
    "TLTbb": "IndexPutImpl",
    "TiTT": "Gather",
    "TiTTiT": "Scatter",
    "TiTSi": "InplaceScatterValue",
    "TiTTT": "ScatterAdd",
    "TiiiT": "RepeatInterleaveIntWithDim",
    "TTiibT": "EmbeddingDenseBackward",
    "TbibTT": "Sort",
    "TiibbwTT": "TopkV2",
    "TiSST": "Histc",
    "TibiiT": "Multinomial",
    "Tffii": "InplaceNormal",
    "TTTiiTT": "NLLLoss",
    "TTTTiiTT": "NLLLossBackward",
    "LL": "ForeachSqrt",
    "LSL": "ForeachAddScalarV2 ForeachMulScalarV2 ForeachNorm",
    "LLSL": "ForeachAddListV2 ForeachLerpScalar",
    "LLLSL": "ForeachAddcmulScalarV2",
    "LlL": "ForeachDivScalarList",
    "TTTTTTTIddiiisiiTTTT": "FlashAttentionScore",
    "TTTTTTTTTTTTIddiiisiiTTTT": "FlashAttentionScoreGrad",
    # What fused inference adds.
    "TTdTT": "RmsNorm",
    "TTTdTTT": "AddRmsNorm",
    "TTTdT": "InplaceAddRmsNorm",
    "TTTiT": "RotaryPositionEmbedding",
    "TTTiTT": "RotaryPositionEmbeddingV2",
    "TTTTi": "ApplyRotaryPosEmb",
    "TTTTis": "ApplyRotaryPosEmbV2",
    "TTTT": "InterleaveRope DynamicQuant ApplyTopKTopP",
    "TTTTTTTbsTT": "DequantSwigluQuant",
    "TLLTTIITTTTTTTTTTTTTTTTITTTidiisiiiiibiiTT": "FusedInferAttentionScoreV3",
    "TLLTTIITTTTTTTTTTTTTTTTITTTTTidiisiiiiibiiiTT": "FusedInferAttentionScoreV4",
    "LLLLLLLLTLLLiiiiLLL": "GroupedMatmulV4",
    "LLLLLLLLTLLLiiiiILLL": "GroupedMatmulV5",
    "LLLLLLLLTLLLiiiiIiLLL": "GroupedMatmulWeightNz",
    "TTiiiiiibddTTT": "MoeGatingTopK",
    "TTiiiiibTTTT": "MoeInitRoutingV2",
    "TTTTiiiiibiIiTTTT": "MoeInitRoutingV3",
    "TTTTTTTiT": "MoeFinalizeRoutingV2",
    "TTibTT": "MoeTokenPermute",
    "TTTbIT": "MoeTokenUnpermute",
    "TTTTTsiiisiiiiiiiisTTTTTTT": "MoeDistributeDispatchV2",
    "TTTTTTTTTTTTsiiisiiiiiiiiisT": "MoeDistributeCombineV2",
    "TTTTTTTTTbbiT": "QuantMatmulV5 QuantMatmulWeightNz",
    "TTTTTTTwT": "WeightQuantBatchMatmulV2",
    "TTTTTTTwwT": "WeightQuantBatchMatmulV3",
    "TTTiTTT": "DynamicQuantV2",
    "TTTssiiT": "MatmulAllReduce",
    "TTTTssiiT": "MatmulAllReduceV2",
    "TTTTdbiTT": "TopKTopPSample",
    "TTTTIIIcwT": "TransposeBatchMatMul",
}


@cache
def rows() -> list[list[str]]:
    lines = (DATA / "signatures.tsv").read_text().splitlines()
    return [line.split("\t") for line in lines if not line.startswith("#")]


@cache
def names() -> tuple[set[str], set[str]]:
    """The two-phase names and the one-call names."""
    lines = (DATA / "aclnn_names.txt").read_text().splitlines()
    found = [line.partition(" # ") for line in lines if not line.startswith("#")]
    return {name for name, _, mark in found if not mark}, {name for name, _, mark in found if mark == "one call"}


def register_classes(kinds: str) -> str:
    return re.sub("[iwhc]", "i", kinds)


@pytest.mark.parametrize(("kinds", "name"), [(kinds, name) for kinds, all in KNOWN.items() for name in all.split()])
def test_known_answers(kinds: str, name: str) -> None:
    table = {row[0]: row[1] for row in rows()}
    assert register_classes(table[name]) == register_classes(kinds)


def test_rows_are_well_formed() -> None:
    for row in rows():
        assert len(row) == 4, row
        _, kinds, parameters, source = row
        assert set(kinds) <= set(LETTERS), row
        listed = parameters.split(",")
        assert len(listed) == len(kinds) == len(set(listed)), row
        assert all(one.isidentifier() and one == one.lower() for one in listed), row
        assert re.fullmatch(r"(op_plugin|pytorch)/\S+:\d+|wheel; .+", source), row


def test_rows_are_sorted_and_distinct() -> None:
    found = [row[0] for row in rows()]
    assert found == sorted(set(found))


def test_the_wheel_looks_up_908_names() -> None:
    two_phase, one_call = names()
    assert (len(two_phase), len(one_call)) == (904, 4)


def test_every_two_phase_function_that_is_called_has_a_signature() -> None:
    two_phase, _ = names()
    # op-plugin asks only whether LogSigmoid exists.
    assert two_phase - {row[0] for row in rows()} == {"LogSigmoid"}
    assert {row[0] for row in rows()} <= two_phase


@cache
def installed() -> Wheel:
    spec = importlib.util.find_spec("torch_npu")
    assert spec is not None and spec.origin is not None
    return Wheel(Path(spec.origin).parents[1])


def test_the_names_are_those_of_the_installed_wheel() -> None:
    two_phase, one_call = names()
    assert installed().names() == sorted(two_phase | one_call)


def test_the_kinds_are_what_the_installed_wheel_passes() -> None:
    passed = installed().passed_types()
    assert len(passed) > 850
    different = {}
    for name, kinds, *_ in rows():
        compiled = {kinds_of(types) for types in passed.get(name, ())}
        if compiled and not any(one and _passes(one, kinds) for one in compiled):
            different[name] = (kinds, compiled)
    assert not different


def _passes(compiled: str, kinds: str) -> bool:
    """A null pointer fits everywhere; so does a wider integer where another call passes a narrow one."""
    return len(compiled) == len(kinds) and all(
        one in (kind, "0") or (one == "i" and kind == "w") for one, kind in zip(compiled, kinds, strict=True)
    )


@pytest.mark.parametrize(
    ("source", "arguments", "kinds"),
    [
        ("at::Tensor f(const at::Tensor& x, int64_t n, double p) {", "x n p", "Tid"),
        ("void f(const c10::optional<at::Tensor>& a, const c10::optional<at::Tensor>& b) {", "a b", "TT"),
        (
            "void f(at::TensorList a, c10::optional<at::IntArrayRef> b, c10::OptionalArrayRef<c10::SymInt> c) {",
            "a b c",
            "LII",
        ),
        ("void f(c10::optional<int64_t> n) {\n  auto m = n.value_or(1);", "m", "i"),
        ("void f(const at::Scalar& s) {\n  float v = s.toFloat();\n  auto w = static_cast<int8_t>(v);", "s v w", "Sfc"),
        ("void f(std::string s) {\n  char* p = const_cast<char*>(s.c_str());\n  bool q = true;", "p q", "sb"),
        ("void f(const at::Tensor& x) {\n  auto y = at::empty({1});\n  auto z = x.size(0);", "y z", "Ti"),
        ("void f(bool b) {\n  auto y = b ? 1.0 : 2.0;\n  auto z = unknown(b);", "y z", "d?"),
        ("void f(int64_t x) {\n}\nvoid g(double x) {", "x", "d"),
        ("void f(int64_t wide_x) {", "x", "?"),
        ("void f() {\n  at::Tensor none{nullptr};", "none", "t"),
    ],
)
def test_types_inferred_from_a_call_site(source: str, arguments: str, kinds: str) -> None:
    assert infer(Call("X", tuple(arguments.split()), "file.cpp:1", source)) == kinds


def test_what_the_tool_reads_from_sources() -> None:
    assert split_arguments('x, f(a, b), std::array<bool, 2>{p, q}, "a, b"') == [
        "x",
        "f(a, b)",
        "std::array<bool, 2>{p, q}",
        '"a, b"',
    ]
    assert without_comments('a // b\nc /* d\ne */ "// f"') == 'a     \nc     \n     "// f"'
    schema = "f.out(Tensor(a!)[] self, int[2] k=1, *, Scalar? s=None, Tensor(b!) out) -> Tensor(b!)"
    assert schema_arguments(schema) == {"self": "Tensor[]", "k": "int[]", "s": "Scalar?", "out": "Tensor"}
    assert parameter_names(("format_query", "*seed_ptr", "d_key", "d_value", "self", "self", "lambda")) == [
        "query", "seed", "d_key", "d_value", "self", "self_5", "lambda_",
    ]  # fmt: skip


def test_c_plus_plus_types() -> None:
    assert kind_of("std::optional<at::Tensor> const&") == "T"
    assert kind_of("char const (&) [6]") == "s"
    assert kind_of("std::array<bool, 3ul>&") == "B"
    assert kind_of("std::vector<at::Tensor>&") is None


def test_witnesses() -> None:
    assert merged(["T0i", "TBw"]) == "TBw"
    with pytest.raises(Undecided):
        merged(["Td", "Tf"])
    call = Call("X", ("self", "out"), "op_plugin/x.cpp:1")
    assert sign("X", {"TT", "TTs"}, {call: "T?"}).kinds == "TT"  # the other one belongs to a neighbour
    with pytest.raises(Undecided):
        sign("X", {"TS"}, {call: "TT"})
    with pytest.raises(Undecided):
        sign("X", set(), {call: "T?"})
    with pytest.raises(Undecided):
        sign("X", {"TT"}, {})
