"""_npu_reshape_and_cache, its form for keys only, and npu_paged_cache_load."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch_npu
from tests.vnpu.atb_reference import Cache, blocked

SLOTS = torch.tensor([3, 47, -1, 16, 0], dtype=torch.int32)


def stored(cache: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    expected = cache.clone()
    for token, slot in zip(tokens, SLOTS.tolist(), strict=True):
        if slot >= 0:
            expected[slot // 16][slot % 16] = token
    return expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
def test_tokens_go_to_their_slots(dtype: torch.dtype) -> None:
    key, value = torch.randint(-9, 9, (5, 2, 7)).to(dtype), torch.randint(-9, 9, (5, 2, 3)).to(dtype)
    caches = torch.ones(3, 16, 2, 7, dtype=dtype), torch.ones(3, 16, 2, 3, dtype=dtype)
    key_cache, value_cache = caches[0].npu(), caches[1].npu()
    torch_npu._npu_reshape_and_cache(key.npu(), value.npu(), key_cache, value_cache, SLOTS.npu())
    assert torch.equal(key_cache.cpu(), stored(caches[0], key))
    assert torch.equal(value_cache.cpu(), stored(caches[1], value))


def test_tokens_may_have_strides_and_keys_may_come_alone() -> None:
    key = torch.randn(5, 4, 8).half()
    cache = torch.zeros(3, 16, 2, 8).half()
    on_device = cache.npu()
    torch_npu._npu_reshape_and_cache_siso(key.npu()[:, ::2], on_device, SLOTS.npu())
    assert torch.equal(on_device.cpu(), stored(cache, key[:, ::2]))


def test_no_tokens_change_nothing() -> None:
    cache = torch.randn(3, 16, 2, 8).half()
    on_device = cache.npu()
    empty = torch.empty(0, 2, 8).half().npu()
    torch_npu._npu_reshape_and_cache(
        empty, empty, on_device, on_device.clone(), torch.empty(0, dtype=torch.int32).npu()
    )
    assert torch.equal(on_device.cpu(), cache)


@pytest.fixture
def internal_formats() -> Iterator[None]:
    torch.npu.config.allow_internal_format = True
    yield
    torch.npu.config.allow_internal_format = False


@pytest.mark.usefixtures("internal_formats")
def test_caches_in_nz_format() -> None:
    key, value = torch.randint(-9, 9, (5, 2, 32)).to(torch.int8), torch.randn(5, 2, 16).half()
    rows = torch.zeros(3, 16, 64, dtype=torch.int8), torch.zeros(3, 16, 32).half()
    caches = rows[0].view(3, 16, 2, 32).transpose(1, 2).contiguous(), blocked(rows[1])
    key_cache, value_cache = (torch_npu.npu_format_cast(cache.npu(), 29) for cache in caches)
    torch_npu._npu_reshape_and_cache(key.npu(), value.npu(), key_cache, value_cache, SLOTS.npu())
    expected = stored(rows[0], key.flatten(1)).view(3, 16, 2, 32).transpose(1, 2), stored(rows[1], value.flatten(1))
    assert torch.equal(torch_npu.npu_format_cast(key_cache, 2).cpu(), expected[0])
    assert torch.equal(torch_npu.npu_format_cast(value_cache, 2).cpu(), blocked(expected[1]))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"slots": torch.tensor([1, 2], dtype=torch.int64)}, "slot_indices"),
        ({"slots": torch.tensor([1, 48], dtype=torch.int32)}, "slot_indices"),
        ({"key": torch.zeros(2, 1, 8, dtype=torch.float32)}, "key"),
        ({"key": torch.zeros(2, 2, 8, dtype=torch.float16)}, "key"),
    ],
)
def test_illegal_tokens_are_refused(change: dict[str, torch.Tensor], named: str) -> None:
    given = {"key": torch.zeros(2, 1, 8).half(), "slots": torch.tensor([1, 2], dtype=torch.int32)} | change
    cache = torch.zeros(3, 16, 1, 8).half().npu()
    with pytest.raises(RuntimeError, match=rf"atb\.ReshapeAndCache: {named}"):
        torch_npu._npu_reshape_and_cache_siso(given["key"].npu(), cache, given["slots"].npu())


@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize("starts", [None, [0, 40, 17]])
def test_sequences_come_out_of_their_blocks(cumulative: bool, starts: list[int] | None) -> None:
    cache = Cache([64, 64, 64], 1, 32, torch.float16)
    other = cache.like(16)
    counts = [20, 0, 33]
    whole = [(cache.tokens(row), other.tokens(row)) for row in range(3)]
    begin = [(start // 16) * 16 for start in starts or [0, 0, 0]]
    expected = [
        torch.cat([pair[i][b : b + n] for pair, b, n in zip(whole, begin, counts, strict=True)]) for i in (0, 1)
    ]
    lens = torch.tensor([0, 20, 20, 53] if cumulative else counts, dtype=torch.int32).npu()
    seq_starts = None if starts is None else torch.tensor(starts, dtype=torch.int32).npu()
    arguments = (cache.data.npu(), other.data.npu(), cache.table.npu(), lens)
    key, value = torch_npu.atb.npu_paged_cache_load(*arguments, seq_starts=seq_starts, cumsum=cumulative)
    assert torch.equal(key.cpu(), expected[0]) and torch.equal(value.cpu(), expected[1])
    key, value = torch.zeros_like(key), torch.zeros_like(value)
    torch_npu.atb.npu_paged_cache_load(*arguments, seq_starts=seq_starts, cumsum=cumulative, key=key, value=value)
    assert torch.equal(key.cpu(), expected[0]) and torch.equal(value.cpu(), expected[1])


@pytest.mark.usefixtures("internal_formats")
def test_illegal_loads_are_refused() -> None:
    cache = Cache([20], 1, 24, torch.float16)
    lens = torch.tensor([20], dtype=torch.int32).npu()
    with pytest.raises(RuntimeError, match=r"atb\.PagedCacheLoad: key_cache .* 32 bytes"):
        torch_npu.atb.npu_paged_cache_load(cache.data.npu(), cache.data.npu(), cache.table.npu(), lens)
    cache = Cache([20], 1, 32, torch.float16)
    with pytest.raises(RuntimeError, match="block_table"):
        torch_npu.atb.npu_paged_cache_load(cache.data.npu(), cache.data.npu(), cache.table[:, :1].npu(), lens)
    with pytest.raises(RuntimeError, match="block_table"):
        torch_npu.atb.npu_paged_cache_load(cache.data.npu(), cache.data.npu(), cache.table.npu() + 99, lens)
    nz = torch_npu.npu_format_cast(torch.zeros(2, 2, 16, 16).half().npu(), 29)
    with pytest.raises(RuntimeError, match="kv_cache_cfg"):
        torch_npu.atb.npu_paged_cache_load(nz, nz, cache.table.npu(), lens)
