"""Tensors over device memory: they own nothing, stay inside their allocation, and are refused in words."""

from __future__ import annotations

import pytest
import torch
import torch_npu

from gallium.vnpu import soc, tensors
from gallium.vnpu.refusals import Illegal, Unsupported
from gallium.vnpu.writing import into

kept: list[torch.Tensor] = []  # views own nothing


def make(x: torch.Tensor, dtype: int = 0, device: int = 0, room: int | None = None) -> torch.Tensor:
    kept.append(x)
    size = room if room is not None else x.untyped_storage().nbytes()
    address = x.untyped_storage().data_ptr()
    made = tensors.make(dtype, 2, tuple(x.shape), x.stride(), x.storage_offset(), tuple(x.shape), address, size, device)
    assert isinstance(made, torch.Tensor)
    return made


def test_a_view_is_the_memory_itself() -> None:
    memory = torch.arange(24.0).reshape(4, 6)
    view = make(memory[1:3, ::2])
    assert torch.equal(view, memory[1:3, ::2])
    view.add_(100)
    assert memory[1, 2] == 108 and memory[1, 3] == 9


def test_an_output_that_would_grow_is_refused_before_anything_is_written() -> None:
    memory = torch.zeros(8)
    small = make(memory[:2])
    with pytest.raises((RuntimeError, Illegal)):
        into(torch.add, small, torch.ones(6), torch.ones(6))
    assert small.shape == (2,) and not memory.any()


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
def test_an_output_of_another_shape_keeps_its_own() -> None:
    big = make(torch.zeros(6))
    with pytest.raises(Illegal, match="output's shape"):
        into(torch.add, big, torch.ones(2), torch.ones(2))
    assert big.shape == (6,)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"device": tensors.UNKNOWN_MEMORY}, "device memory"),
        ({"room": 12}, "inside its allocation of 12 bytes"),
    ],
)
def test_memory_that_is_not_the_tensors_is_refused(change: dict[str, int], match: str) -> None:
    with pytest.raises(Illegal, match=match):
        make(torch.zeros(4), **change)


def test_more_dimensions_than_cann_has_are_refused() -> None:
    with pytest.raises(Illegal, match="at most 8"):
        make(torch.zeros((1,) * 9))


def test_unknown_types_are_refused_by_code() -> None:
    with pytest.raises(Unsupported, match="dtype code = 99"):
        make(torch.zeros(2), dtype=99)


def test_types_that_the_chip_lacks_are_refused_by_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soc, "_current", soc.find("Ascend310P3"))
    with pytest.raises(Illegal, match="Ascend310P3 has no bfloat16"):
        make(torch.zeros(2, dtype=torch.bfloat16), dtype=27)


def test_views_made_in_inference_mode_serve_afterwards() -> None:
    x = torch.ones(3).npu()
    with torch.inference_mode():
        x.clone()
    x.add_(1)
    assert x.cpu().tolist() == [2, 2, 2]


def test_int4_pairs_are_unpacked_low_half_first() -> None:
    packed = torch.tensor([0x21, 0xF8], dtype=torch.uint8)
    assert tensors.unpack4(packed).tolist() == [1, 2, -8, -1]


def test_an_output_that_would_get_other_strides_is_refused_and_keeps_its_own() -> None:
    out = make(torch.zeros(1, 2, 3, 6))
    x = torch.ones(1, 2, 1, 3).to(memory_format=torch.channels_last)
    with pytest.raises(Illegal, match="output's strides"):
        into(torch.ops.aten.max_unpool2d, out, x, torch.zeros(1, 2, 1, 3, dtype=torch.int64), [3, 6])
    assert out.is_contiguous()


def test_an_empty_input_and_an_empty_output_are_two_tensors() -> None:
    assert torch.take(torch.empty(0).npu(), torch.empty(0, dtype=torch.int64).npu()).shape == (0,)


def test_host_memory_lent_to_the_device_is_read_and_freed() -> None:
    x = torch_npu.empty_with_swapped_memory([17], dtype=torch.float32, device="npu")
    x.fill_(3)
    assert x.add(1).cpu().tolist() == [4] * 17
