"""Makes each peer's environment, below a folder that git ignores."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.contest.cells import WORKLOADS, Group
from benchmarks.contest.models import facts_of, kv_bytes
from benchmarks.contest.peers import LLAMA_SERVER, ROOT, Peer
from benchmarks.contest.process import Process, Refused

LIST_REQUIREMENTS = """
import sys
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement
for line in requires(sys.argv[1]):
    one = Requirement(line)
    if one.name not in sys.argv[2:] and (one.marker is None or one.marker.evaluate({"extra": ""})):
        print(f"{one.name}[{','.join(one.extras)}]{one.specifier}" if one.extras else f"{one.name}{one.specifier}")
"""
AVX512 = (
    "-DGGML_NATIVE=OFF -DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON "
    "-DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON"
)

SERVER = (
    "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF", "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF", "-DLLAMA_OPENSSL=OFF",
)  # fmt: skip


def install(peer: Peer) -> None:
    """The environment, and llama.cpp's server. Raises Refused with the last line of what pip or CMake said."""
    if not peer.installed:
        _install(peer)
    if peer.name == "llama.cpp" and not LLAMA_SERVER.exists():
        _build_server(peer)


def _install(peer: Peer) -> None:
    print(f"installing {peer.name} into {ROOT / peer.name} ...", flush=True)
    shutil.rmtree(ROOT / peer.name, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(ROOT / peer.name)])
    for step in peer.steps:
        _pip(peer, list(step), peer.build)
        if peer.without:
            _without(peer, step)
    note = "as pip builds it"
    if peer.name == "llama.cpp":
        note = _working_build(peer)
    (ROOT / peer.name / ".installed").write_text(note, encoding="utf-8")


def _without(peer: Peer, step: tuple[str, ...]) -> None:
    """After a `--no-deps` step: what the package needs, except for what breaks or is not needed to run a model."""
    if "--no-deps" not in step:
        return
    package = step[-1].partition("==")[0]
    listed = _run([str(peer.python), "-c", LIST_REQUIREMENTS, package, *peer.without])
    _pip(peer, listed.split("\n"), {})


def _working_build(peer: Peer) -> str:
    """llama.cpp built for this CPU crashes in its AMX code with some compilers: then without AMX, by name."""
    if _runs(peer):
        return "built with GGML_NATIVE"
    step = [*peer.steps[0], "--force-reinstall", "--no-deps", "--no-cache-dir"]
    _pip(peer, step, peer.build | {"CMAKE_ARGS": AVX512})
    if not _runs(peer):
        raise Refused("llama.cpp crashes both with GGML_NATIVE and with AVX-512 alone")
    return "built for AVX-512 VNNI: with GGML_NATIVE it crashes"


def _build_server(peer: Peer) -> None:
    """llama.cpp's own server, of the sources that llama-cpp-python was built from and with the same kernels."""
    print(f"building {LLAMA_SERVER} ...", flush=True)
    native = "GGML_NATIVE" in (ROOT / peer.name / ".installed").read_text(encoding="utf-8").partition(":")[0]
    kernels = "-DGGML_NATIVE=ON" if native else AVX512
    _pip(peer, ["cmake", "ninja"], {})
    programs = peer.python.parent
    with TemporaryDirectory(dir=ROOT) as place:
        wanted = peer.steps[0][0].replace("[server]", "")
        _run([str(peer.python), "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
              "--no-binary", ":all:", "--dest", place, wanted])  # fmt: skip
        (archive,) = Path(place).glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(place, filter="data")
        (sources,) = Path(place).glob("*/vendor/llama.cpp")
        build = Path(place) / "build"
        environment = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
        _run([str(programs / "cmake"), "-S", str(sources), "-B", str(build), "-G", "Ninja", *SERVER, *kernels.split()],
             environment)  # fmt: skip
        _run([str(programs / "cmake"), "--build", str(build), "--target", "llama-server"], environment)
        shutil.copy2(build / "bin" / "llama-server", LLAMA_SERVER)


def _runs(peer: Peer) -> bool:
    """Whether a small model computes a prompt, long enough for the matrix code."""
    workload = WORKLOADS["W2"]
    group = Group(workload, "int4")
    process = Process(peer.python, peer.driver, ROOT / "logs" / f"probe-{peer.name}.log")
    try:
        process.load({
            "model": str(peer.model(workload, group.precision, ROOT / "models")), "precision": group.precision,
            "threads": os.cpu_count() or 1, "max_context": 256, "max_batch": 1,
            "kv_bytes": kv_bytes(facts_of(workload, ROOT / "models")),
        })  # fmt: skip
        process.ask("prefill", tokens=128)
    except Refused:
        return False
    finally:
        process.close()
    return True


def _pip(peer: Peer, arguments: list[str], environment: dict[str, str]) -> None:
    command = [str(peer.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*command, *(a for a in arguments if a)], environment)


def _run(command: list[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | (environment or {}), check=False
    )  # fmt: skip
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise Refused(f"{Path(command[0]).name} failed: {(errors or ['no reason given'])[-1][:200]}")
    return done.stdout
