"""Matrices that a mixed file keeps finer than the rest stay finer when the precision is the file's own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tests.models.memory_checkpoint import ArrayWeight

from gallium.checkpoints.checkpoint import finer_storages
from gallium.engine.loading import matrix_roles
from gallium.models.weights import Packer, Rows
from gallium.ops.handles import Experts, Linear, Role, Weight
from gallium.ops.reference import ReferenceOps


class Noting(ReferenceOps):
    """Remembers the roles it was asked for."""

    def __init__(self) -> None:
        self.roles: list[Role] = []

    def pack_linear(self, parts: Sequence[Weight], bias: Sequence[Weight] = (), role: Role = "linear") -> Linear:
        self.roles.append(role)
        return super().pack_linear(parts, bias, role)

    def pack_experts(
        self,
        gate_up: Sequence[Sequence[Weight]],
        down: Sequence[Weight],
        roles: tuple[Role, Role] = ("linear", "linear"),
    ) -> Experts:
        self.roles += roles
        return super().pack_experts(gate_up, down, roles)


class Mixed:
    """A checkpoint whose `down` matrices are Q6_K and all others Q4_K."""

    def names(self) -> list[str]:
        return []

    def __init__(self, down: str = "Q6_K", rest: str = "Q4_K") -> None:
        self.down, self.rest = down, rest

    def weight(self, name: str, index: int | None = None) -> ArrayWeight:
        return ArrayWeight(name, np.zeros((4, 4), np.float32), self.down if "down" in name else self.rest)

    def check(self, expected: object, ignored: object = ()) -> None:
        """Nothing is expected."""


def roles(asked: str, mixed: Mixed = Mixed(), integers: bool = False) -> list[Role]:  # noqa: B008 - never changed
    ops = Noting()
    packer = Packer(mixed, ops, matrix_roles("int4", asked, integers=integers))  # type: ignore[arg-type]
    packer.linear([Rows("gate_proj", 4), Rows("up_proj", 4)], 4)
    packer.linear([Rows("down_proj", 4)], 4)
    packer.linear([Rows("down_head", 4)], 4, role="head")
    packer.experts("mlp.experts.", 2, 4, 4)
    return ops.roles


def test_with_the_file_s_own_precision_its_finer_matrices_stay_finer() -> None:
    assert roles("auto") == ["linear", "sensitive", "head", "linear", "sensitive"]


def test_a_precision_that_was_asked_for_is_taken_at_its_word() -> None:
    assert roles("int4") == ["linear", "linear", "head", "linear", "linear"]


def test_beside_integers_of_the_maker_floats_stay_floats() -> None:
    """Head and embedding too; 8-bit integers in a 4-bit model are the finer ones."""
    assert roles("auto", Mixed("BF16", "I4"), integers=True) == ["linear", "float", "float", "linear", "float"]
    assert roles("auto", Mixed("I8", "I4"), integers=True) == ["linear", "sensitive", "head", "linear", "sensitive"]
    assert roles("int4", Mixed("BF16", "I4"), integers=True) == ["linear", "linear", "head", "linear", "linear"]


def test_which_codings_are_finer() -> None:
    assert finer_storages("float32") == frozenset()
    assert finer_storages("int8") == {"F32", "F16", "BF16"}
    assert finer_storages("int4") == {"F32", "F16", "BF16", "Q8_0", "Q5_K", "Q6_K", "I8"}
