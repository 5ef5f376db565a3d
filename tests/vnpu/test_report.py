"""`gallium npu run --report`: what it tells of a program whose every operator, copy and wait is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.vnpu import programs

PROGRAM = """
import subprocess, sys
import torch, torch_npu

def product(a, b):
    return a @ b

def on_the_cpu(x):
    return torch.linalg.eigvals(x)

a, b = torch.ones(8, 16).npu(), torch.ones(16, 4).npu()
for _ in range(3):
    c = product(a, b)
print("total:", c.sum().item())
on_the_cpu(torch.eye(3).npu())
big = torch.empty(4 << 20, device="npu")
del big
torch.npu.synchronize()
if len(sys.argv) == 1:
    subprocess.run([sys.executable, __file__, "child"], check=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a program that starts itself once more wrote out.json, and one alone out.html."""
    path = tmp_path_factory.mktemp("report")
    (path / "program.py").write_text(PROGRAM, encoding="utf-8")
    both = [
        programs.start("run", "--report", path / "out.json", path / "program.py"),
        programs.start("run", "--report", path / "out.html", path / "program.py", "alone"),
    ]
    for process in both:
        done = programs.finish(process)
        assert done.returncode == 0 and "gallium: wrote" in done.stderr, done
        assert done.stdout.startswith("total: 512.0\n"), "nothing of ours among the program's own output"
    return path


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    return data


def at(text: str, function: str = "<module>") -> str:
    """How the line of this text ends a frame."""
    return f"program.py:{PROGRAM.splitlines().index(text) + 1} {function}"


def test_it_says_what_it_is(found: dict[str, Any]) -> None:
    assert found["emulated"] is True and "does not say how long anything takes" in found["note"]
    assert found["chip"] == "Ascend910B2" and found["cann"] == "9.0.0"
    assert found["program"][0].endswith("program.py")


def test_operators(found: dict[str, Any]) -> None:
    operators = {operator["name"]: operator for operator in found["operators"]}
    product = operators["Matmul"]
    assert product["calls"] == 3
    assert product["operations"] == 3 * 2 * 8 * 16 * 4
    assert product["bytes"] == 3 * 4 * (8 * 16 + 16 * 4 + 8 * 4)
    assert product["shapes"] == [{"tensors": "float32[8, 16] float32[16, 4] float32[8, 4]", "calls": 3}]
    (place,) = product["places"]
    assert place["calls"] == 3
    assert place["stack"][0].endswith(at("    return a @ b", "product"))
    assert place["stack"][1].endswith(at("    c = product(a, b)"))
    assert operators["ReduceSum"]["calls"] == 1


def test_fallbacks(found: dict[str, Any]) -> None:
    (fallback,) = found["fallbacks"]
    assert fallback["what"] == "CPU fallback of aten::linalg_eig" and fallback["count"] == 1
    assert fallback["stack"][0].endswith(" on_the_cpu") and fallback["stack"][1].endswith(" <module>")


def test_copies(found: dict[str, Any]) -> None:
    here = at("a, b = torch.ones(8, 16).npu(), torch.ones(16, 4).npu()")
    (up,) = [copy for copy in found["copies"] if copy["stack"][0].endswith(here)]
    assert (up["what"], up["count"], up["bytes"]) == ("copy host to device", 2, 4 * (8 * 16 + 16 * 4))
    item = [copy for copy in found["copies"] if copy["what"] == "copy device to host" and copy["bytes"] == 4]
    assert len(item) == 1 and item[0]["count"] == 1


def test_waits(found: dict[str, Any]) -> None:
    waits = {(wait["what"], Path(stack).name): wait["count"] for wait in found["waits"] for stack in wait["stack"]}
    assert waits["wait for a stream", at('print("total:", c.sum().item())')] == 1
    assert waits["wait for a device", at("torch.npu.synchronize()")] == 1


def test_peak_memory(found: dict[str, Any]) -> None:
    (memory,) = found["peak_memory"]
    assert 16 << 20 <= memory["tensors"] < 17 << 20 <= memory["reserved"] < 24 << 20


def test_the_child_process_has_its_own_files(folder: Path) -> None:
    (child,) = [path for path in folder.glob("out.process*.json") if ".trace" not in path.name]
    data = json.loads(child.read_text(encoding="utf-8"))
    assert data["program"][1:] == ["child"]
    assert {operator["name"]: operator["calls"] for operator in data["operators"]}["Matmul"] == 3
    assert child.with_name(f"{child.stem}.trace.json").exists()


def test_trace(folder: Path) -> None:
    trace = json.loads((folder / "out.trace.json").read_text(encoding="utf-8"))
    assert trace["otherData"]["emulated"] == "times are not a chip's"
    products = [event for event in trace["traceEvents"] if event["name"] == "Matmul"]
    assert len(products) == 3 and all(event["ph"] == "X" and event["dur"] > 0 for event in products)
    times = [event["ts"] for event in trace["traceEvents"]]
    assert min(times) > 0
    assert any(event["name"] == "wait for a device" for event in trace["traceEvents"])


def test_page(folder: Path) -> None:
    page = (folder / "out.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "does not say how long anything takes" in page
    assert "<code>Matmul</code>" in page and "CPU fallback of aten::linalg_eig" in page
    assert "3.07 k" in page  # operations of the products
    assert "http" not in page, "the page needs nothing from elsewhere"
    assert not list(folder.glob("*.part"))


def test_the_report_of_ranks(tmp_path: Path) -> None:
    """Named by rank; the launcher, which never uses the NPU, writes none."""
    from gallium.vnpu.report.files import own_path

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GALLIUM_VNPU_REPORT_OWNER", "1")
        patch.setenv("RANK", "3")
        assert own_path(tmp_path / "out.json") == tmp_path / "out.rank3.json"
