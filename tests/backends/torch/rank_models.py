"""What each process of test_ranks runs: small models over several ranks and alone, which must give the same."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from tests.models.driving import Driver
from tests.models.memory_checkpoint import random_checkpoint
from tests.models.small_specs import EVEN, EVEN_MOE

from gallium.backends.torch.collectives import connect
from gallium.errors import BackendError
from gallium.models.catalog import load_model
from gallium.models.config import read_spec
from gallium.models.decoder import Model
from gallium.models.sharding import local_spec
from gallium.models.spec import ModelSpec
from gallium.ops.handles import ALONE, FloatArray, Placement, Precision, Step

DENSE = EVEN | {"num_key_value_heads": 4}
CONFIGS: dict[str, dict[str, Any]] = {
    "glm": DENSE | {"model_type": "glm", "attention_bias": True},
    "glm-tied": DENSE | {"model_type": "glm", "tie_word_embeddings": True},
    "glm-two-kv-heads": EVEN | {"model_type": "glm"},
    "glm4": DENSE | {"model_type": "glm4"},
    "llama-biased": DENSE | {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "glm4_moe": EVEN_MOE | {"model_type": "glm4_moe", "num_key_value_heads": 4, "use_qk_norm": True},
    "glm4_moe-no-shared": EVEN_MOE | {"model_type": "glm4_moe", "n_shared_experts": 0, "n_routed_experts": 8},
}
MOE, LONELY = "glm4_moe", "glm4_moe-no-shared"


class Case(NamedTuple):
    """One model and how it is spread. `idle` groups have no sequences; `atol` bounds the difference of logits."""

    config: str
    placement: Placement
    idle: Sequence[int] = ()
    precision: Precision = "float32"
    atol: float = 2e-4  # measured: up to 2e-5 at logits up to 6

    def __str__(self) -> str:
        p = self.placement
        words = [self.config, f"tp{p.tp}-dp{p.dp}-ep{p.ep}", *(f"idle{group}" for group in self.idle)]
        return " ".join(words if self.precision == "float32" else [*words, self.precision])


CASES: dict[int, list[Case]] = {
    2: [
        *(Case(name, Placement(tp=2)) for name in CONFIGS),
        *(Case(name, Placement(tp=2, ep=2)) for name in (MOE, LONELY)),
        *(Case(name, Placement(dp=2, ep=2)) for name in (MOE, LONELY)),
        *(Case(MOE, Placement(dp=2, ep=2), idle=[group]) for group in (0, 1)),
        Case(MOE, Placement(dp=2)),
        Case("glm", Placement(dp=2), idle=[1]),
        Case("glm", Placement(tp=2), precision="bfloat16", atol=0.25),
        Case("glm", Placement(tp=2), precision="float16", atol=0.04),
    ],
    4: [
        *(Case(name, Placement(tp=4)) for name in ("glm", "glm-tied", "glm-two-kv-heads", "glm4", "llama-biased", MOE)),
        *(Case(name, Placement(tp=4, ep=4)) for name in (MOE, LONELY)),
        *(Case(name, Placement(dp=4, ep=4)) for name in (MOE, LONELY)),
        Case(MOE, Placement(dp=4, ep=4), idle=[0, 2, 3]),
        *(Case(name, Placement(tp=2, dp=2, ep=4)) for name in (MOE, LONELY)),
        *(Case(MOE, Placement(tp=2, dp=2, ep=4), idle=[group]) for group in (0, 1)),
        Case(MOE, Placement(tp=2, dp=2)),
        Case("glm", Placement(tp=2, dp=2)),
    ],
}  # fmt: skip
OTHER = ["collectives", "one placement per process"]


def nothing() -> Step:
    """A step without tokens."""
    none = np.zeros(0, np.int32)
    return Step(none, none, np.zeros(1, np.int32), none, np.zeros((0, 1), np.int32), none)


def follow(model: Model, seed: int) -> tuple[list[FloatArray], list[list[int]]]:
    """Logits of every step of two sequences, chunked and batched, and their greedy tokens: 8 steps."""
    driver = Driver(model, block_size=model.ops.block_size)
    prompt = np.random.default_rng(seed).integers(0, 320, 24).tolist()
    steps: list[dict[str, list[int]]] = [{"a": prompt[:7]}, {"a": prompt[7:15], "b": prompt[15:]}]
    logits: list[FloatArray] = []
    tokens: list[list[int]] = []
    while len(tokens) < 8:
        rows = driver.step(steps[len(tokens)] if len(tokens) < 2 else {"a": tokens[-1][:1], "b": tokens[-1][1:]})
        logits.append(np.concatenate(list(rows.values())))
        tokens.append([int(row[-1].argmax()) for row in rows.values()])
    return logits, tokens


def idle(model: Model) -> None:
    """As many steps without a token."""
    driver = Driver(model, block_size=model.ops.block_size)
    for _ in range(8):
        assert model.ops.download(driver.run(nothing())).shape == (0, 320)


def load(backend: str, spec: ModelSpec, precision: Precision, placement: Placement) -> Model:
    opened = import_module(f"gallium.backends.{backend}").backend
    ops = opened.open(local_spec(spec, placement).facts, precision, 1, placement)
    return load_model(random_checkpoint(spec), spec, ops, placement=placement)


def run(case: Case, rank: int, rendezvous: str, backend: str) -> None:
    """One rank's part of a case, against the whole model."""
    spec = read_spec(CONFIGS[case.config])
    placement = replace(case.placement, rank=rank, rendezvous=rendezvous)
    model = load(backend, spec, case.precision, placement)
    if placement.dp_rank in case.idle:
        idle(model)
        return
    logits, tokens = follow(model, placement.dp_rank)
    expected, expected_tokens = follow(load(backend, spec, case.precision, ALONE), placement.dp_rank)
    for got, wanted in zip(logits, expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=case.atol, rtol=0)
    assert case.precision != "float32" or tokens == expected_tokens


