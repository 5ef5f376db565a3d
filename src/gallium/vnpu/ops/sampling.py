"""Drawing tokens: multinomial sampling, and limits by rank and probability."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gallium.vnpu.checks import FLOATS, check_dims, check_dtype, check_same_dtype, check_shape
from gallium.vnpu.ops.random import generator, graph_generator
from gallium.vnpu.registry import Illegal, op
from gallium.vnpu.writing import into, write

MOST_K = 1024
_GUESS = {"top_k_guess": "how many tokens the NPU looks at first, to be faster: the result is the same"}


@op("Multinomial")
def multinomial(self: Tensor, num_samples: int, replacement: bool, seed: int, offset: int, out: Tensor) -> None:
    """Indices drawn with the weights of each row."""
    into(torch.multinomial, out, self, num_samples, replacement, generator=generator(seed, offset))


@op("MultinomialTensor")
def multinomial_graph(
    self: Tensor,
    num_samples: int,
    replacement: bool,
    seed: Tensor,
    offset: Tensor,
    offset_in_graph: int,
    out: Tensor,
) -> None:
    """Multinomial in graphs."""
    random = graph_generator(seed, offset, offset_in_graph)
    into(torch.multinomial, out, self, num_samples, replacement, generator=random)


def exponential(out: Tensor, rate: float, random: Generator) -> None:
    """Numbers of the exponential distribution."""
    if not rate > 0:
        raise Illegal("lambd", rate, "positive")
    if math.isinf(rate):
        out.zero_()
    else:
        out.exponential_(rate, generator=random)


@op("SimThreadExponential")
def exponential_inplace(self: Tensor, count: int, rate: float, seed: int, offset: int) -> None:
    """Exponential numbers (op-plugin, npu_sim_exponential_)."""
    check_dtype("input", self, FLOATS)
    if not self.is_contiguous():
        raise Illegal("input", self, "contiguous (op-plugin's npu_sim_exponential_ page)")
    if count != self.numel():
        raise Illegal("count", count, f"the number of elements, {self.numel()}")
    exponential(self, rate, generator(seed, offset))


@op("StatelessExponentialTensor")
def exponential_graph(self: Tensor, seed: Tensor, offset: Tensor, offset_in_graph: int, rate: float) -> None:
    """Exponential numbers in graphs."""
    exponential(self, rate, graph_generator(seed, offset, offset_in_graph))


@op("ApplyTopKTopP")
def top_k_top_p(logits: Tensor, p: Tensor | None, k: Tensor | None, out: Tensor) -> None:
    """-inf for all but the k largest, then for the least likely that add up to 1 - p (op-plugin, npu_top_k_top_p)."""
    check_dims("logits", logits, 2, 2)
    check_dtype("logits", logits, FLOATS)
    check_same_dtype("p", p, "logits", logits)
    check_dtype("k", k, [torch.int32])
    for name, tensor in (("p", p), ("k", k)):
        check_shape(name, tensor, logits.shape[:1])
    width = logits.shape[1]
    values, order = logits.float().sort(dim=-1, stable=True)
    if k is not None:
        if k.numel() and not 1 <= int(k.min()) <= int(k.max()) <= min(MOST_K, width):
            raise Illegal("k", k.tolist(), f"1 to {min(MOST_K, width)}")
        least = values.gather(1, (width - k.long()).unsqueeze(1))
        values.masked_fill_(values < least, -math.inf)
    if p is not None:
        unlikely = values.softmax(dim=-1).cumsum(dim=-1) <= 1 - p.float().unsqueeze(1)
        unlikely[:, -1:] = False
        values.masked_fill_(unlikely, -math.inf)
    write(out, torch.empty_like(values).scatter_(1, order, values))


@dataclass(frozen=True)
class Limits:
    """How far to go down among the tokens of one row. A limit outside its range does not apply."""

    k: int
    p: float
    min_p: float
    most_k: int
    are_logits: bool

    def choose(self, row: Tensor) -> tuple[Tensor, Tensor]:
        """The indices that remain and their probabilities (op-plugin's npu_top_k_top_p_sample page and test)."""
        use_k, use_p = 1 <= self.k <= min(self.most_k, len(row)), self.p < 1
        values, indices = row, torch.arange(len(row), device="cpu")
        if use_k or use_p or self.min_p >= 1:
            values, indices = row.sort(descending=True, stable=True)
        if use_k:
            values, indices = values[: self.k], indices[: self.k]
        chances = values.softmax(dim=0) if self.are_logits else values
        if self.p <= 0:
            chances, indices = chances[:1].fill_(1) if self.are_logits else chances[:1], indices[:1]
        elif use_p:
            likely = chances.cumsum(dim=0) - chances < self.p
            chances, indices = chances[likely], indices[likely]
        if self.min_p >= 1:
            return indices[:1], chances[:1]
        if self.min_p > 0:
            likely = chances >= chances.max() * self.min_p
            chances, indices = chances[likely], indices[likely]
        return indices, chances


@op("TopKTopPSampleV2", unused=_GUESS)
def top_k_top_p_sample_v2(
    logits: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    q: Tensor | None,
    min_ps: Tensor | None,
    eps: float,
    is_need_logits: bool,
    top_k_guess: int,
    ks_max: int,
    input_is_logits: bool,
    is_need_sample_result: bool,
    select: Tensor,
    selected_logits: Tensor,
    chosen: Tensor,
    chances: Tensor,
) -> None:
    """One token for each row, from those that the limits leave (op-plugin, npu_top_k_top_p_sample).

    The most likely one after division by exponential numbers q, if they are given. For multinomial sampling, which
    torch_npu does itself, `chosen` and `chances` tell what remains, in order, and q means nothing.
    """
    _check_sampling(logits, top_k, top_p, q, min_ps, ks_max, is_need_sample_result)
    most_k = min((ks_max + 7) // 8 * 8, MOST_K)
    least = min_ps.tolist() if min_ps is not None else [-1.0] * len(logits)
    selected_logits.fill_(-math.inf if is_need_logits and input_is_logits else 0)
    chosen.zero_()
    chances.zero_()
    for i, (k, p, min_p) in enumerate(zip(top_k.tolist(), top_p.tolist(), least, strict=True)):
        row = logits[i].float()
        indices, row_chances = Limits(k, p, min_p, most_k, input_is_logits).choose(row)
        chosen[i, : len(indices)] = indices
        chances[i, : len(indices)] = row_chances
        if is_need_logits:
            selected_logits[i, indices] = row[indices]
        if q is not None and not is_need_sample_result:
            row_chances = row_chances / (q[i, : len(indices)].abs() + eps)
        select[i] = indices[row_chances.argmax()]


@op("TopKTopPSample", unused=_GUESS)
def top_k_top_p_sample(
    logits: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    q: Tensor | None,
    eps: float,
    is_need_logits: bool,
    top_k_guess: int,
    select: Tensor,
    selected_logits: Tensor,
) -> None:
    """TopKTopPSampleV2 without a least probability, for logits."""
    rest = torch.empty(logits.shape, dtype=torch.int64, device="cpu")
    chances = torch.empty(logits.shape, dtype=torch.float32, device="cpu")
    top_k_top_p_sample_v2(
        logits,
        top_k,
        top_p,
        q,
        None,
        eps,
        is_need_logits,
        0,
        MOST_K,
        True,
        False,
        select,
        selected_logits,
        rest,
        chances,
    )


def _check_sampling(
    logits: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    q: Tensor | None,
    min_ps: Tensor | None,
    ks_max: int,
    multinomial: bool,
) -> None:
    check_dims("logits", logits, 2, 2)
    check_dtype("logits", logits, FLOATS)
    check_dtype("top_k", top_k, [torch.int32])
    check_same_dtype("top_p", top_p, "logits", logits)
    for name, tensor in (("top_k", top_k), ("top_p", top_p), ("min_ps", min_ps)):
        check_shape(name, tensor, logits.shape[:1])
    if not multinomial:
        check_dtype("q", q, [torch.float32])
        check_shape("q", q, logits.shape)
    if ks_max < 1:
        raise Illegal("ks_max", ks_max, f"1 to {MOST_K}")
