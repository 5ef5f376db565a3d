"""Runs one entry of PyTorch's operator database on the virtual NPU and on the CPU, and says what that proves."""

from __future__ import annotations

import random
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from tools.npu_coverage.known import BY_HAND_ON_CPU, DOCUMENTED, LOOSER, LOOSER_BOUNDS, MOVES, RANDOM, random_sample
from torch.testing import assert_close
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_flatten, tree_map

from gallium.vnpu.loader import call_counts

# What the text of a refusal says, in the order in which they are asked.
REFUSALS = (
    ("fallback", r"fallback to cpu|is not currently supported on the NPU backend|FALLBACK_CPU_DISABLE"),
    ("missing", r"aclnn\w+ is not emulated|aclop\.\w+ is not emulated"),
    ("failed", r"the emulated operator failed|the output's (shape|strides) = "),
    ("illegal", r"aclnn\w+: .* is not legal: it must be"),
    ("refused", r"aclnn\w+: |call acl\w+ failed|not in libopapi"),
)
LEFT_OUT = ("fallback", "illegal", "declined")  # such samples say nothing about the others of an entry
# The tolerance of assert_close for the types that some operators compute in float32, and the CPU does not.
HALVES = {torch.float16: 1e-3, torch.bfloat16: 1.6e-2}
Exact = Callable[[], Any]


@dataclass
class Verdict:
    """What one entry proves; detail: the function that is missing, the difference, or the refusal."""

    entry: str
    outcome: str
    samples: int = 0  # compared
    left_out: dict[str, int] = field(default_factory=dict)  # samples by the reason why they are not compared
    detail: str = ""
    called: list[str] = field(default_factory=list)  # by the samples that were compared


def entries() -> dict[str, Any]:
    """The database by name and variant."""
    return {f"{op.name}.{op.variant_test_name}".rstrip("."): op for op in op_db}


def judge(name: str, op: Any, dtype: torch.dtype, *, backward: bool, limit: int) -> Verdict:
    """The verdict on an entry, over at most `limit` samples, in `dtype` or else the first one that the entry has."""
    if RANDOM.match(op.name):
        return Verdict(name, "random")
    if name in BY_HAND_ON_CPU:
        return Verdict(name, "fallback", detail=BY_HAND_ON_CPU[name])
    dtype = nearest(op, dtype)
    called: set[str] = set()
    left_out: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    compared = 0
    for sample in islice(_samples(op, dtype, backward), limit):
        on_cpu = _attempt(op, sample, "cpu", backward)
        if isinstance(on_cpu, Exception):
            continue  # an entry's samples may be meant for another device
        if random_sample(op.name, partial(_attempt, op, sample, "cpu", False)):
            left_out["random"] += 1
            continue
        before = call_counts()
        on_npu = _attempt(op, sample, "npu", backward)
        if isinstance(on_npu, Exception):
            kind = _kind(on_npu)
            if kind not in LEFT_OUT:
                return Verdict(name, kind, compared, dict(left_out), _short(on_npu), sorted(called))
            left_out[kind] += 1
            reasons.setdefault(kind, _short(on_npu))
            continue
        try:
            differs = _differs(on_npu, on_cpu, op.name, partial(_widened, op, sample, backward))
        except AssertionError as error:
            return Verdict(name, "mismatch", compared, dict(left_out), _short(error), sorted(called))
        if differs:
            left_out["documented"] += 1
            reasons.setdefault("documented", DOCUMENTED[op.name].reason)
        else:
            called.update(key for key, count in call_counts().items() if count > before[key])
            compared += 1
    detail = next((reasons[kind] for kind in ("documented", "illegal", "declined") if kind in reasons), "")
    return Verdict(name, _outcome(called, left_out, compared), compared, dict(left_out), detail, sorted(called))


def _outcome(called: set[str], left_out: Counter[str], compared: int) -> str:
    if not called - MOVES:  # nothing is proved: why?
        order = ("documented", "fallback") if compared else ("documented", "random", "fallback", "illegal", "declined")
        return next((kind for kind in order if left_out[kind]), "moves" if compared else "unsupported")
    return "partly" if left_out["fallback"] or left_out["documented"] else "match"


def nearest(op: Any, dtype: torch.dtype) -> torch.dtype:
    """`dtype` if the entry has it, else the first one of a fixed order."""
    found: set[torch.dtype] = set(op.supported_dtypes("cpu") or op.supported_dtypes("cuda"))
    order = (dtype, torch.int64, torch.bool, torch.float64, torch.complex64, *sorted(found, key=str))
    return next((d for d in order if d in found), dtype)


def _samples(op: Any, dtype: torch.dtype, backward: bool) -> Iterator[Any]:
    _seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from op.sample_inputs("cpu", dtype, requires_grad=backward)


def _attempt(op: Any, sample: Any, device: str, backward: bool, seed: int = 0) -> Any:
    """The flat list of results (and gradients), or the exception."""
    try:
        inputs = tree_map(lambda x: _moved(x, device), (sample.input, sample.args, sample.kwargs))
        return _results(op, inputs, sample, device, backward, seed)
    except Exception as error:
        return error


