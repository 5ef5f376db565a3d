"""One process of the fuzzer: makes the calls of a range of numbers; says each on standard output before it makes it."""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import tempfile
import warnings
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from gallium import vnpu

MEMORY = 12 << 30  # address space beyond what is there at the start: absurd sizes fail, and the machine lives
SKIPPED = ("hcom", "comm", "all_gather", "reduce_scatter", "all_reduce", "all_to_all", "alltoall", "distribute", "ipc",
           "sleep", "storage", "stream", "window")  # fmt: skip


def main() -> int:
    os.environ["TORCH_NPU_FALLBACK_CPU_DISABLE"] = "1"
    os.environ["GALLIUM_VNPU_MEMORY_GIB"] = "2"
    vnpu.install()  # before torch comes
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.chdir(tempfile.mkdtemp(prefix="npu-fuzz-"))  # some operators save tensors in the folder where they run
    fuzzer = Fuzzer(seed=int(sys.argv[1]))
    _limit_memory()
    guards = [torch.full((size,), 7.0).npu() for size in (1, 100, 1000)]
    for number in range(int(sys.argv[2]), int(sys.argv[3])):
        print(f"CALL {number} ", end="", flush=True)
        outcome, text = fuzzer.call(number)
        if any(bool((guard.cpu() != 7).any()) for guard in guards):
            outcome, text = "damage", "memory that is not the call's has changed"
            guards = [torch.full_like(guard, 7.0) for guard in guards]
        print("DONE " + json.dumps([outcome, text[-300:]]), flush=True)
    return 0


def _limit_memory() -> None:
    now = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))


# Arguments that end the process inside torch_npu itself, before CANN is called; they stay as they are.
TORCH_NPU_DIES = {
    "nn.functional.conv": {"groups"},  # cut to 32 bits, and divided by (op-plugin, ConvolutionKernelNpuOpApi.cpp)
}
# Results of these are as large as what they read, so that no device holds them.
WRITES_AS_MUCH = (
    "sin", "exp", "sqrt", "sigmoid", "relu", "add", "mul", "sub", "where", "cumsum", "sort", "softmax", "cat", "flip",
)  # fmt: skip


class Fuzzer:
    """Makes call number n of a seed: always the same one."""

    def __init__(self, seed: int) -> None:
        import torch
        import torch_npu
        from tools.npu_coverage.judge import entries
        from tools.npu_coverage.page import names_that_match
        from tools.npu_fuzz.templates import TEMPLATES

        torch.ones(1).npu().add(1)
        self.seed = seed
        database = entries()
        self.entries = [(name, database[name]) for name in names_that_match() if name in database]
        self.templates = [(getattr(torch_npu, name), make) for name, make in TEMPLATES.items()]
        self.schemas = [
            schema
            for schema in sorted(torch._C._jit_get_all_schemas(), key=str)
            if schema.name.startswith("npu::") and not any(word in schema.name for word in SKIPPED)
        ]

    def call(self, number: int) -> tuple[str, str]:
        """Make it. The outcome is done, refused (with a sentence), or silent (an error that says nothing)."""
        import torch
        from tools.npu_fuzz.arguments import HUGE, MANY

        rng = random.Random(f"{self.seed}:{number}")
        torch.manual_seed(number)
        title, function, places, names = self._chosen(rng)
        many = HUGE if title in WRITES_AS_MUCH else MANY
        try:
            function(*_on_device(places, rng, many), **_on_device(names, rng, many))
            torch.npu.synchronize()
        except Exception as error:
            text = " ".join(str(error).split())
            return ("refused" if text else "silent"), f"{type(error).__name__}: {text}"
        return "done", ""

    def _chosen(self, rng: random.Random) -> tuple[Any, Any, Any]:
        """A function and its arguments on the CPU; what they are is printed."""
        import torch
        from tools.npu_fuzz.arguments import by_schema, changed

        kind = rng.random()
        if kind < 0.15:
            schema = rng.choice(self.schemas)
            packet = getattr(torch.ops.npu, schema.name.removeprefix("npu::"))
            function: Any = getattr(packet, schema.overload_name or "default")
            places, names = by_schema(schema, rng)
            title = schema.name
        else:
            if kind < 0.4:
                function, make = rng.choice(self.templates)
                places, names = make()
                title = function.__name__
            else:
                title, function = rng.choice(self.entries)
                sample = rng.choice(_samples(title))
                places, names = (sample.input, *sample.args), dict(sample.kwargs)
            places = list(places)
            for _ in range(rng.choice((0, 1, 1, 2, 3))):
                kept = next((names for start, names in TORCH_NPU_DIES.items() if title.startswith(start)), set())
                where: Any = rng.choice([*range(len(places)), *(name for name in names if name not in kept)])
                (names if isinstance(where, str) else places)[where] = changed(
                    names[where] if isinstance(where, str) else places[where], rng
                )
        print(f"{title} {_shown((places, names))}", flush=True)
        return title, function, places, names


@cache
def _samples(name: str) -> list[Any]:
    """Some samples of an entry of PyTorch's database."""
    import torch
    from tools.npu_coverage.judge import entries, nearest

    op = entries()[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(islice(op.sample_inputs("cpu", nearest(op, torch.float32)), 40))


def _on_device(tree: Any, rng: random.Random, many: int) -> Any:
    import torch
    from tools.npu_fuzz.arguments import strided
    from torch.utils._pytree import tree_map

    def there(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return strided(x.detach().npu(), rng, many) if rng.random() < 0.2 else x.detach().npu()
        return torch.device("npu") if isinstance(x, torch.device) or (isinstance(x, str) and x == "cpu") else x

    return tree_map(there, tree)


def _shown(tree: Any) -> str:
    import torch
    from torch.utils._pytree import tree_map

    short = tree_map(lambda x: f"{x.dtype}{list(x.shape)}" if isinstance(x, torch.Tensor) else x, tree)
    return " ".join(str(short).split())[:400]


if __name__ == "__main__":
    sys.exit(main())
