"""arm64's kernels under QEMU: which level a processor gets, what it may execute, and the conformance of each level.

Everything is skipped where the cross compiler or QEMU is missing. `make test-arm` runs the suites whole; otherwise they
run in part. Nothing of this tells a speed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from tests.arm import machine
from tests.models.memory_checkpoint import weight

from gallium.backends.cpu import library
from gallium.backends.cpu.ops import CpuOps
from gallium.errors import UsageError
from gallium.ops.handles import FloatArray, Precision

WHOLE = os.environ.get("GALLIUM_TEST_ARM") == "whole"

pytestmark = pytest.mark.skipif(bool(machine.missing()), reason=machine.missing())


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    machine.build()


@pytest.fixture(params=machine.PROCESSORS)
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One of QEMU's processors, with its kernels in the place of this machine's."""
    started = machine.start(request.param)
    monkeypatch.setattr(library, "load", lambda: started)
    yield str(request.param)
    started.stop()


def test_a_processor_gets_its_best_level_and_is_refused_a_better_one(processor: str) -> None:
    best = machine.PROCESSORS[processor]
    levels = ("generic", *list(machine.PROCESSORS.values()))
    there = levels[: levels.index(best) + 1]
    assert library.level() == library.best_level() == best
    assert library.available_levels() == there
    for level in levels:
        if level in there:
            library.set_level(level)
            assert library.level() == level
        else:
            with pytest.raises(UsageError, match=f"'{level}' is not available here; choose from {', '.join(there)} "):
                library.set_level(level)


# What Armv8.0 lacks, by the mnemonics of the assembler.
NEWER = {
    "dotprod": ("sdot", "udot"),
    "i8mm": ("usdot", "sudot", "smmla", "ummla", "usmmla", "bfdot", "bfmmla", "bfmlalb", "bfmlalt", "bfcvt", "bfcvtn"),
}


def test_newer_instructions_are_only_in_the_files_of_their_level() -> None:
    """Every object of the build, disassembled: the rest must run on any arm64 processor."""
    found: dict[str, set[str]] = {}
    for path in sorted(machine.BUILD.rglob("*.o")):
        listing = subprocess.run(
            [f"{machine.TRIPLE}-objdump", "-d", "--no-show-raw-insn", str(path)],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        used = set(re.findall(r"^\s+[0-9a-f]+:\t(\S+)", listing, re.MULTILINE))
        for level, mnemonics in NEWER.items():
            if used & set(mnemonics):
                found.setdefault(level, set()).add(path.name)
        file_level = path.name.removesuffix(".cpp.o").rpartition("_")[2]
        if file_level in NEWER:
            weak = subprocess.run(
                [f"{machine.TRIPLE}-nm", "--defined-only", str(path)], capture_output=True, text=True, check=True
            ).stdout
            # A function that the linker shares between files could be taken from this one, for all levels.
            assert not re.findall(r" [WVu] (\S+)", weak), path.name
    assert found == {
        "dotprod": {"linear_dotprod.cpp.o", "integers_dotprod.cpp.o", "peak_dotprod.cpp.o"},
        "i8mm": {"linear_i8mm.cpp.o", "integers_i8mm.cpp.o", "peak_i8mm.cpp.o"},
    }


def normal(seed: int, *shape: int) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "int4"])
def test_levels_agree_in_every_bit_where_the_sums_are_integers(
    monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    """And in float32; only bfloat16 has an instruction of its own at level i8mm."""
    started = machine.start("max")
    monkeypatch.setattr(library, "load", lambda: started)
    ops = CpuOps(precision)
    w = ops.pack_linear([weight(normal(1, 40, 330))], [weight(normal(2, 40))])
    x = normal(3, 9, 330)
    results = {}
    for level in machine.PROCESSORS.values():
        library.set_level(level)
        results[level] = [ops.linear(x[:rows], w) for rows in (1, 2, 3, 5, 9)]
    started.stop()
    for level in ("dotprod", "i8mm"):
        for one, other in zip(results["neon"], results[level], strict=True):
            if precision == "bfloat16" and level == "i8mm":
                np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-4)
            else:
                np.testing.assert_array_equal(other, one)


def suite(processor: str, *arguments: str) -> str:
    """pytest in a process whose kernels are arm64's -> its last line. A failure shows all of its output."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.arm.plugin",
        "--arm-cpu",
        processor,
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run([*command, *arguments], cwd=machine.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(("processor_name", "level"), machine.PROCESSORS.items())
def test_conformance(processor_name: str, level: str) -> None:
    """The suite that every backend must pass, unchanged."""
    part = () if WHOLE else ("-k", "linear or gated_mlp or head_widths or norm or rope or combination or latent_over")
    last = suite(processor_name, "tests/conformance", "--backend", "cpu", "--level", level, *part)
    assert " passed" in last, last


@pytest.mark.parametrize(("processor_name", "level"), machine.PROCESSORS.items())
def test_a_result_depends_on_its_row_alone(processor_name: str, level: str) -> None:
    """The tests of products, packing and a checkpoint's own integers, at this level and those below."""
    part = () if WHOLE else ("-k", f"{level} and company and linear-17-33")
    names = ("products", "integers", "packing") if WHOLE else ("products",)
    files = [f"tests/backends/cpu/test_{name}.py" for name in names]
    last = suite(processor_name, *files, *part)
    assert " passed" in last, last
