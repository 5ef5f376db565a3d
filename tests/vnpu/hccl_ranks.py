"""HCCL's C functions called by processes without torch: bindings, and a group of forked ranks that run one check."""

from __future__ import annotations

import ctypes
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from gallium.vnpu.library import core

ROOT_INFO_BYTES = 4108
INT8, INT16, INT32, FLOAT16, FLOAT32, INT64, UINT64, UINT8, UINT16, UINT32, FLOAT64, BFLOAT16 = range(12)
INT128, FLOAT8_E4M3 = 12, 15
SUM, PRODUCT, MAXIMUM, MINIMUM = range(4)
PARAMETER, INTERNAL, UNSUPPORTED, TIMED_OUT = 1, 4, 5, 9

NUMPY = {
    INT8: np.int8, INT16: np.int16, INT32: np.int32, FLOAT16: np.float16, FLOAT32: np.float32, INT64: np.int64,
    UINT64: np.uint64, UINT8: np.uint8, UINT16: np.uint16, UINT32: np.uint32, FLOAT64: np.float64,
    BFLOAT16: ml_dtypes.bfloat16,
}  # fmt: skip
CODES = {np.dtype(kind): code for code, kind in NUMPY.items()}

P, Q, W = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int32
SIGNATURES = {
    "HcclGetRootInfo": (P,),
    "HcclCommInitRootInfo": (W, P, W, P),
    "HcclCommInitAll": (W, P, P),
    "HcclCreateSubCommConfig": (P, W, P, Q, W, P, P),
    "HcclCommDestroy": (P,),
    "HcclGetCommName": (P, P),
    "HcclGetCommAsyncError": (P, P),
    "HcclAllReduce": (P, P, Q, W, W, P, P),
    "HcclReduce": (P, P, Q, W, W, W, P, P),
    "HcclBroadcast": (P, Q, W, W, P, P),
    "HcclAllGather": (P, P, Q, W, P, P),
    "HcclAllGatherV": (P, Q, P, P, P, W, P, P),
    "HcclReduceScatter": (P, P, Q, W, W, P, P),
    "HcclReduceScatterV": (P, P, P, P, Q, W, W, P, P),
    "HcclScatter": (P, P, Q, W, W, P, P),
    "HcclAlltoAll": (P, Q, W, P, Q, W, P, P),
    "HcclAlltoAllV": (P, P, P, W, P, P, P, W, P, P),
    "HcclSend": (P, Q, W, W, P, P),
    "HcclRecv": (P, Q, W, W, P, P),
    "HcclBatchSendRecv": (P, W, P, P),
    "HcclGroupStart": (),
    "HcclGroupEnd": (),
}


class HcclError(Exception):
    """A call returned another code than 0."""

    def __init__(self, code: int, text: str):
        super().__init__(f"{code}: {text}")
        self.code, self.text = code, text


class Item(ctypes.Structure):
    """One message of a batch."""

    _fields_ = (
        ("kind", ctypes.c_int32), ("buffer", ctypes.c_void_p), ("count", ctypes.c_uint64), ("dtype", ctypes.c_int32),
        ("peer", ctypes.c_uint32),
    )  # fmt: skip


def call(name: str, *args: Any) -> None:
    """Call a function of HCCL; numpy arrays are given by address."""
    library = core()
    function = getattr(library, name)
    function.argtypes, function.restype = SIGNATURES[name], ctypes.c_int32
    code = function(*(each.ctypes.data if isinstance(each, np.ndarray) else each for each in args))
    if code != 0:
        library.aclGetRecentErrMsg.restype = ctypes.c_char_p
        raise HcclError(code, (library.aclGetRecentErrMsg() or b"").decode())


def new_root() -> bytes:
    """A root info, made by this process."""
    root = ctypes.create_string_buffer(ROOT_INFO_BYTES)
    call("HcclGetRootInfo", root)
    return root.raw


