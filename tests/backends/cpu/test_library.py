"""The native library: levels, threads, and what is said when it cannot be used."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from tests.models.memory_checkpoint import weight

from gallium.backends.cpu import backend, library
from gallium.backends.cpu.ops import CpuOps
from gallium.errors import UsageError
from gallium.ops.backend import Probe
from gallium.ops.handles import AttentionSpec, ModelFacts, MoeSpec, RopeSpec

GQA = AttentionSpec("gqa", 4, 2, 16, 16, 0.25, RopeSpec(8, 1e4, True))


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


def test_an_emulated_level_is_never_the_best() -> None:
    assert not library.is_emulated(library.best_level())
    done = run("from gallium.backends.cpu import library; print(library.is_emulated(library.level()))")
    assert done.stdout.strip() == "False"


EMULATED = [name for name in library.available_levels() if library.is_emulated(name)]


@pytest.mark.parametrize("name", library.available_levels())
def test_a_level_is_forced_by_the_environment(name: str) -> None:
    done = run("from gallium.backends.cpu import library; print(library.level())", GALLIUM_CPU_LEVEL=name)
    assert done.stdout.strip() == name


@pytest.mark.skipif(not EMULATED, reason="needs AVX-512, or the build of `make test-levels`")
@pytest.mark.parametrize("name", EMULATED)
def test_an_emulated_level_is_called_so(name: str) -> None:
    code = (
        "from gallium.backends.cpu import backend\nfrom gallium.ops.backend import choose, installed\n"
        "print(backend.probe().emulated, choose('cpu', installed()).name)\nchoose('auto', installed())"
    )
    done = run(code, GALLIUM_CPU_LEVEL=name)
    assert done.stdout.split() == ["True", "cpu"]
    assert "must be named: --backend cpu" in done.stderr
    before = library.level()
    library.set_level(name)
    facts = {fact.name: fact.value for fact in backend.describe()}
    library.set_level(before)
    words, available = facts["instruction level"].split("(available: ")
    assert words.startswith(f"{name}: EMULATED") and name not in available
    tiles = name.startswith("amx")
    assert facts["products"].startswith("int8 as W8A16, int4 as W4A16" if tiles else "int8 as W8A8, int4 as W4A8")


def test_a_level_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(UsageError, match="'avx1024' is not available here; choose from generic"):
        library.set_level("avx1024")
    done = run("from gallium import LLM; LLM()", GALLIUM_CPU_LEVEL="avx1024")
    assert "avx1024" in done.stderr


@pytest.mark.parametrize("count", [0, 257, -1])
def test_impossible_thread_counts(count: int) -> None:
    with pytest.raises(UsageError, match="from 1 to 256"):
        library.set_threads(count)


@pytest.mark.parametrize("text", ["0", "many", "-2", "999"])
def test_impossible_thread_counts_in_the_environment(text: str) -> None:
    done = run("from gallium.backends.cpu import library; library.load()", GALLIUM_THREADS=text)
    assert "GALLIUM_THREADS must be a number" in done.stderr


def test_threads_come_from_the_environment() -> None:
    done = run("from gallium.backends.cpu import library; print(library.threads())", GALLIUM_THREADS="3")
    assert done.stdout.strip() == "3"


def test_threads_are_pinned_where_the_environment_says_so() -> None:
    code = (
        "from pathlib import Path\nfrom gallium.backends.cpu import backend, library\nlibrary.set_threads(2)\n"
        "library.load().ga_threads()\nfor t in Path('/proc/self/task').iterdir():\n"
        "    print(t.joinpath('status').read_text().split('Cpus_allowed_list:')[1].split()[0])\n"
        "print(dict(backend.describe())['threads'])"
    )
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    allowed = run(code, GALLIUM_PIN="off", OPENBLAS_NUM_THREADS="1").stdout.split()
    assert str(cpus[1]) not in allowed and allowed[-1] == "2"
    done = run(code, GALLIUM_PIN="on", OPENBLAS_NUM_THREADS="1").stdout
    assert str(cpus[1]) in done.splitlines()[:-1] and f"pinned to CPUs {cpus[1]}" in done
    assert "GALLIUM_PIN must be one of auto, on, off" in run(code, GALLIUM_PIN="maybe").stderr


def test_a_missing_library_makes_the_backend_unavailable_with_a_reason() -> None:
    code = "from gallium.backends.cpu import backend, library\nlibrary.FILE_NAME = 'absent.so'\nprint(backend.probe())"
    done = run(code, GALLIUM_CPU_LIBRARY="")
    assert "available=False" in done.stdout and "reinstall Gallium" in done.stdout


def test_a_library_that_is_asked_for_must_be_there(tmp_path: Path) -> None:
    code = "from gallium.backends.cpu import backend\nprint(backend.probe())"
    done = run(code, GALLIUM_CPU_LIBRARY=str(tmp_path / "other.so"))
    assert "available=False" in done.stdout and "other.so (GALLIUM_CPU_LIBRARY)" in done.stdout


def test_a_damaged_library_is_no_crash(tmp_path: Path) -> None:
    broken = tmp_path / library.FILE_NAME
    broken.write_bytes(b"\x7fELF" + b"\0" * 100)
    code = (
        "from pathlib import Path\nfrom gallium.backends.cpu import backend, library\n"
        f"library.find = lambda: Path({str(broken)!r})\nprint(backend.probe())"
    )
    done = run(code)
    assert "available=False" in done.stdout and "do not load" in done.stdout


def test_probe_and_support() -> None:
    assert backend.probe() == Probe(True, False, 1)
    rows = backend.support(ModelFacts("glm", 1, 64, 100, GQA), "int4")
    assert {row.status for row in rows} == {"verified"}
    assert next(row for row in rows if row.op == "gqa").reason.startswith("native kernel")
    assert next(row for row in rows if row.op == "mla").reason == "composed of core ops"
    many = MoeSpec(5000, 8, "sigmoid", True, 1.0)
    refused = [
        r for r in backend.support(ModelFacts("glm4_moe", 1, 64, 100, GQA, many), "int4") if r.status == "unsupported"
    ]
    assert [row.op for row in refused] == ["route"] and "4096" in refused[0].reason


def test_the_machine_is_described_and_measured() -> None:
    facts = dict(backend.describe())
    assert facts["instruction level"].startswith(library.level())
    limits = backend.measure()
    assert limits.read_bytes_per_s > 1e8
    assert all(rate > 1e8 for rate in limits.operations_per_s.values())


def test_kernels_run_in_a_forked_child() -> None:
    code = """
