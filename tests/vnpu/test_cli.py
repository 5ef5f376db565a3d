"""`gallium npu`: run, shell, doctor, ops, and the pytest plugin."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.vnpu import programs

from gallium.cli.npu import npu
from gallium.vnpu import soc

PROGRAM = """
import multiprocessing, os, subprocess, sys
import torch

print("arguments:", *sys.argv[1:])
memory = torch.npu.get_device_properties(0).total_memory
print("device:", torch.npu.device_count(), torch.npu.get_device_name(0), memory)
try:
    torch.linalg.eigvals(torch.eye(3).npu())
    print("fallback: taken")
except RuntimeError as error:
    print("fallback: refused")
if "child" not in sys.argv:
    sys.stdout.flush()
    subprocess.run([sys.executable, __file__, "child"], check=True)
    sys.exit(7)
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "program.py"
    path.write_text(PROGRAM, encoding="utf-8")
    return path


def test_run(program: Path) -> None:
    """Options, arguments, the exit code, a child process that inherits it all, one banner."""
    options = ("--soc", "Ascend910B3", "--devices", 3, "--memory-gib", 2, "--strict")
    done = programs.finish(
        programs.start("run", *options, program, "--epochs", 1, ASCEND_HOME_PATH="/usr/local/Ascend")
    )
    device = f"device: 3 Ascend910B3 {2 << 30}"
    assert done.stdout.splitlines() == [
        "arguments: --epochs 1", device, "fallback: refused", "arguments: child", device, "fallback: refused",
    ], done.stdout + done.stderr  # fmt: skip
    assert done.returncode == 7
    banner = "gallium: virtual Ascend910B3 x 3, CANN 9.0.0 emulated on this CPU. It cannot tell speed"
    assert done.stderr.count(banner) == 1
    assert "ASCEND_HOME_PATH is ignored" in done.stderr


def test_run_a_module_and_visible_devices() -> None:
    code = "import torch; print('count:', torch.npu.device_count())"
    module = ("-m", "timeit", "-n", 1, "-r", 1, code)
    done = programs.run("run", "--devices", 4, *module, ASCEND_RT_VISIBLE_DEVICES="0,2")
    assert "count: 2" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--soc", "Ascend910C", "x.py"), "Ascend910_9391"),
        (("--soc", "H100", "x.py"), "unknown chip 'H100'; known: Ascend910PremiumA"),
        (("--devices", "0", "x.py"), "--devices"),
        (("--devices", "65", "x.py"), "--devices"),
        (("--memory-gib", "0", "x.py"), "--memory-gib"),
        (("nothing.py",), "there is no script 'nothing.py'"),
        (("--report", "out.pdf", __file__), ".html or .json"),
        ((), "TARGET"),
        (("--sock", "Ascend910B2", "x.py"), "--soc"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_run_with_bad_options(arguments: tuple[str, ...], says: str) -> None:
    done = programs.finish(programs.start("run", *arguments))
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr, done


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"GALLIUM_VNPU": "yes"}, "GALLIUM_VNPU='yes': it is 1 or 0"),
        (
            {"GALLIUM_VNPU": "1", "GALLIUM_VNPU_DEVICES": "many"},
            "GALLIUM_VNPU_DEVICES='many': it is a number from 1 to 64",
        ),
        ({"GALLIUM_VNPU": "1", "GALLIUM_VNPU_SOC": "Ascend1"}, "unknown chip 'Ascend1'"),
        ({"GALLIUM_VNPU": "1", "ASCEND_RT_VISIBLE_DEVICES": "1"}, "the virtual machine has devices 0 to 0"),
    ],
    ids=["switch", "devices", "chip", "visible devices"],
)
def test_a_process_with_bad_variables_ends(variables: dict[str, str], says: str) -> None:
    """A program that asked for the virtual NPU never goes on without it."""
    done = subprocess.run(
        [sys.executable, "-c", "print('went on')"],
        env=programs.environment(**variables),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and says in done.stderr and not done.stdout, done


def test_a_process_that_did_not_ask_has_none() -> None:
    code = "import sys; print('gallium.vnpu.loader' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=programs.environment(), capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_shell() -> None:
    process = programs.start(
        "shell", "--soc", "Ascend310P3", stdin="print('on', (torch.ones(2).npu() + 1).cpu().tolist())\n"
    )
    done = programs.finish(process)
    assert "on [2.0, 2.0]" in done.stdout and "virtual Ascend310P3 x 1" in done.stderr, done


def here(*arguments: str) -> str:
    """What `gallium npu ...` prints, in this process."""
    done = CliRunner().invoke(npu, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_doctor() -> None:
    text = here("doctor")
    found = json.loads(programs.run("doctor", "--json").stdout)
    assert found["problem"] is None and found["torch_npu"] == "2.13.0" and found["cann"] == "9.0.0 (emulated)"
    assert found["emulated_functions"] >= 600 and found["exported_functions"] >= 904
    assert [row[0] for row in found["chips"]] == list(soc.table())
    assert all(name in text for name in soc.table())
    assert "nothing has been compared with a real NPU" in text


def test_ops() -> None:
    rows = {row["name"]: row for row in json.loads(here("ops", "--json"))}
    assert rows["Matmul"]["status"] == "emulated" and "matrix unit" in rows["Matmul"]["limits"]
    assert {row["status"] for row in rows.values()} <= {"emulated", "missing", "unknown signature"}
    missing = here("ops", "--missing", "silu", "matmul")
    assert "SiluBackward" not in missing
    table = here("ops", "silu")
    assert "SiluBackward" in table and "Matmul" not in table
    linked = [row for row in rows.values() if row["link"]]
    assert linked and all(row["link"].startswith("https://") for row in linked)


def test_pytest_plugin(tmp_path: Path) -> None:
    test = tmp_path / "test_it.py"
    test.write_text(
        "import torch\ndef test_it():\n    assert torch.ones(3).npu().sum().item() == 3\n", encoding="utf-8"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "gallium.vnpu.pytest", "-p", "no:cacheprovider", test],
        env=programs.environment(GALLIUM_VNPU_SOC="Ascend910B4"), cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "1 passed" in done.stdout and "virtual Ascend910B4 x 1" in done.stdout, done
