"""The older interface of single operators: what 910B reaches through it, and how calls are bound to bodies.

What only 910A and 310P reach is checked in a process for each of them.
"""

from __future__ import annotations

import copy
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch_npu
from torch import Tensor, nn

from gallium.vnpu.aclop import bound, call_counts
from gallium.vnpu.library import core, core_with_lock
from gallium.vnpu.tensors import DynamicOutput

HERE = Path(__file__).parent
pytestmark = pytest.mark.filterwarnings("ignore:LSTM fallback to acl_op")  # which is what the tests are after


@pytest.mark.parametrize("soc", ["Ascend310P3", "Ascend910A"])
def test_on_older_chips(soc: str) -> None:
    checks = HERE / "on_910a_and_310p" / "check_aclop.py"
    command = [sys.executable, "-m", "pytest", str(checks), "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "GALLIUM_VNPU_SOC": soc}
    done = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


class Recurrent(nn.Module):
    """The states that a recurrent layer gives."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        return torch.cat([t.flatten() for t in (out[0], *(out[1] if isinstance(out[1], tuple) else out[1:]))])


@pytest.mark.parametrize(
    ("layer", "shape", "names"),
    [
        (nn.LSTMCell(4, 8), (3, 4), ("DynamicRNNV2", "DynamicRNNV2Grad")),
        (nn.LSTMCell(4, 8, bias=False), (3, 4), ("DynamicRNNV2", "DynamicRNNV2Grad")),
        (nn.LSTM(4, 8, bidirectional=True), (5, 3, 4), ("DynamicRNN", "DynamicRNNGrad")),
    ],
)
def test_lstm_and_its_gradients(layer: nn.Module, shape: tuple[int, ...], names: tuple[str, ...]) -> None:
    x, before = torch.randn(shape), [call_counts[name] for name in names]
    results = []
    for device in ("cpu", "npu"):
        module, given = Recurrent(copy.deepcopy(layer)).to(device), x.clone().to(device).requires_grad_()
        out = module(given)
        out.backward(torch.linspace(-1, 1, out.numel()).to(device))
        results.append([out, given.grad, *(p.grad for p in module.parameters())])
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)
    assert all(call_counts[name] > count for name, count in zip(names, before, strict=True))


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, float("inf")])
def test_the_gradient_of_cdist(p: float) -> None:
    a, b, weight = torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.randn(2, 3, 5)
    b[:, 0] = a[:, 0]  # a distance of zero
    grads = []
    for device in ("cpu", "npu"):
        x, y = (t.clone().to(device).requires_grad_() for t in (a, b))
        (torch.cdist(x, y, p=p) * weight.to(device)).sum().backward()
        grads += [x.grad.cpu(), y.grad.cpu()]
    torch.testing.assert_close(grads[2], grads[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grads[3], grads[1], rtol=1e-4, atol=1e-5)
    assert call_counts["CdistGrad"]


def test_the_gradient_of_cdist_of_one_set_against_a_batch() -> None:
    a, b = torch.randn(3, 5), torch.randn(2, 4, 5)
    here, there = a.clone().requires_grad_(), a.npu().requires_grad_()
    torch.cdist(here, b).square().sum().backward()
    torch.cdist(there, b.npu()).square().sum().backward()
    torch.testing.assert_close(there.grad.cpu(), here.grad, rtol=1e-4, atol=1e-4)


def test_functions_of_torch_npu_that_have_no_other_operator() -> None:
    x, m = torch.randn(2, 4, 9, 8), torch.randn(4, 8)
    w, shift = torch.randn(6, 4, 3, 3), torch.randn(6)
    expected = torch.conv2d(x, w, shift, [2, 1], [1, 0])
    found = torch_npu.npu_conv2d(x.npu(), w.npu(), shift.npu(), [2, 1], [1, 0], [1, 1], 1)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(torch_npu.npu_transpose(x.npu(), [0, 2, 3, 1]).cpu(), x.permute(0, 2, 3, 1))
    assert torch.equal(torch_npu.npu_slice(m.npu(), [1, 2], [2, 3]).cpu(), m[1:3, 2:5])
    assert torch.equal(torch_npu.npu_pad(m.npu(), [1, 0, 2, 3]).cpu(), nn.functional.pad(m, (2, 3, 1, 0)))
    assert torch.equal(torch_npu.npu_broadcast(m.npu(), [3, 4, 8]).cpu(), m.expand(3, 4, 8))
    values, indices = torch_npu.npu_max(m.npu(), 1)
    assert torch.equal(values.cpu(), m.max(1)[0]) and torch.equal(indices.cpu().long(), m.max(1)[1])
    values, indices = torch_npu.npu_min(m.npu(), 0, True)
    assert torch.equal(values.cpu(), m.min(0, True)[0]) and torch.equal(indices.cpu().long(), m.min(0, True)[1])
    torch.testing.assert_close(torch_npu.npu_mish(m.npu()).cpu(), nn.functional.mish(m))
    product = torch_npu.npu_bmmV2(x[:, 0].npu(), x[:, 1].mT.npu(), [])
    torch.testing.assert_close(product.cpu(), x[:, 0] @ x[:, 1].mT, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_npu_silu() -> None:
    x = torch.randn(4, 8)
    here, there = x.clone().requires_grad_(), x.npu().requires_grad_()
    nn.functional.silu(here).backward(x)
    torch_npu.npu_silu(there).backward(x.npu())
    torch.testing.assert_close(there.grad.cpu(), here.grad)


def test_an_operator_that_is_not_emulated_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"aclop\.StrideAdd is not emulated"):
        torch_npu.npu_stride_add(torch.ones(2, 2).npu(), torch.ones(2, 2).npu(), 0, 0, 1)


def test_packed_sequences_in_two_directions_are_refused() -> None:
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(5, 3, 4).npu(), [5, 5, 5])
    with pytest.raises(RuntimeError, match="seq_length"):
        nn.LSTM(4, 8, bidirectional=True).npu()(packed)


# From here on the interface is called as torch_npu calls it, with a body that no program has.

RECEIVED: dict[str, object] = {}


def probe(
    out: Tensor,
    /,
    x: Tensor,
    sizes: Tensor | None = None,
    *,
    flag: bool,
    number: int = 0,
    real: float = 0.0,
    text: str = "",
    kind: torch.dtype = torch.float32,
    flags: tuple[bool, ...] = (),
    reals: tuple[float, ...] = (),
    lists: tuple[tuple[int, ...], ...] = (),
) -> None:
    """Keeps what it got."""
    RECEIVED.update({name: value for name, value in locals().items() if name not in ("out", "x", "sizes")})
    RECEIVED["sizes"] = None if sizes is None else sizes.tolist()
    out.copy_(x)


def shorten(out: DynamicOutput, /, x: Tensor) -> None:
    """The first half of x."""
    out.settle(x[: len(x) // 2])


class Call:
    """One call of the older interface."""

    def __init__(self) -> None:
        self.attributes = ctypes.c_void_p(self.pointer("aclopCreateAttr"))
        self.sides: tuple[list[int], ...] = ([], [], [], [])

    @staticmethod
    def pointer(name: str, *args: object) -> int:
        function = core()[name]
        function.restype = ctypes.c_void_p
        return function(*args)

    def add(self, tensor: Tensor | None, output: bool = False, on_host: bool = False) -> int:
        """Add a tensor; its description's address."""
        shape = () if tensor is None else tuple(tensor.shape)
        dims = (ctypes.c_int64 * max(len(shape), 1))(*shape)
        code = -1 if tensor is None else {torch.float32: 0, torch.int32: 3, torch.int64: 9}[tensor.dtype]
        description = self.pointer("aclCreateTensorDesc", code, len(shape), dims, 2)
        if on_host:
            core().aclSetTensorPlaceMent(ctypes.c_void_p(description), 1)
        address, size = (0, 0) if tensor is None else (tensor.data_ptr(), tensor.nbytes)
        buffer = self.pointer("aclCreateDataBuffer", ctypes.c_void_p(address), ctypes.c_size_t(size))
        self.sides[2 if output else 0].append(description)
        self.sides[3 if output else 1].append(buffer)
        return description

    def run(self, name: str, version: str = "") -> int:
        described, buffers, out_described, out_buffers = ((ctypes.c_void_p * len(side))(*side) for side in self.sides)
        counts = len(described), len(out_described)
        stream = ctypes.c_void_p(torch.npu.current_stream().npu_stream)
        return core()[f"aclopCompileAndExecute{version}"](
            name.encode(), counts[0], described, buffers, counts[1], out_described, out_buffers, self.attributes,
            0, 0, None, stream,
        )  # fmt: skip


@pytest.fixture
def call() -> Iterator[Call]:
    torch.ones(1).npu().add_(1)  # so that the operators are loaded
    set_body = core_with_lock().ga_vnpu_set_named_body
    set_body(b"aclop.Probe", ctypes.py_object(bound("Probe", probe)))
    set_body(b"aclop.Shorten", ctypes.py_object(bound("Shorten", shorten, dynamic=("out",))))
    RECEIVED.clear()
    yield Call()


def message() -> str:
    core().aclGetRecentErrMsg.restype = ctypes.c_char_p
    return core().aclGetRecentErrMsg().decode()


def test_every_kind_of_attribute_and_constants_on_the_host(call: Call) -> None:
    x, sizes, out = torch.arange(3.0).npu(), torch.tensor([7, 8, 9]), torch.empty(3).npu()
    call.add(x)
    call.add(sizes, on_host=True)
    call.add(out, output=True)
    place, lengths = call.attributes, (ctypes.c_int32 * 3)(2, 0, 1)
    rows = [(ctypes.c_int64 * 2)(4, 5), (ctypes.c_int64 * 1)(), (ctypes.c_int64 * 1)(-6)]
    addresses = (ctypes.c_void_p * 3)(*(ctypes.addressof(row) for row in rows))
    library = core()
    library.aclopSetAttrBool(place, b"flag", 1)
    library.aclopSetAttrInt(place, b"number", ctypes.c_int64(1))
    library.aclopSetAttrInt(place, b"number", ctypes.c_int64(-(1 << 40)))  # the last one counts
    library.aclopSetAttrFloat(place, b"real", ctypes.c_float(0.5))
    library.aclopSetAttrString(place, b"text", b"NCHW")
    library.aclopSetAttrDataType(place, b"kind", 1)
    library.aclopSetAttrListBool(place, b"flags", 2, (ctypes.c_uint8 * 2)(1, 0))
    library.aclopSetAttrListFloat(place, b"reals", 2, (ctypes.c_float * 2)(1.5, -2.0))
    library.aclopSetAttrListListInt(place, b"lists", 3, lengths, addresses)
    assert call.run("Probe") == 0, message()
    expected = {
        "flag": True,
        "number": -(1 << 40),
        "real": 0.5,
        "text": "NCHW",
        "kind": torch.float16,
        "flags": (True, False),
        "reals": (1.5, -2.0),
        "lists": ((4, 5), (), (-6,)),
        "sizes": [7, 8, 9],
    }
    assert expected == RECEIVED
    assert torch.equal(out.cpu(), x.cpu())


def test_an_input_that_is_left_out_in_the_middle(call: Call) -> None:
    x, out = torch.ones(3).npu(), torch.empty(3).npu()
    for tensor, output in ((x, False), (None, False), (out, True)):
        call.add(tensor, output)
    core().aclopSetAttrBool(call.attributes, b"flag", 0)
    assert call.run("Probe") == 0, message()
    assert RECEIVED["sizes"] is None and RECEIVED["flag"] is False


def test_attributes_that_a_body_does_not_take_or_miss_are_named(call: Call) -> None:
    x, out = torch.ones(3).npu(), torch.empty(3).npu()
    call.add(x)
    call.add(out, output=True)
    assert call.run("Probe") != 0 and "attribute flag = None" in message()
    core().aclopSetAttrBool(call.attributes, b"flag", 0)
    core().aclopSetAttrInt(call.attributes, b"groups", ctypes.c_int64(2))
    assert call.run("Probe") != 0 and "attribute groups = 2" in message()


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"), [(0, 1, "x = None"), (3, 1, "inputs = 3"), (1, 2, "outputs = 2")]
)
def test_a_wrong_number_of_tensors_is_refused(call: Call, inputs: int, outputs: int, said: str) -> None:
    kept = [torch.ones(3).npu() for _ in range(inputs + outputs)]
    for position, tensor in enumerate(kept):
        call.add(tensor, output=position >= inputs)
    core().aclopSetAttrBool(call.attributes, b"flag", 0)
    assert call.run("Probe") != 0 and said in message()


def test_a_shape_that_is_known_only_after_running(call: Call) -> None:
    x, out = torch.arange(6.0).npu(), torch.zeros(6).npu()
    call.add(x)
    described = call.add(out, output=True)
    assert call.run("Shorten", "V2") == 0, message()
    size = ctypes.c_int64()
    core().aclGetTensorDescDimV2(ctypes.c_void_p(described), ctypes.c_size_t(0), ctypes.byref(size))
    assert size.value == 3 and out.cpu().tolist() == [0.0, 1.0, 2.0, 0.0, 0.0, 0.0]
    assert call.run("Shorten") != 0 and "aclopCompileAndExecuteV2" in message()


def test_host_memory_is_taken_only_where_it_is_declared(call: Call) -> None:
    here, out = torch.ones(3), torch.empty(3).npu()
    call.add(here)
    call.add(out, output=True)
    core().aclopSetAttrBool(call.attributes, b"flag", 0)
    assert call.run("Probe") != 0 and "device memory" in message()