def check_collectives(world: int, rank: int, device: torch.device, transport: str) -> None:
    """Each primitive in each dtype that activations or ids have, also without rows."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int64):
        group = connect(Placement(rank, tp=world, ep=world), device, transport)
        six = torch.arange(6, device=device).reshape(2, 3).to(dtype)
        total = group.all_reduce((six + rank).T.contiguous().T)
        assert torch.equal(total, six * world + sum(range(world)))
        own = six + 10 * rank
        assert torch.equal(group.all_gather(own), torch.cat([six + 10 * r for r in range(world)], dim=1))
        assert group.all_gather(own[:0]).shape == (0, 3 * world) and group.all_reduce(own[:0]).shape == (0, 3)
        send = torch.tensor(
            [r if rank else 0 for r in range(world)], device=device
        )  # r rows to rank r; rank 0 sends nothing
        receive = group.exchange_counts(send)
        assert receive.tolist() == [0] + [rank] * (world - 1)
        rows = torch.full((int(send.sum()), 2), rank, device=device).to(dtype)
        got = group.exchange(rows, send.tolist(), receive.tolist())
        assert got[:, 0].tolist() == [r for r in range(1, world) for _ in range(rank)] and got.dtype == dtype


def check_one_placement(world: int, rank: int, device: torch.device, transport: str) -> None:
    """A process that is one rank already does not become another."""
    try:
        connect(Placement(0, tp=world + 1), device, transport)
    except BackendError as error:
        assert f"rank {rank} of {world} already" in str(error)
    else:
        raise AssertionError("not refused")


def main(world: int, rank: int, rendezvous: str, backend: str = "torch") -> None:
    """All checks of one rank; each prints "ok rank name"."""
    torch.set_num_threads(1)
    for case in CASES[world]:
        run(case, rank, rendezvous, backend)
        print(f"ok {rank} {case}", flush=True)
    device, transport = (torch.device("cpu"), "gloo") if backend == "torch" else (torch.device("npu", rank), "hccl")
    for name, check in zip(OTHER, (check_collectives, check_one_placement), strict=True):
        check(world, rank, device, transport)
        print(f"ok {rank} {name}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
