"""Loads the emulated CANN into the process, before torch and torch_npu come, and connects it to the operator bodies."""

from __future__ import annotations

import ctypes
import inspect
import os
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from gallium.vnpu import compilers, labels, signatures, soc
from gallium.vnpu.library import core, core_with_lock, libraries
from gallium.vnpu.options import OptionError, Options
from gallium.vnpu.refusals import describe

CANN_VERSION = "9.0.0"
# A real CANN elsewhere would be preferred by torch_npu, or demanded.
FOREIGN_CANN = ("ASCEND_HOME_PATH", "ASCEND_OPP_PATH", "ASCEND_CUSTOM_OPP_PATH")

_kept: list[Any] = []  # libraries and callables that C holds on to
_wrappers: list[Callable[[str, Callable[..., None]], Callable[..., None]]] = []
_lock = threading.Lock()
_ready = False


def installed() -> bool:
    """Whether this process has the virtual NPU."""
    return bool(_kept)


def install(options: Options | None = None) -> None:
    """Give this process the virtual NPU. Must come before `import torch`; a second call does nothing.

    Raises OptionError for a bad option, RuntimeError if it is too late, if a real NPU is there, or if this system is
    not supported.
    """
    if installed():
        return
    options = options or Options.from_environment()
    chip = soc.find(options.soc)
    _check_system()
    _set_environment(options)
    library = _load()
    soc.choose(chip)
    _configure(library, chip, options)
    _set_signatures(library)
    _set_hooks(library)
    labels.attach()
    compilers.attach()


def wrap_bodies(wrapper: Callable[[str, Callable[..., None]], Callable[..., None]]) -> None:
    """Have `wrapper(name, body)` called for every operator; what it returns runs instead. Before the first operator."""
    _wrappers.append(wrapper)


def _check_system() -> None:
    if "torch_npu" in sys.modules:
        raise RuntimeError(
            "torch_npu is loaded already: call gallium.vnpu.install() before importing torch, or start the program "
            "with `gallium npu run`."
        )
    if sys.platform != "linux":
        raise RuntimeError("the virtual NPU needs Linux, because torch_npu does.")
    if list(Path("/dev").glob("davinci[0-9]*")) and os.environ.get("GALLIUM_VNPU_BESIDE_NPU") != "1":
        raise RuntimeError(
            "this machine has a real NPU (/dev/davinci*): run the program without the virtual one, or set "
            "GALLIUM_VNPU_BESIDE_NPU=1 to emulate all the same."
        )


def _set_environment(options: Options) -> None:
    for name in FOREIGN_CANN:
        if os.environ.pop(name, None) is not None:
            _say(f"{name} is ignored: the virtual NPU is its own CANN")
    # torch_npu's own task queue would wait for operators that wait for the interpreter: see docs/virtual-npu.md.
    if os.environ.get("TASK_QUEUE_ENABLE", "0") != "0":
        _say("TASK_QUEUE_ENABLE is set to 0: operators run in order, in the calling thread")
    os.environ["TASK_QUEUE_ENABLE"] = "0"
    if options.strict:
        os.environ["TORCH_NPU_FALLBACK_CPU_DISABLE"] = "1"


def _say(text: str) -> None:
    print(f"gallium: {text}.", file=sys.stderr)


def _load() -> ctypes.CDLL:
    library = core()
    for path in sorted(libraries().glob("*.so")):
        _kept.append(ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL))
    return library


def _configure(library: ctypes.CDLL, chip: soc.Soc, options: Options) -> None:
    memory = chip.memory if options.memory_gib is None else int(options.memory_gib * (1 << 30))
    library.ga_vnpu_configure(
        chip.name.encode(),
        CANN_VERSION.encode(),
        _visible_devices(options.devices),
        ctypes.c_int64(memory),
        ctypes.c_int64(chip.cube_cores),
        ctypes.c_int64(chip.vector_cores),
        ctypes.c_int64(chip.l2_bytes),
        ctypes.c_int64(8),
        int(chip.bfloat16),
        int(chip.family not in ("910", "310P")),
    )


