"""Runs every script of examples/npu as a user does, and holds its numbers to the same computation on the CPU.

Bounds. Models that differ only in the order of float32 operations: 1e-5 of the loss per some ten steps. GELU is the
approximation by tanh on the NPU (aclnnGelu), the error function on the CPU: up to 5e-4 per activation, some 1e-4 of the
loss. Autocast chooses float16 for other operators on the NPU than on the CPU: one unit of float16, 1e-3, per layer.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tests.vnpu import programs
from tests.vnpu.programs import TORCHRUN, numbers, printed
from torch import nn

EXAMPLES = programs.HERE.parent.parent / "examples" / "npu"
LAUNCH = ("-m", "accelerate.commands.launch", "--num_processes")
COMMANDS: dict[str, tuple[object, ...]] = {
    "train_gpt": (EXAMPLES / "train_gpt.py", "--steps", 12),
    "glm_generate": (EXAMPLES / "glm_generate.py", "--steps", 8),
    "glm_finetune_lora": (EXAMPLES / "glm_finetune_lora.py", "--steps", 5),
    "amp": (EXAMPLES / "amp.py", "--steps", 6),
    "dataloader": (EXAMPLES / "dataloader.py", "--steps", 6),
    "graph_decode": (EXAMPLES / "graph_decode.py", "--steps", 12),
    "accelerate_train": ("--devices", 2, *LAUNCH, 2, EXAMPLES / "accelerate_train.py", "--steps", 10),
    "ddp": ("--devices", 4, *TORCHRUN, 4, EXAMPLES / "ddp.py", "--steps", 10),
    "fsdp2": ("--devices", 4, *TORCHRUN, 4, EXAMPLES / "fsdp2.py", "--steps", 3),
}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def outputs() -> dict[str, str]:
    """What each example printed; two run at a time."""

    def run(name: str) -> str:
        done = programs.finish(programs.start("run", *COMMANDS[name]))
        return done.stdout + ("" if done.returncode == 0 else f"ended with {done.returncode}\n{done.stderr[-4000:]}")

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(COMMANDS, pool.map(run, COMMANDS), strict=True))


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for name in COMMANDS:
        sys.modules.pop(name, None)


def example(name: str) -> Any:
    return importlib.import_module(name)


def close(found: list[float], expected: list[float], relative: float) -> None:
    torch.testing.assert_close(found, expected, rtol=relative, atol=1e-12)


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(COMMANDS)
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"examples/npu/{name}.py" in readme for name in COMMANDS)
    assert not any("gallium" in path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py"))


def test_train_gpt(outputs: dict[str, str]) -> None:
    losses = numbers(printed(outputs["train_gpt"], "losses"))
    close(losses, example("train_gpt").train(12, "cpu"), 5e-4)
    assert losses[-1] < losses[0] - 1


def test_glm_generate(outputs: dict[str, str]) -> None:
    tokens, logits = example("glm_generate").generate(8, "cpu")
    assert [int(token) for token in printed(outputs["glm_generate"], "tokens")] == tokens
    torch.testing.assert_close(numbers(printed(outputs["glm_generate"], "logits")), logits, rtol=0, atol=2e-6)


def test_glm_finetune_lora(outputs: dict[str, str]) -> None:
    losses = numbers(printed(outputs["glm_finetune_lora"], "losses"))
    close(losses, example("glm_finetune_lora").finetune(5, "cpu")[0], 1e-5)
    assert losses[-1] < losses[0] - 0.1
    assert float(printed(outputs["glm_finetune_lora"], "difference after loading")[0]) < 1e-6


def test_amp(outputs: dict[str, str]) -> None:
    losses, scales = example("amp").train(6, "cpu")
    close(numbers(printed(outputs["amp"], "losses")), losses, 2e-3)
    assert numbers(printed(outputs["amp"], "scales")) == scales and scales[1:3] == [1024, 512]


def test_dataloader(outputs: dict[str, str]) -> None:
    assert printed(outputs["dataloader"], "total") == [f"{32 * sum(range(48)):.1f}"]
    assert printed(outputs["dataloader"], "pinned") == ["True"]


@torch.no_grad()
def test_graph_decode(outputs: dict[str, str]) -> None:
    """The same weights with plain attention over the whole text, in float32 on the CPU."""
    assert printed(outputs["graph_decode"], "as without a graph") == ["True"]
    torch.manual_seed(0)
    module = example("graph_decode")
    model, text = module.Decoder().half().float(), [1]
    for _ in range(12):
        x = model.tokens(torch.tensor(text)) + model.positions(torch.arange(len(text)))
        q, k, v = (part.unflatten(-1, (module.HEADS, -1)).transpose(0, 1) for part in model.qkv(x).chunk(3, dim=-1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).flatten(1)
        text.append(model.head(model.norm(x + mixed))[-1].argmax().item())
    assert [int(token) for token in printed(outputs["graph_decode"], "tokens")] == text[1:]


def test_accelerate_train(outputs: dict[str, str]) -> None:
    """Two processes take halves of each batch of 32: their mean loss is that of the whole batch."""
    torch.manual_seed(0)
    inputs = torch.randn(256, 16)
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(10):
        x = inputs.view(8, 32, 16)[step % 8]
        loss = nn.functional.mse_loss(model(x), x.sin().sum(1, keepdim=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert "device: npu processes: 2" in outputs["accelerate_train"]
    close(numbers(printed(outputs["accelerate_train"], "losses")), losses, 1e-5)


def test_ddp(outputs: dict[str, str]) -> None:
    module = example("ddp")
    close(numbers(printed(outputs["ddp"], "losses")), module.train(*module.problem(), 10), 1e-5)


def test_fsdp2(outputs: dict[str, str]) -> None:
    module = example("fsdp2")
    model = module.small_glm()
    close(numbers(printed(outputs["fsdp2"], "losses")), module.train(model, module.batch(), 3), 1e-5)
    close(numbers(printed(outputs["fsdp2"], "weights")), [module.weight_sum(model.state_dict())], 1e-6)
