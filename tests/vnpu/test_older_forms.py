"""Functions that torch_npu calls with other settings, or with an older CANN that has no newer form of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch_npu  # noqa: F401
from torch import Tensor

from gallium.vnpu import ops
from gallium.vnpu.registry import operators

COMPATIBLE = """
import gallium.vnpu
gallium.vnpu.install()
import torch, torch_npu
from tests.vnpu.support import called
torch.npu.use_compatible_impl(True)
x, image = torch.randn(3, 8), torch.randn(1, 2, 6, 6)
with called() as names:
    y = torch.nn.functional.layer_norm(x.npu(), (8,))
    pooled, where = torch.nn.functional.max_pool2d(image.npu(), 2, return_indices=True)
assert {"FastLayerNorm", "MaxPool2dWithIndices"} <= names, names
torch.testing.assert_close(y.cpu(), torch.nn.functional.layer_norm(x, (8,)))
expected, indices = torch.nn.functional.max_pool2d(image, 2, return_indices=True)
assert torch.equal(pooled.cpu(), expected) and torch.equal(where.cpu().long(), indices)
"""


def test_the_implementation_that_is_compatible_with_other_devices() -> None:
    command = [sys.executable, "-W", "ignore", "-c", COMPATIBLE]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def body(name: str, *arguments: Any) -> None:
    ops.load()
    operators()[name].body(*arguments)


def test_upsampling_by_size_alone() -> None:
    x, image = torch.randn(2, 3, 5), torch.randn(2, 3, 5, 6)
    line, plane = torch.empty(2, 3, 8), torch.empty(2, 3, 9, 7)
    body("UpsampleNearest1d", x, (8,), line)
    body("UpsampleNearest2d", image, (9, 7), plane)
    assert torch.equal(line, torch.nn.functional.interpolate(x, 8))
    assert torch.equal(plane, torch.nn.functional.interpolate(image, (9, 7)))


def test_the_first_form_of_the_gradient_of_bilinear_upsampling() -> None:
    grad, out = torch.randn(1, 2, 8, 6), torch.empty(1, 2, 4, 3)
    body("UpsampleBilinear2dBackward", grad, (8, 6), (1, 2, 4, 3), False, 2.0, 2.0, out)
    expected = torch.ops.aten.upsample_bilinear2d_backward(grad, (8, 6), (1, 2, 4, 3), False, 2.0, 2.0)
    torch.testing.assert_close(out, expected)


def test_both_forms_of_mhc_pre_are_the_same(monkeypatch: Any) -> None:
    from gallium.vnpu import soc

    monkeypatch.setattr(soc, "current", lambda: soc.find("Ascend950PR_9589"))
    inputs = torch.randn(3, 4, 16).half(), torch.randn(24, 64), torch.rand(3), torch.randn(24), None, 1e-6, 1e-6

    def outputs() -> list[Tensor]:
        shapes = ((3, 16), (3, 4), (3, 4, 4), (3,), (3, 24), (3, 4))
        return [torch.empty(shape, dtype=torch.half if n == 0 else torch.float) for n, shape in enumerate(shapes)]

    first, second = outputs(), outputs()
    body("MhcPre", *inputs, *first)
    body("MhcPreV2", *inputs, 0, *second)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
