"""The chips: what each multiplies and which of torch_npu's functions it has, one table for the whole backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from gallium.backends.ascend.records import DATA
from gallium.errors import BackendError
from gallium.ops.handles import ModelFacts, Precision

GLM4_IN_FLOAT16 = (
    "the weights of GLM-4-0414 (arch glm4) overflow in float16, and the answer becomes '!!!!' "
    "(zai-org/GLM-4#760, vllm-project/vllm#17154)"
)


@dataclass(frozen=True)
class Soc:
    """One chip. Nothing else in this backend asks for a chip's name."""

    name: str  # as torch_npu says it
    family: str  # 910, 310P, 910B, 910_93, 950
    sold: str  # as people say it
    memory_gib: int
    bfloat16: bool
    float32: bool
    int8: bool
    int4: bool
    functions: Mapping[str, bool] = field(repr=False)  # by name; those of data/functions.tsv

    def has(self, function: str) -> bool:
        """Whether a function of torch_npu exists on this chip. Raises KeyError for one that is not in the table."""
        return self.functions[function]

    def refusal(self, model: ModelFacts, precision: Precision) -> str:
        """Why a model cannot run here in this precision; empty if it can."""
        if precision == "float16" and model.name == "glm4":
            return f"{GLM4_IN_FLOAT16}: {self._instead_of_float16()}"
        if precision == "bfloat16" and not self.bfloat16:
            return f"{self.name} has no bfloat16: use float16, or a chip of the 910B family or later"
        if precision == "float32" and not self.float32:
            return f"the matrix unit of {self.name} would round float32 to float16: use float16 and say so"
        if precision in ("int8", "int4") and not getattr(self, precision):
            return f"the functions for {precision} weights with a scale per token are not there on {self.name}"
        if model.moe is not None and not self.float32:
            return f"a router computes in float32, which the matrix unit of {self.name} would round to float16"
        return ""

    def _instead_of_float16(self) -> str:
        return "use bfloat16" if self.bfloat16 else f"it needs bfloat16, which {self.name} does not have"


@cache
def table() -> dict[str, Soc]:
    """All chips by name, from data/socs.tsv and data/functions.tsv."""
    header, *rows = _lines("functions.tsv", keep_header=True)
    families = header[1:-1]
    has = {family: {row[0]: row[1 + at] == "1" for row in rows} for at, family in enumerate(families)}
    found = {}
    for name, family, memory, *marks, sold in _lines("socs.tsv"):
        bfloat16, float32, int8, int4 = (mark == "1" for mark in marks)
        found[name] = Soc(name, family, sold, int(memory), bfloat16, float32, int8, int4, has[family])
    return found


def find(name: str) -> Soc:
    """The chip that torch_npu calls `name`. Raises BackendError for one that the table does not have."""
    if name not in table():
        raise BackendError(
            f"this backend does not know the chip {name!r}; known are {', '.join(table())}. "
            "If it is a new one, a line in backends/ascend/data/socs.tsv is what it needs."
        )
    return table()[name]


def _lines(name: str, keep_header: bool = False) -> list[list[str]]:
    """The rows of a table; the header is its last comment."""
    text = (DATA / name).read_text(encoding="utf-8")
    lines = text.splitlines()
    header = [line for line in lines if line.startswith("#")][-1][2:]
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    return [header.split("\t"), *rows] if keep_header else rows