import os, sys, numpy as np
from gallium.backends.cpu.ops import CpuOps
from gallium.backends.cpu import library
from tests.models.memory_checkpoint import weight
library.set_threads(2)
ops = CpuOps("float32")
w = ops.pack_linear([weight(np.ones((640, 64)))])
x = np.ones((40, 64), np.float32)
ops.linear(x, w)
child = os.fork()
if child == 0:
    os._exit(0 if (ops.linear(x, w) == 64).all() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run(code).returncode == 0


def test_several_python_threads_may_call_at_once() -> None:
    ops = CpuOps("float32")
    w = ops.pack_linear([weight(np.random.default_rng(0).standard_normal((320, 64)))])
    inputs = [np.random.default_rng(i).standard_normal((9, 64)).astype(np.float32) for i in range(4)]
    expected = [ops.linear(x, w) for x in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(200):
            if not np.array_equal(ops.linear(inputs[i], w), expected[i]):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_philox_is_that_of_the_reference() -> None:
    from gallium.ops.philox import philox4x32

    counter, key, words = np.array([1, 2, 3, 4], np.uint32), np.array([5, 6], np.uint32), np.empty(4, np.uint32)
    pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (counter, key, words)]
    library.load().ga_philox(*pointers)
    np.testing.assert_array_equal(words, philox4x32(counter[None], (5, 6))[0])
