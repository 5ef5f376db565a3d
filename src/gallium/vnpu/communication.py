"""Collectives for operator bodies that join computation and communication: the communicator is found by its name."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from gallium.vnpu.library import core
from gallium.vnpu.refusals import Illegal, Refusal

FLOAT32, UINT8 = 4, 7  # HCCL's codes
SUM = 0


class CommunicationFailed(Refusal):
    """A collective did not end well: a rank died, left, or asked for something else."""


class Group:
    """The ranks of one communicator, seen by one of them. Every rank must call the same methods in the same order."""

    def __init__(self, handle: int) -> None:
        self._handle = ctypes.c_void_p(handle)
        self.rank: int = _functions()["ga_vnpu_hccl_rank"](self._handle)
        self.size: int = _functions()["ga_vnpu_hccl_size"](self._handle)

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over the ranks, in float32 and in the order of the ranks."""
        mine = x.to(torch.float32, memory_format=torch.contiguous_format)
        total = torch.empty_like(mine)
        self._run("HcclAllReduce", mine.data_ptr(), total.data_ptr(), mine.numel(), FLOAT32, SUM)
        return total

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """This rank's part, by rows, of the sum over the ranks in float32."""
        mine = x.to(torch.float32, memory_format=torch.contiguous_format)
        part = mine.new_empty((mine.shape[0] // self.size, *mine.shape[1:]))
        self._run("HcclReduceScatter", mine.data_ptr(), part.data_ptr(), part.numel(), FLOAT32, SUM)
        return part

    def all_gather(self, x: Tensor) -> Tensor:
        """The ranks' rows one below the other."""
        mine = x.contiguous()
        rows = mine.new_empty((self.size * mine.shape[0], *mine.shape[1:]))
        self._run("HcclAllGather", mine.data_ptr(), rows.data_ptr(), _bytes(mine), UINT8)
        return rows

    def all_to_all(self, x: Tensor) -> Tensor:
        """Part i of the rows, of as many parts as there are ranks, goes to rank i; the result has theirs for us."""
        mine = x.contiguous()
        theirs = torch.empty_like(mine)
        count = _bytes(mine) // self.size
        self._run("HcclAlltoAll", mine.data_ptr(), count, UINT8, theirs.data_ptr(), count, UINT8)
        return theirs

    def all_to_all_v(self, x: Tensor, sends: Sequence[int], receives: Sequence[int]) -> Tensor:
        """The first sends[0] rows go to rank 0, the next sends[1] to rank 1, ...; receives[i] come from rank i."""
        mine = x.contiguous()
        if sum(sends) != mine.shape[0]:
            raise Illegal("the counts to send", list(sends), f"of {mine.shape[0]} rows in all")
        theirs = mine.new_empty((sum(receives), *mine.shape[1:]))
        width = mine.shape[1:].numel() * mine.element_size()
        self._run(
            "HcclAlltoAllV",
            mine.data_ptr(),
            *_table(sends, width),
            UINT8,
            theirs.data_ptr(),
            *_table(receives, width),
            UINT8,
        )
        return theirs

    def barrier(self) -> None:
        """Return when all ranks are here."""
        self.all_reduce(torch.zeros(1))

    def _run(self, function: str, *args: Any) -> None:
        # Null: the default stream, on which it runs at once; whoever called the body has waited for its turn already.
        if _functions()[function](*args, self._handle, None) != 0:
            text = _functions()["aclGetRecentErrMsg"]() or b""
            raise CommunicationFailed(text.decode(errors="replace").strip() or f"{function} failed")


def find_group(parameter: str, name: str | None, size: int | None = None, rank: int | None = None) -> Group:
    """The communicator of this name. Raises Illegal if there is none, or one of another size or rank."""
    handle = _functions()["ga_vnpu_hccl_find"]((name or "").encode())
    if not handle:
        raise Illegal(parameter, name, "the name of a communicator of this process (get_hccl_comm_name)")
    group = Group(handle)
    if size is not None and size != group.size:
        raise Illegal("the world size", size, f"that of {parameter}, {group.size}")
    if rank is not None and rank != group.rank:
        raise Illegal("the rank", rank, f"this process's in {parameter}, {group.rank}")
    return group


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _table(rows: Sequence[int], width: int) -> tuple[Any, Any]:
    """HCCL's arrays of counts and displacements, here in bytes."""
    counts = (ctypes.c_uint64 * len(rows))(*(count * width for count in rows))
    starts, start = [], 0
    for count in rows:
        starts.append(start * width)
        start += count
    return counts, (ctypes.c_uint64 * len(rows))(*starts)


@cache
def _functions() -> dict[str, Any]:
    pointer, count, word, text = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int32, ctypes.c_char_p
    library = core()
    signatures: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "ga_vnpu_hccl_find": (pointer, (text,)),
        "ga_vnpu_hccl_rank": (word, (pointer,)),
        "ga_vnpu_hccl_size": (word, (pointer,)),
        "aclGetRecentErrMsg": (text, ()),
        "HcclAllReduce": (word, (pointer, pointer, count, word, word, pointer, pointer)),
        "HcclReduceScatter": (word, (pointer, pointer, count, word, word, pointer, pointer)),
        "HcclAllGather": (word, (pointer, pointer, count, word, pointer, pointer)),
        "HcclAlltoAll": (word, (pointer, count, word, pointer, count, word, pointer, pointer)),
        "HcclAlltoAllV": (word, (pointer, pointer, pointer, word, pointer, pointer, pointer, word, pointer, pointer)),
    }
    functions = {}
    for name, (result, arguments) in signatures.items():
        function = library[name]  # an object of our own: nobody else's types are changed
        function.restype, function.argtypes = result, arguments
        functions[name] = function
    return functions
