"""The runtime under torch_npu: streams, events, graphs, compilers, refusals, chips; more in runtime_checks.py."""

from __future__ import annotations

import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch_npu
from tests.vnpu import programs
from tests.vnpu.support import called
from torch import Tensor

from gallium.vnpu import soc
from gallium.vnpu.library import core

runtime_checks = (programs.HERE / "runtime_checks.py").read_text(encoding="utf-8").split("@check\ndef ")[1:]
CHECKS = [text.split("(")[0] for text in runtime_checks]
MODES: dict[str, dict[str, str]] = {
    "plain": {},
    "expandable, task queue 1": {
        "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True",
        "TASK_QUEUE_ENABLE": "1",
    },
    "task queue 2": {"TASK_QUEUE_ENABLE": "2"},
}


@pytest.fixture(scope="module")
def outputs() -> dict[str, str]:
    """By mode: what runtime_checks.py printed. They run beside each other."""
    started = {
        mode: programs.start(
            "run", "--devices", 2, "--memory-gib", 0.5, programs.HERE / "runtime_checks.py", **variables
        )
        for mode, variables in MODES.items()
    }
    finished = {mode: programs.finish(process) for mode, process in started.items()}
    return {mode: done.stdout + done.stderr for mode, done in finished.items()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CHECKS)
def test_program(outputs: dict[str, str], name: str, mode: str) -> None:
    assert f"ok {name}\n" in outputs[mode], outputs[mode][-6000:]


@pytest.mark.parametrize("mode", MODES)
def test_the_task_queue_is_off_and_that_is_said(outputs: dict[str, str], mode: str) -> None:
    assert ("TASK_QUEUE_ENABLE is set to 0" in outputs[mode]) == ("task queue" in mode)


# ------------------------------------------------------------------------------------------------ streams and events


def test_streams_and_events() -> None:
    side = torch.npu.Stream()
    start, end = (torch.npu.Event(enable_timing=True) for _ in range(2))
    with torch.npu.stream(side):
        assert torch.npu.current_stream() == side
        start.record()
        x = torch.ones(200, 200, device="npu")
        y = x @ x
        end.record()
    torch.npu.current_stream().wait_stream(side)
    end.synchronize()
    assert side.query() and end.query() and y.sum().item() == 200**3
    assert 0 < start.elapsed_time(end) < 60_000
    assert end.elapsed_time(start) == -start.elapsed_time(end)


def test_time_between_events_needs_both() -> None:
    start, end = (torch.npu.Event(enable_timing=True) for _ in range(2))
    start.record()
    with pytest.raises(RuntimeError, match="Both events must be recorded"):
        start.elapsed_time(end)


def test_pinned_memory() -> None:
    assert torch.ones(4).pin_memory().is_pinned() and torch.empty(4, pin_memory=True).is_pinned()
    assert not torch.ones(4).is_pinned()


def test_default_device_inference_mode_and_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.device("npu"):
        layer = torch.nn.Linear(4, 2)
        assert layer(torch.randn(3, 4)).device.type == "npu"
        assert (torch.arange(5) + torch.zeros(5)).cpu().tolist() == [0, 1, 2, 3, 4]
    with torch.inference_mode():
        x = torch.ones(3, device="npu").add_(1)
        assert x.is_inference() and x.cpu().tolist() == [2, 2, 2]
    with called() as functions, FakeTensorMode():
        y = torch.nn.functional.softmax(torch.empty(3, 4, device="npu") @ torch.empty(4, 3, device="npu"), -1)
        assert y.shape == (3, 3) and y.device.type == "npu"
    assert not functions


# ------------------------------------------------------------------------------------------------------------- graphs


def captured(work: Callable[[Tensor], object]) -> tuple[torch.npu.NPUGraph, Tensor, object]:
    graph, x = torch.npu.NPUGraph(), torch.ones(4, device="npu")
    with torch.npu.graph(graph):
        result = work(x)
    return graph, x, result


