"""A short check that a version of torch_npu works on the virtual NPU: `make npu-smoke WHEEL=2.9.1`.

Import, copies, some forty operators beside the CPU, a step of training, a graph. Prints what failed and exits with 1.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import Any

import gallium.vnpu

gallium.vnpu.install()

import torch  # noqa: E402
import torch_npu  # noqa: E402
from torch.nn import functional as nn  # noqa: E402

Check = Callable[[], None]
A = torch.linspace(-2, 2, 24).reshape(4, 6)
B = torch.linspace(3, 0.5, 24).reshape(4, 6)
INDEX = torch.tensor([2, 0, 3])
IMAGE = torch.linspace(-1, 1, 96).reshape(1, 2, 6, 8)
WEIGHT = torch.linspace(-0.5, 0.5, 54).reshape(3, 2, 3, 3)

# Each is computed on the NPU and on the CPU, with the same code.
OPERATORS: dict[str, Callable[[Callable[[torch.Tensor], torch.Tensor]], Any]] = {
    "add": lambda on: on(A) + on(B),
    "add a number": lambda on: on(A) + 2,
    "sub": lambda on: on(A) - on(B),
    "mul": lambda on: on(A) * on(B),
    "div": lambda on: on(A) / on(B),
    "pow": lambda on: on(B) ** 2,
    "exp": lambda on: on(A).exp(),
    "log": lambda on: on(B).log(),
    "sqrt": lambda on: on(B).sqrt(),
    "abs": lambda on: on(A).abs(),
    "tanh": lambda on: on(A).tanh(),
    "sigmoid": lambda on: on(A).sigmoid(),
    "relu": lambda on: on(A).relu(),
    "silu": lambda on: nn.silu(on(A)),
    "clamp": lambda on: on(A).clamp(-1, 1),
    "where": lambda on: torch.where(on(A) > 0, on(A), on(B)),
    "compare": lambda on: on(A) > on(B),
    "sum": lambda on: on(A).sum(1),
    "mean": lambda on: on(A).mean(0),
    "max": lambda on: on(A).max(1).values,
    "argmax": lambda on: on(A).argmax(1),
    "cumsum": lambda on: on(A).cumsum(1),
    "sort": lambda on: on(A).sort(1, descending=True).values,
    "topk": lambda on: on(A).topk(3).values,
    "mm": lambda on: on(A) @ on(B).t(),
    "bmm": lambda on: torch.bmm(on(A)[None], on(B).t()[None]),
    "addmm": lambda on: torch.addmm(on(B)[:, :4], on(A), on(B).t()),
    "linear": lambda on: nn.linear(on(A), on(B), on(B)[:, 0]),
    "softmax": lambda on: on(A).softmax(-1),
    "log_softmax": lambda on: on(A).log_softmax(-1),
    "layer_norm": lambda on: nn.layer_norm(on(A), (6,), on(B)[0], on(B)[1]),
    "embedding": lambda on: nn.embedding(on(INDEX), on(A)),
    "index": lambda on: on(A)[on(INDEX)],
    "gather": lambda on: on(A).gather(0, on(INDEX)[None]),
    "index_select": lambda on: on(A).index_select(0, on(INDEX)),
    "masked_fill": lambda on: on(A).masked_fill(on(A) > 0, 0.0),
    "nonzero": lambda on: (on(A) > 0).nonzero(),
    "cat": lambda on: torch.cat((on(A), on(B)), 1),
    "stack": lambda on: torch.stack((on(A), on(B))),
    "transpose": lambda on: on(A).t().contiguous(),
    "triu": lambda on: on(A).triu(1),
    "cast": lambda on: on(A).to(torch.bfloat16),
    "conv2d": lambda on: nn.conv2d(on(IMAGE), on(WEIGHT), padding=1),
    "max_pool2d": lambda on: nn.max_pool2d(on(IMAGE), 2),
    "cross_entropy": lambda on: nn.cross_entropy(on(A), on(torch.tensor([0, 1, 2, 3]))),
    "attention": lambda on: nn.scaled_dot_product_attention(*(on(IMAGE) for _ in range(3))),
}


def operator(name: str) -> None:
    compute = OPERATORS[name]
    found = compute(lambda x: x.npu())
    assert found.device.type == "npu"
    torch.testing.assert_close(found.cpu(), compute(lambda x: x), rtol=1e-5, atol=1e-5)


def copies() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool):
        x = A.to(dtype)
        assert torch.equal(x.npu().cpu(), x), dtype
    assert torch.equal(A.npu().t().cpu(), A.t())


def fused() -> None:
    wanted = A * torch.rsqrt(A.square().mean(-1, keepdim=True) + 1e-6) * B[0]
    torch.testing.assert_close(torch_npu.npu_rms_norm(A.npu(), B[0].npu(), 1e-6)[0].cpu(), wanted)
    wanted = nn.silu(A[:, :3]) * A[:, 3:]
    torch.testing.assert_close(torch_npu.npu_swiglu(A.npu()).cpu(), wanted)


def training() -> None:
    losses = {}
    for device in ("cpu", "npu"):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(6, 16), torch.nn.GELU(), torch.nn.LayerNorm(16), torch.nn.Linear(16, 4)
        )
        model.to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        losses[device] = []
        for _ in range(3):
            loss = nn.cross_entropy(model(A.to(device)), INDEX.new_tensor([0, 1, 2, 3]).to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[device].append(loss.item())
    torch.testing.assert_close(torch.tensor(losses["npu"]), torch.tensor(losses["cpu"]), rtol=1e-4, atol=1e-4)


def graph() -> None:
    x = A.npu()
    captured = torch.npu.NPUGraph()
    with torch.npu.graph(captured):
        y = x * 2 + 1
    x.copy_(B.npu())
    captured.replay()
    torch.npu.synchronize()
    torch.testing.assert_close(y.cpu(), B * 2 + 1)


def refusal() -> None:
    try:
        torch.mm(A.npu().long(), B.npu().long().t())
    except RuntimeError as error:
        assert "int64" in str(error), error
    else:
        raise AssertionError("a product of int64 is legal on no chip")


def main() -> int:
    checks: dict[str, Check] = {"copies": copies}
    checks |= {name: (lambda name=name: operator(name)) for name in OPERATORS}
    checks |= {"fused operators": fused, "training": training, "graph": graph, "refusal": refusal}
    failed = 0
    for name, check in checks.items():
        try:
            check()
        except Exception:
            failed += 1
            print(f"FAILED {name}\n{traceback.format_exc(limit=-2)}")
    versions = f"torch_npu {torch_npu.__version__} with torch {torch.__version__}"
    print(f"{versions}: {len(checks) - failed} of {len(checks)} checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