def _results(op: Any, inputs: Any, sample: Any, device: str, backward: bool, seed: int = 0) -> list[Any]:
    _seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _creating_on(device, inputs):
            result = op(inputs[0], *inputs[1], **inputs[2])
        if backward:
            return _gradients(inputs, _tensors(sample.output_process_fn_grad(result)))
        return [_home(x) for x in _tensors(result)] + _numbers(result)


def _gradients(inputs: Any, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
    leaves = [x for x in _tensors(inputs) if x.requires_grad]
    roots = [x for x in outputs if x.requires_grad]
    if not leaves or not roots:
        raise ValueError("nothing to differentiate")
    cotangents = [_cotangent(x) for x in roots]
    found = torch.autograd.grad(roots, leaves, cotangents, allow_unused=True)
    return [torch.zeros(0) if g is None else _home(g) for g in found]


def _cotangent(x: torch.Tensor) -> torch.Tensor:
    """The same numbers whatever the type: torch_npu may give another one than the CPU."""
    generator = torch.Generator().manual_seed(x.numel())
    values = torch.randn(x.shape, dtype=torch.complex64 if x.is_complex() else torch.float32, generator=generator)
    return values.to(x.dtype).to(x.device)


def _creating_on(device: str, inputs: Any) -> AbstractContextManager[Any]:
    """Operators that only create tensors may have none to say where: they create on this device."""
    return nullcontext() if _tensors(inputs) else torch.device(device)


def _moved(x: Any, device: str) -> Any:
    """A copy of a tensor on the device; and a device that is named as an argument is this one."""
    if isinstance(x, torch.Tensor):
        there = x.detach().clone() if device == "cpu" else x.detach().to(device)
        return there.requires_grad_(x.requires_grad)
    return torch.device(device) if isinstance(x, torch.device) or (isinstance(x, str) and x == "cpu") else x


def _home(x: torch.Tensor) -> torch.Tensor:
    return x.detach().cpu().resolve_conj().resolve_neg()


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [x for x in tree_flatten(tree)[0] if isinstance(x, torch.Tensor)]


def _numbers(result: Any) -> list[Any]:
    return [x for x in tree_flatten(result)[0] if isinstance(x, bool | int | float | complex)]


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _differs(on_npu: list[Any], on_cpu: list[Any], name: str, exact: Exact) -> bool:
    """Whether the results differ as they are documented to. Raises AssertionError where they differ otherwise."""
    bounds = LOOSER_BOUNDS if LOOSER.match(name) else None
    try:
        assert len(on_npu) == len(on_cpu), f"{len(on_npu)} results, and {len(on_cpu)} on the CPU"
        for i in range(len(on_cpu)):
            _agree(on_npu[i], on_cpu[i], bounds, i, exact)
    except AssertionError:
        if name not in DOCUMENTED:
            raise
        known = DOCUMENTED[name]
        bounds = {"rtol": known.bound, "atol": known.bound} if known.bound else None
        for i in known.compared(on_npu, on_cpu):
            one = on_npu[i].to(on_cpu[i].dtype) if known.any_type else on_npu[i]
            _agree(one, on_cpu[i], bounds, i, exact)
        return True
    return False


def _agree(one: Any, other: Any, bounds: dict[str, float] | None, place: int, exact: Exact) -> None:
    """Raises AssertionError unless both are close.

    A half may be rounded more often on one side: it may be as far from the result in float32 as the CPU's half is.
    """
    half = isinstance(other, torch.Tensor) and other.dtype in HALVES and one.dtype == other.dtype
    try:
        assert_close(one, other, equal_nan=True, **(bounds or {} if not half else {}))
    except AssertionError:
        wide = exact() if half else None
        if isinstance(wide, list) and len(wide) > place and wide[place].shape == one.shape == other.shape:
            ours = (other.float() - wide[place]).abs()
            room = float(ours[ours.isfinite()].max()) if ours.isfinite().any() else 0.0
            assert_close(one.float(), wide[place].float(), equal_nan=True, rtol=HALVES[other.dtype], atol=room + 1e-5)
            return
        raise


def _widened(op: Any, sample: Any, backward: bool) -> Any:
    """The results of a sample in halves, computed in float32 on the CPU."""
    inputs = tree_map(_wide, (sample.input, sample.args, sample.kwargs))
    return _results(op, inputs, sample, "cpu", backward)


def _wide(x: Any) -> Any:
    if isinstance(x, torch.Tensor) and x.dtype in HALVES:
        return x.detach().float().requires_grad_(x.requires_grad)
    return torch.float32 if isinstance(x, torch.dtype) and x in HALVES else x


def _kind(error: Exception) -> str:
    """Who refuses, and why: an outcome."""
    text = " ".join(str(error).split())
    return next((kind for kind, pattern in REFUSALS if re.search(pattern, text, re.IGNORECASE)), "declined")


def _short(error: BaseException) -> str:
    text = re.sub(r"\[ERROR\] \S+ \(PID.*?\) ", "", " ".join(str(error).split()))  # the same at every run
    marker = text.find("aclnn", text.find("PTA call acl api failed"))
    return (text[marker:] if "PTA call acl api failed" in text and marker >= 0 else f"{type(error).__name__}: {text}")[
        :300
    ]