def test_a_graph_sees_new_inputs() -> None:
    graph, x, y = captured(lambda x: (x * 3).sum())
    for value in (5.0, 7.0):
        x.fill_(value)
        graph.replay()
        assert y.item() == 12 * value


def test_a_graph_draws_new_random_numbers_and_repeats_with_the_seed() -> None:
    graph, _, y = captured(lambda x: torch.rand(8, device="npu") + torch.nn.functional.dropout(x).sum())
    drawn = []
    for seeded in (True, False, True):
        if seeded:
            torch.npu.manual_seed(3)
        graph.replay()
        drawn.append(y.cpu())
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.sum().item(),
        lambda x: (x + 1).cpu(),
        lambda x: x.nonzero(),
        lambda x: torch.npu.synchronize(),
        lambda x: x + torch.ones(4).npu(),
    ],
    ids=["item", "cpu", "nonzero", "synchronize", "copy of pageable memory"],
)
def test_the_host_cannot_wait_for_a_capture(work: Callable[[Tensor], object]) -> None:
    with pytest.raises(RuntimeError, match="107000"):
        captured(work)
    assert (torch.ones(2, device="npu") + 1).cpu().tolist() == [2, 2]  # and all is well afterwards


@pytest.mark.parametrize("explicit", [True, False])
def test_a_graph_takes_new_sequence_lengths(explicit: bool) -> None:
    torch.manual_seed(0)
    query = torch.randn(1, 4, 1, 16).half().npu()
    key, value = torch.randn(2, 1, 4, 32, 16).half().npu()

    def attend(length: int, **out: object) -> tuple[Tensor, Tensor]:
        function = torch_npu.npu_fused_infer_attention_score
        return (function.out if out else function)(
            query, key, value, num_heads=4, input_layout="BNSD", scale=0.25, actual_seq_lengths_kv=[length], **out
        )

    graph = torch.npu.NPUGraph()
    if explicit:
        out = [torch.empty_like(query), torch.empty(1, device="npu")]
        with torch.npu.graph(graph):
            stream = torch.npu.current_stream()
            torch.npu.graph_task_group_begin(stream)
            attend(3, workspace=torch.empty(0, device="npu"), out=out)
            handle = torch.npu.graph_task_group_end(stream)
    else:
        with torch.npu.graph(graph, auto_dispatch_capture=True):
            result, _ = attend(3)
    for length in (3, 20, 32):
        if explicit:
            side = torch.npu.Stream()
            torch.npu.graph_task_update_begin(side, handle)
            with torch.npu.stream(side):
                attend(length, workspace=torch.empty(0, device="npu"), out=out)
            torch.npu.graph_task_update_end(side)
        else:
            graph.update(cpu_update_input=[{"actual_seq_lengths_kv": [length]}])
        graph.replay()
        found = out[0] if explicit else result
        assert torch.equal(found, attend(length)[0])


def test_core_limits_are_kept() -> None:
    stream = torch.npu.Stream()
    torch.npu.set_stream_limit(stream, 12, 24)
    assert torch.npu.get_stream_limit(stream) == {"cube_core_num": 12, "vector_core_num": 24}
    torch.npu.reset_stream_limit(stream)
    assert torch.npu.get_stream_limit(stream) == {"cube_core_num": 24, "vector_core_num": 48}
    with pytest.raises(RuntimeError, match="a limit of 99 cores; the chip has 24"):
        torch.npu.set_stream_limit(stream, 99, 24)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_graphed_callables_train() -> None:
    model = torch.nn.Linear(4, 4).npu()
    x = torch.randn(2, 4, device="npu", requires_grad=True)
    model(x).square().sum().backward()
    expected = model.weight.grad.clone()
    model.weight.grad = None
    graphed = torch.npu.make_graphed_callables(model, (x,))
    model.weight.grad = None
    graphed(x).square().sum().backward()
    torch.testing.assert_close(model.weight.grad, expected)


