"""Models that the tests of this folder run, and what an engine says of them on a backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tests.models import hf_tiny

from gallium import LLM, SamplingParams

TINY = ("glm-edge-tied", "glm4-bias", "glm4_moe-355b-like", "glm4_moe-groups")


def save_tiny(variant: str, folder: Path) -> Path:
    """One of transformers' tiny random models as a checkpoint folder."""
    hf_tiny.make(variant).save_pretrained(folder)
    return folder


@contextmanager
def engine(model: Path | None, backend: str, **settings: Any) -> Iterator[LLM]:
    """A loaded model with a small cache."""
    with LLM(None if model is None else str(model), backend=backend, **{"kv_memory": "64MiB", **settings}) as llm:
        yield llm


def greedy(llm: LLM, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """The likeliest continuation of each prompt, all in one batch, past any end of text."""
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    return [answer.token_ids for answer in llm.generate(prompt_token_ids=prompts, params=params)]


def prompts(count: int, vocab: int, longest: int = 24) -> list[list[int]]:
    """`count` random prompts of 1 to `longest` tokens."""
    rng = np.random.default_rng(count)
    return [rng.integers(6, vocab, int(rng.integers(1, longest + 1))).tolist() for _ in range(count)]


def divergence(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Mean over the rows of KL(softmax(expected) || softmax(found)), in nats."""
    p, q = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in (expected, found))
    return float((p.exp() * (p - q)).sum(-1).mean())