def _visible_devices(devices: int) -> int:
    """How many devices are left by ASCEND_RT_VISIBLE_DEVICES ("0,2": two), which CANN's runtime reads."""
    text = os.environ.get("ASCEND_RT_VISIBLE_DEVICES", "").strip()
    if not text:
        return devices
    try:
        chosen = [int(part) for part in text.split(",")]
    except ValueError:
        raise OptionError(f"ASCEND_RT_VISIBLE_DEVICES={text!r}: it is a list of numbers, such as 0,1.") from None
    if any(not 0 <= device < devices for device in chosen) or len(set(chosen)) != len(chosen):
        raise OptionError(f"ASCEND_RT_VISIBLE_DEVICES={text!r}: the virtual machine has devices 0 to {devices - 1}.")
    return len(chosen)


@cache
def function_indices() -> dict[str, int]:
    """Every function that has a stub, with its index."""
    library = core()
    library.ga_vnpu_function_name.restype = ctypes.c_char_p
    return {library.ga_vnpu_function_name(i).decode(): i for i in range(library.ga_vnpu_function_count())}


def call_counts() -> dict[str, int]:
    """How often each function was called in this process, by name."""
    library = core()
    library.ga_vnpu_call_counts.restype = ctypes.POINTER(ctypes.c_uint64)
    counts = library.ga_vnpu_call_counts()
    return {name: counts[index] for name, index in function_indices().items()}


def _set_signatures(library: ctypes.CDLL) -> None:
    indices = function_indices()
    for name, signature in signatures.table().items():
        if name in indices and library.ga_vnpu_set_signature(indices[name], signature.kinds.encode()) != 0:
            raise RuntimeError(f"the signature of {name} has an unknown letter: {signature.kinds}")


def _set_hooks(library: ctypes.CDLL) -> None:
    hooks = (_on_failure, _make_dynamic, _make_tensor, _prepare)
    _kept.extend(hooks)
    python = core_with_lock()
    python.ga_vnpu_set_hooks.argtypes = [ctypes.py_object] * 4
    python.ga_vnpu_set_hooks.restype = None
    python.ga_vnpu_set_hooks(*hooks)


def _on_failure(name: str, error: BaseException, trace: TracebackType | None) -> int:
    status, text = describe(name, error, trace)
    core().ga_vnpu_set_error(text.encode())
    return status


def _make_tensor(*description: Any) -> Any:
    from gallium.vnpu import tensors

    return tensors.make(*description)


def _make_dynamic(address: int, room: Any) -> Any:
    from gallium.vnpu import tensors

    return tensors.DynamicOutput(address, room)


def _prepare() -> None:
    """Build what needs torch. Called at the first operator, perhaps by several threads: the others wait."""
    global _ready
    with _lock:
        if _ready:
            return
        import torch

        from gallium.vnpu import ops
        from gallium.vnpu.registry import operators

        ops.load()
        _set_shield(torch)
        indices = function_indices()
        for name, operator in operators().items():
            _set_body(name, indices.get(name), _wrapped(name, _checked(operator)))
            for position in _dynamic_positions(operator):
                core().ga_vnpu_set_dynamic(indices[name], position)
        _ready = True


def _set_shield(torch: Any) -> None:
    guard = torch._C.DisableTorchFunction

    def shielded(body: Callable[..., None], args: tuple[Any, ...]) -> None:
        with guard():
            body(*args)

    depth = torch._C._len_torch_function_stack
    _kept.extend((shielded, depth))
    python = core_with_lock()
    python.ga_vnpu_set_shield.argtypes = [ctypes.py_object] * 2
    python.ga_vnpu_set_shield.restype = None
    python.ga_vnpu_set_shield(depth, shielded)


def _set_body(name: str, index: int | None, body: Callable[..., None]) -> None:
    _kept.append(body)
    python = core_with_lock()
    if index is not None:
        python.ga_vnpu_set_body(index, ctypes.py_object(body))
    else:
        python.ga_vnpu_set_named_body(name.encode(), ctypes.py_object(body))


def _wrapped(name: str, body: Callable[..., None]) -> Callable[..., None]:
    for wrapper in _wrappers:
        body = wrapper(name, body)
    return body


def _dynamic_positions(operator: Any) -> list[int]:
    names = list(inspect.signature(operator.body).parameters) if operator.dynamic else []
    return [names.index(name) for name in operator.dynamic]


def _checked(operator: Any) -> Callable[..., None]:
    """The body, with the limits of the matrix unit if it runs there."""
    body: Callable[..., None] = operator.body
    if not operator.cube:
        return body
    from gallium.vnpu.cube import check_cube

    def on_cube(*args: Any) -> None:
        check_cube(args)
        body(*args)

    return on_cube