# ---------------------------------------------------------------------------------------------- compilers and refusals


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "npugraphs", "npugraph_ex"])
def test_compile(backend: str) -> None:
    def work(x: Tensor) -> Tensor:
        return (x * 2).sin() + x.cumsum(0)

    compiled = torch.compile(work, backend=backend)
    for _ in range(3):
        x = torch.randn(8)
        torch.testing.assert_close(compiled(x.npu()).cpu(), work(x), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(("backend", "name"), [("inductor", "Triton-Ascend"), ("npu", "torchair")])
def test_compilers_for_the_chip_are_refused(backend: str, name: str) -> None:
    torch._dynamo.reset()
    with pytest.raises(Exception, match=f"{name}.*not emulated|not emulated.*{name}"):
        torch.compile(lambda x: x + 1, backend=backend)(torch.ones(3, device="npu"))


def test_inductor_still_compiles_for_the_cpu() -> None:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.compile(lambda x: x + 1, backend="inductor")(torch.ones(3)).tolist() == [2, 2, 2]


def test_triton_ascend_is_refused_where_it_is_installed(tmp_path: Path) -> None:
    package = tmp_path / "triton" / "backends" / "ascend"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").write_text("", encoding="utf-8")
    code = "import gallium.vnpu as v; v.install(); import triton.backends; import triton.backends.ascend"
    done = subprocess.run(
        [sys.executable, "-c", code], env=programs.environment(PYTHONPATH=str(tmp_path)), capture_output=True, text=True
    )
    assert "NotEmulated: Triton-Ascend is not emulated by the virtual NPU" in done.stderr, done.stderr


def test_kernels_given_as_binaries_are_refused() -> None:
    import ctypes

    library = core()
    library.aclGetRecentErrMsg.restype = ctypes.c_char_p
    assert library.aclrtBinaryLoadFromData() != 0
    assert b"AscendC, Triton-Ascend) are not emulated by the virtual NPU" in library.aclGetRecentErrMsg()


def test_a_program_can_tell_that_it_is_virtual() -> None:
    assert torch.npu.is_virtual() is True
    assert torch.npu.get_device_properties(0).virtual is True
    assert torch.npu.get_device_name(0) == "Ascend910B2"  # what torch_npu must see


# -------------------------------------------------------------------------------------------------- chips, interrupts


def test_every_chip_starts() -> None:
    done = subprocess.run(
        [sys.executable, programs.HERE / "chip_checks.py"], env=programs.environment(), capture_output=True, text=True
    )
    lines = {line.split()[0]: line.split(maxsplit=4)[1:] for line in done.stdout.splitlines() if "Ascend" in line}
    assert list(lines) == list(soc.table()), done.stdout + done.stderr
    for name, (number, product, memory, bfloat16) in lines.items():
        chip = soc.find(name)
        assert (float(product), int(memory)) == (18, chip.memory), name
        assert chip.bfloat16 == (int(number) >= 220), name
        assert bfloat16 == "6.0" if chip.bfloat16 else f"{name} has no bfloat16" in bfloat16, (name, bfloat16)
    assert not soc.find("Ascend310P3").bfloat16 and not soc.find("Ascend910A").bfloat16


def test_an_interrupt_ends_a_loop(tmp_path: Path) -> None:
    script = tmp_path / "loop.py"
    script.write_text(
        "import torch, torch_npu\n"
        "x = torch.ones(64, 64, requires_grad=True, device='npu')\n"
        "print('looping', flush=True)\n"
        "while True: (x @ x).clamp(0, 1).sum().backward()\n",
        encoding="utf-8",
    )
    process = programs.start("run", script)
    assert process.stdout is not None and process.stdout.readline() == "looping\n"
    process.send_signal(signal.SIGINT)
    done = programs.finish(process, 30)
    assert "KeyboardInterrupt" in done.stderr and done.returncode == -signal.SIGINT, done
