"""Runs one entry of PyTorch's operator database on the virtual NPU and on the CPU, and says what that proves."""

from __future__ import annotations

import random
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.testing import assert_close
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_flatten

from gallium.vnpu.loader import call_counts

# Calls that move or fill data: a sample in which only these ran says nothing about an operator.
MOVES = frozenset({"InplaceCopy", "InplaceZero", "InplaceOne", "InplaceFillScalar", "Cast", "ViewCopy"})
# Entries whose result is random or uninitialised by their definition; tested by distribution elsewhere.
RANDOM = re.compile(
    r"^(bernoulli|cauchy|empty|empty_like|empty_permuted|empty_strided|exponential|geometric|log_normal|multinomial|new_empty"
    r"|new_empty_strided|normal|rand|rand_like|randint|randint_like|randn|randn_like|randperm|uniform|normal_"
    r"|nn\.functional\.(alpha_dropout|dropout|dropout2d|dropout3d|feature_alpha_dropout|fractional_max_pool2d"
    r"|fractional_max_pool3d|rrelu)|svd_lowrank|pca_lowrank|resize_|resize_as_)$"
)
# Where the documentation says that the chip gives other numbers than PyTorch, and the emulation does too.
DOCUMENTED = {
    "nn.functional.gelu": "torch_npu takes the approximation by tanh whatever `approximate` says (op-plugin, npu_gelu)",
}
FALLBACK = re.compile(r"fallback to cpu|is not currently supported on the NPU backend|FALLBACK_CPU_DISABLE", re.I)
# torch_npu computes discrete Fourier transforms as matrix products, in another order than the CPU's FFT.
LOOSER = {"rtol": 1e-4, "atol": 1e-4}
EMULATED = re.compile(r"aclnn\w+: |call acl\w+ failed|not in libopapi")
NOT_EMULATED = re.compile(r"aclnn(\w+?) is not emulated|aclop operator (\w+) is not emulated")


@dataclass
class Verdict:
    """What one entry proves; detail: the function that is missing, the difference, or the refusal."""

    entry: str
    outcome: str
    samples: int = 0
    declined: int = 0  # samples that torch_npu itself refuses, before any emulated function is called
    detail: str = ""
    called: list[str] = field(default_factory=list)


def entries() -> dict[str, Any]:
    """The database by name and variant."""
    return {f"{op.name}.{op.variant_test_name}".rstrip("."): op for op in op_db}


def judge(name: str, op: Any, dtype: torch.dtype, *, backward: bool, limit: int) -> Verdict:
    """The verdict on an entry, over at most `limit` samples, in `dtype` or else the first one that the entry has."""
    if RANDOM.match(op.name):
        return Verdict(name, "random")
    last = Verdict(name, "unsupported")
    dtype = _nearest(op, dtype)
    called: Counter[str] = Counter()
    compared = declined = 0
    try:
        for sample in islice(_samples(op, dtype, backward), limit):
            on_cpu = _attempt(op, sample, "cpu", backward)
            if isinstance(on_cpu, Exception):
                continue  # an entry's samples may be meant for another device
            before = call_counts()
            on_npu = _attempt(op, sample, "npu", backward)
            ran = {key for key, count in call_counts().items() if count > before[key]}
            called.update(ran)
            if isinstance(on_npu, Exception):
                failure = _failed(name, on_npu, compared, called)
                if failure.outcome != "declined":
                    return failure
                declined += 1
                last = failure
                continue
            _compare(on_npu, on_cpu, op.name.startswith("fft."))
            compared += 1
    except AssertionError as error:
        if op.name in DOCUMENTED:
            return Verdict(name, "documented", compared, declined, DOCUMENTED[op.name], sorted(called))
        return Verdict(name, "mismatch", compared, declined, _short(error), sorted(called))
    if compared == 0 and declined:
        return last
    if compared == 0:
        return Verdict(name, "unsupported", 0, 0, "no sample runs on the CPU")
    outcome = "match" if set(called) - MOVES else "moves"
    return Verdict(name, outcome, compared, declined, "", sorted(called))