class Rank:
    """One rank of a communicator, with HCCL's functions on numpy arrays."""

    def __init__(self, rank: int, ranks: int, handle: int):
        self.rank, self.ranks, self.handle = rank, ranks, handle

    @staticmethod
    def join(root: bytes, ranks: int, rank: int) -> Rank:
        handle = ctypes.c_void_p()
        call("HcclCommInitRootInfo", ranks, root, rank, ctypes.byref(handle))
        assert handle.value is not None
        return Rank(rank, ranks, handle.value)

    def sub(self, members: list[int], number: int, mine: int | None = None) -> Rank:
        handle, parent = ctypes.c_void_p(), ctypes.c_void_p(self.handle)
        mine = members.index(self.rank) if mine is None else mine
        ids = np.array(members, np.uint32)
        call(
            "HcclCreateSubCommConfig", ctypes.byref(parent), len(members), ids, number, mine, None, ctypes.byref(handle)
        )
        assert handle.value is not None
        return Rank(mine, len(members), handle.value)

    def name(self) -> str:
        text = ctypes.create_string_buffer(128)
        call("HcclGetCommName", self.handle, text)
        return text.value.decode()

    def error(self) -> int:
        code = ctypes.c_int32()
        call("HcclGetCommAsyncError", self.handle, ctypes.byref(code))
        return code.value

    def destroy(self) -> None:
        call("HcclCommDestroy", self.handle)

    def all_reduce(self, data: np.ndarray, op: int = SUM, out: np.ndarray | None = None) -> np.ndarray:
        out = np.empty_like(data) if out is None else out
        call("HcclAllReduce", data, out, data.size, CODES[data.dtype], op, self.handle, None)
        return out

    def reduce(self, data: np.ndarray, op: int, root: int) -> np.ndarray:
        out = np.zeros_like(data)
        call("HcclReduce", data, out, data.size, CODES[data.dtype], op, root, self.handle, None)
        return out

    def broadcast(self, data: np.ndarray, root: int) -> None:
        call("HcclBroadcast", data, data.size, CODES[data.dtype], root, self.handle, None)

    def all_gather(self, data: np.ndarray) -> np.ndarray:
        out = np.empty((self.ranks, *data.shape), data.dtype)
        call("HcclAllGather", data, out, data.size, CODES[data.dtype], self.handle, None)
        return out

    def all_gather_v(self, data: np.ndarray, counts: list[int]) -> np.ndarray:
        out = np.empty(sum(counts), data.dtype)
        table, where = _table(counts)
        call("HcclAllGatherV", data, data.size, out, table, where, CODES[data.dtype], self.handle, None)
        return out

    def reduce_scatter(self, data: np.ndarray, op: int, out: np.ndarray | None = None) -> np.ndarray:
        out = np.empty(data.size // self.ranks, data.dtype) if out is None else out
        call("HcclReduceScatter", data, out, out.size, CODES[data.dtype], op, self.handle, None)
        return out

    def reduce_scatter_v(self, data: np.ndarray, counts: list[int], op: int) -> np.ndarray:
        out = np.empty(counts[self.rank], data.dtype)
        table, where = _table(counts)
        call("HcclReduceScatterV", data, table, where, out, out.size, CODES[data.dtype], op, self.handle, None)
        return out

    def scatter(self, data: np.ndarray, root: int) -> np.ndarray:
        out = np.empty(data.size // self.ranks, data.dtype)
        call("HcclScatter", data, out, out.size, CODES[data.dtype], root, self.handle, None)
        return out

    def all_to_all(self, data: np.ndarray) -> np.ndarray:
        out, part, code = np.empty_like(data), data.size // self.ranks, CODES[data.dtype]
        call("HcclAlltoAll", data, part, code, out, part, code, self.handle, None)
        return out

    def all_to_all_v(self, data: np.ndarray, sends: list[int], receives: list[int]) -> np.ndarray:
        out, code = np.empty(sum(receives), data.dtype), CODES[data.dtype]
        call("HcclAlltoAllV", data, *_table(sends), code, out, *_table(receives), code, self.handle, None)
        return out

    def send(self, data: np.ndarray, to: int) -> None:
        call("HcclSend", data, data.size, CODES[data.dtype], to, self.handle, None)

    def receive(self, out: np.ndarray, source: int) -> np.ndarray:
        call("HcclRecv", out, out.size, CODES[out.dtype], source, self.handle, None)
        return out

    def batch(self, messages: list[tuple[str, np.ndarray, int]]) -> None:
        items = (Item * len(messages))()
        for item, (kind, data, peer) in zip(items, messages, strict=True):
            code = CODES[data.dtype]
            item.kind, item.buffer, item.count, item.dtype, item.peer = (
                kind == "receive",
                data.ctypes.data,
                data.size,
                code,
                peer,
            )
        call("HcclBatchSendRecv", items, len(messages), self.handle, None)


def _table(counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Counts, and where each part begins."""
    table = np.array(counts, np.uint64)
    return table, np.concatenate(([0], np.cumsum(table)[:-1])).astype(np.uint64)


Check = Callable[[Rank], None]


def run_ranks(ranks: int, check: Check, *, join: bool = True, limit: float = 60) -> list[int]:
    """Fork ranks that join one communicator and run the check; their exit codes (1: the check failed, and said why)."""
    root = new_root()
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            os._exit(_run_one(root, ranks, rank, check, join))
        children.append(child)
    end = time.monotonic() + limit
    return [_exit_code(child, end) for child in children]


def _run_one(root: bytes, ranks: int, rank: int, check: Check, join: bool) -> int:
    try:
        comm = Rank.join(root, ranks, rank) if join else Rank(rank, ranks, 0)
        check(comm)
        if join:
            comm.destroy()
    except BaseException:
        sys.stderr.write(f"rank {rank}:\n{traceback.format_exc()}")
        sys.stderr.flush()
        return 1
    return 0


def _exit_code(child: int, end: float) -> int:
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(child, 9)
            os.waitpid(child, 0)
            return -99  # it hung
        time.sleep(0.01)
