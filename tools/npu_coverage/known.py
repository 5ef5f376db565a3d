"""What is known about single entries: random ones, torch_npu's own paths, and differences that the chip has too."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch

# Calls that move or fill data: a sample in which only these ran says nothing about an operator.
MOVES = frozenset({"InplaceCopy", "InplaceZero", "InplaceOne", "InplaceFillScalar", "Cast", "ViewCopy"})
# Entries whose result is random or uninitialised by their definition; tested by distribution elsewhere.
RANDOM = re.compile(
    r"^(bernoulli|cauchy|empty|empty_like|empty_permuted|empty_strided|exponential|geometric|log_normal|multinomial|new_empty"
    r"|new_empty_strided|normal|rand|rand_like|randint|randint_like|randn|randn_like|randperm|uniform|normal_"
    r"|nn\.functional\.(alpha_dropout|dropout|dropout2d|dropout3d|feature_alpha_dropout|fractional_max_pool2d"
    r"|fractional_max_pool3d)|svd_lowrank|pca_lowrank|resize_|resize_as_)$"
)
# Entries of which some samples are random: those whose result on the CPU changes with the seed.
PARTLY_RANDOM = re.compile(r"^nn\.functional\.(rrelu|scaled_dot_product_attention|multi_head_attention_forward)$")
# torch_npu computes discrete Fourier transforms as matrix products, and attention in one piece: in another order.
LOOSER = re.compile(r"^fft\.|^nn\.functional\.scaled_dot_product_attention$")
LOOSER_BOUNDS = {"rtol": 1e-4, "atol": 1e-4}
# Operators that torch_npu itself computes on the CPU in plain code, which its switch against fallbacks does not touch.
BY_HAND_ON_CPU = {
    f"scatter_reduce.{how}": "op-plugin, ScatterReduceKernelNpuOpApi.cpp: scatter_reduce_cpu_fallback"
    for how in ("amax", "amin", "mean", "prod")
}


@dataclass(frozen=True)
class Difference:
    """Why an entry differs from PyTorch on the chip too, and what must agree all the same.

    compared: the places of the results that are compared, given both lists. any_type: their types may differ.
    bound: how far they may be apart, if further than PyTorch's own tolerance.
    """

    reason: str
    compared: Callable[[list[Any], list[Any]], list[int]] = lambda _, on_cpu: list(range(len(on_cpu)))
    any_type: bool = False
    bound: float | None = None


def _first(_on_npu: list[Any], _on_cpu: list[Any]) -> list[int]:
    return [0]


def _none(_on_npu: list[Any], _on_cpu: list[Any]) -> list[int]:
    return []


def _given(on_npu: list[Any], on_cpu: list[Any]) -> list[int]:
    """Of gradients: those that the NPU gives at all."""
    return [i for i, (one, other) in enumerate(zip(on_npu, on_cpu, strict=True)) if one.shape == other.shape]


_NO_DOUBLE = Difference(
    "torch_npu turns float64 into float32 and warns so (Ascend/pytorch, ToKernelNpu.cpp)", any_type=True, bound=1e-4
)
_INT32 = "the indices are int32 (op-plugin, {}); their values are equal"
_MASK = Difference(
    "torch_npu gives a mask of bits in place of the indices (op-plugin, MaxPool2dWithIndicesKernelNpuOpApi.cpp); "
    "the maxima are equal",
    _first,
)
_STATISTICS = Difference(
    "statistics that are saved for the gradient have another shape in evaluation (op-plugin, "
    "BatchNormKernelOpApi.cpp); the output is equal",
    _first,
)
# The comparison is made with the strict rule first: an entry stands here as documented only where that one fails.
DOCUMENTED: dict[str, Difference] = {
    "nn.functional.gelu": Difference(
        "torch_npu takes the approximation by tanh whatever `approximate` says (op-plugin, npu_gelu)", bound=5e-3
    ),
    "double": _NO_DOUBLE,
    "to": _NO_DOUBLE,
    "float_power": _NO_DOUBLE,
    "nn.functional.max_pool1d": _MASK,
    "nn.functional.max_pool2d": _MASK,
    "nn.functional.max_pool3d": Difference(_INT32.format("MaxPool3dWithIndicesKernelNpuOpApi.cpp"), any_type=True),
    "nn.functional.adaptive_max_pool3d": Difference(
        _INT32.format("AdaptiveMaxPool3dKernelNpuOpApi.cpp"), any_type=True
    ),
    "native_batch_norm": _STATISTICS,
    "_native_batch_norm_legit": _STATISTICS,
    "native_layer_norm": Difference(
        "the statistics are float32, and those of an empty tensor have another shape (op-plugin, "
        "LayerNormKernelNpuOpApi.cpp: acc_type, M <= 0); the output is equal",
        _first,
    ),
    "native_dropout_backward": Difference(
        "the mask is one of bits, as native_dropout makes it there (op-plugin, NativeDropoutKernelNpuOpApi.cpp)", _none
    ),
    "nn.functional.binary_cross_entropy_with_logits": Difference(
        "torch_npu gives no gradient for `target` (op-plugin, derivatives.yaml: non_differentiable); "
        "the other is equal",
        _given,
    ),
}


def random_sample(name: str, run: Callable[[int], Any]) -> bool:
    """Whether `run(seed)` on the CPU depends on the seed: asked of entries that are random in part only."""
    if not PARTLY_RANDOM.match(name):
        return False
    first = _reseeded(run, 0)
    return any(not torch.equal(x, y) for seed in range(1, 9) for x, y in zip(first, _reseeded(run, seed), strict=True))


def _reseeded(run: Callable[[int], Any], seed: int) -> Any:
    """`run(seed)`, also where the entry sets a seed of its own."""
    with patch.object(torch, "manual_seed", lambda own, set_seed=torch.manual_seed: set_seed(own + seed)):
        return run(seed)