def _nearest(op: Any, dtype: torch.dtype) -> torch.dtype:
    """`dtype` if the entry has it, else the first one of a fixed order."""
    found: set[torch.dtype] = set(op.supported_dtypes("cpu"))
    order = (dtype, torch.int64, torch.bool, torch.float64, torch.complex64, *found)
    return next((d for d in order if d in found), dtype)


def _samples(op: Any, dtype: torch.dtype, backward: bool) -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from op.sample_inputs("cpu", dtype, requires_grad=backward) if op.supported_dtypes("cpu") else ()


def _attempt(op: Any, sample: Any, device: str, backward: bool) -> Any:
    """The flat list of results (and gradients), or the exception."""
    try:
        moved = sample.transform(lambda x: _moved(x, device)) if device != "cpu" else sample.transform(_copied)
        _seed()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _creating_on(device, sample):
                result = op(moved.input, *moved.args, **moved.kwargs)
            outputs = [x for x in tree_flatten(result)[0] if isinstance(x, torch.Tensor)]
            if sample.output_process_fn_grad is not None and backward:
                outputs = [
                    x for x in tree_flatten(sample.output_process_fn_grad(result))[0] if isinstance(x, torch.Tensor)
                ]
            return _gradients(moved, outputs) if backward else [_home(x) for x in outputs] + _numbers(result)
    except Exception as error:
        return error


def _gradients(sample: Any, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
    leaves = [x for x in tree_flatten((sample.input, sample.args, sample.kwargs))[0] if _wants_gradient(x)]
    roots = [x for x in outputs if x.requires_grad]
    if not leaves or not roots:
        raise ValueError("nothing to differentiate")
    cotangents = [_cotangent(x) for x in roots]
    found = torch.autograd.grad(roots, leaves, cotangents, allow_unused=True)
    return [torch.zeros(0) if g is None else _home(g) for g in found]


def _cotangent(x: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(x.numel())
    return torch.randn(x.shape, dtype=x.dtype, generator=generator).to(x.device)


def _wants_gradient(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.requires_grad


def _creating_on(device: str, sample: Any) -> AbstractContextManager[Any]:
    """Operators that only create tensors have none to say where: they create on this device."""
    leaves = tree_flatten((sample.input, sample.args, sample.kwargs))[0]
    creates = not any(isinstance(x, torch.Tensor) for x in leaves)
    return torch.device(device) if creates else nullcontext()


def _moved(x: Any, device: str) -> Any:
    if isinstance(x, str) and x == "cpu":
        return device
    if isinstance(x, torch.Tensor):
        return x.detach().to(device).requires_grad_(x.requires_grad)
    return torch.device(device) if isinstance(x, torch.device) else x


def _copied(x: Any) -> Any:
    return x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, torch.Tensor) else x


def _home(x: torch.Tensor) -> torch.Tensor:
    return x.detach().cpu().resolve_conj().resolve_neg()


def _numbers(result: Any) -> list[Any]:
    return [x for x in tree_flatten(result)[0] if isinstance(x, bool | int | float | complex)]


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def _compare(on_npu: list[Any], on_cpu: list[Any], loose: bool) -> None:
    assert len(on_npu) == len(on_cpu), f"{len(on_npu)} results, and {len(on_cpu)} on the CPU"
    for one, other in zip(on_npu, on_cpu, strict=True):
        assert_close(one, other, equal_nan=True, **(LOOSER if loose else {}))


def _failed(name: str, error: Exception, compared: int, called: Counter[str]) -> Verdict:
    text = str(error)
    if FALLBACK.search(text):
        return Verdict(name, "fallback", compared, 0, "", sorted(called))
    if found := NOT_EMULATED.search(text):
        return Verdict(name, "missing", compared, 0, found.group(1) or found.group(2), sorted(called))
    outcome = "refused" if EMULATED.search(text) else "declined"
    return Verdict(name, outcome, compared, 0, _short(error), sorted(called))


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    marker = text.find("aclnn", text.find("PTA call acl api failed"))
    return (text[marker:] if "PTA call acl api failed" in text and marker >= 0 else f"{type(error).__name__}: {text}")[
        :300
    ]
