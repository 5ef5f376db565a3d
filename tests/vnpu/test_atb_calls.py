"""How ATB's operators are called: streams, threads, graphs and their updates, and the layouts of a 310P."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
import torch_npu
from tests.vnpu.atb_reference import Cache, attention, blocked

from gallium.vnpu import soc


def int32(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def wanted(query: torch.Tensor, cache: Cache, counts: list[int]) -> torch.Tensor:
    return torch.stack([attention(q, cache.tokens(i), cache.tokens(i), 0.3, counts[i])[0] for i, q in enumerate(query)])


def test_threads_have_operations_and_streams_of_their_own() -> None:
    cache = Cache([20, 9], 1, 16, torch.float16)
    queries = [torch.randn(2, 2, 16).half() for _ in range(4)]
    outs: dict[int, torch.Tensor] = {}

    def work(number: int) -> None:
        with torch.npu.stream(torch.npu.Stream()):
            query = queries[number].npu()
            for _ in range(20):
                out = torch.empty_like(query)
                arguments = (query, cache.data.npu(), cache.data.npu(), 1, 2, 0.3, cache.table.npu(), int32([20, 9]))
                torch_npu._npu_paged_attention(*arguments, out)
                torch_npu.atb.npu_paged_cache_load(*arguments[1:3], arguments[6], int32([20, 9]).npu())
            outs[number] = out.cpu()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, query in enumerate(queries):
        torch.testing.assert_close(outs[number].double(), wanted(query, cache, [20, 9]), rtol=0, atol=2e-3)


def test_lengths_of_a_graph_can_be_updated() -> None:
    cache = Cache([60, 60], 1, 16, torch.float16)
    query = torch.randn(2, 2, 16).half()
    out = torch.zeros(2, 2, 16).half().npu()
    arguments = (query.npu(), cache.data.npu(), cache.data.npu(), 1, 2, 0.3, cache.table.npu())
    graph, event, side = torch.npu.NPUGraph(), torch.npu.ExternalEvent(), torch.npu.Stream()
    with torch.npu.graph(graph):
        stream = torch.npu.current_stream()
        event.wait(stream)
        event.reset(stream)
        torch.npu.graph_task_group_begin(stream)
        torch_npu._npu_paged_attention(*arguments, int32([60, 60]), out)
        group = torch.npu.graph_task_group_end(stream)
    with torch.npu.stream(side):
        torch.npu.graph_task_update_begin(side, group)
        torch_npu._npu_paged_attention(*arguments, int32([5, 17]), out)
        torch.npu.graph_task_update_end(side)
        event.record(side)
    assert not out.cpu().any()
    graph.replay()
    torch.testing.assert_close(out.cpu().double(), wanted(query, cache, [5, 17]), rtol=0, atol=2e-3)


@pytest.fixture
def on_310p() -> Iterator[None]:
    before = soc.current()
    soc.choose(soc.find("Ascend310P3"))
    yield
    soc.choose(before)


@pytest.mark.usefixtures("on_310p")
def test_310p_has_not_everything() -> None:
    x, bytes_ = torch.zeros(16, 16).half().npu(), torch.zeros(16, 16, dtype=torch.int8).npu()
    cache = torch.zeros(2, 16, 16, 1).half().npu()
    lens, table = int32([1] * 16), int32([0]).view(1, 1).expand(16, 1).npu()
    calls = [
        lambda: torch_npu._npu_matmul_add_fp32(x, x, x.float()),
        lambda: torch_npu._npu_quantize_per_tensor(x, x, bytes_, bytes_.clone()),
        lambda: torch_npu._npu_reshape_and_cache_siso(x.unsqueeze(-1), cache, int32([1] * 16).npu()),
        lambda: torch_npu.atb.npu_fused_add_topk_div(x, x[0], group_num=2),
        lambda: torch_npu.atb.npu_ring_mla(*[x.unsqueeze(-1)] * 6, lens, 1, 1),
        lambda: torch_npu._npu_paged_attention_quant(
            x.unsqueeze(-1), cache, cache, 16, 16, 1.0, table, lens, 3, 1, x, x, x.unsqueeze(-1)
        ),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="the chip = 'Ascend310P3' is not legal"):
            call()


@pytest.mark.usefixtures("on_310p")
def test_310p_has_caches_in_nz_order() -> None:
    cache = Cache([20, 9], 1, 16, torch.float16)
    query = torch.randn(2, 2, 16).half()
    out = torch.empty_like(query).npu()
    pages = blocked(cache.data.flatten(2)).npu()
    torch_npu._npu_paged_attention(query.npu(), pages, pages, 1, 2, 0.3, cache.table.npu(), int32([20, 9]).npu(), out)
    torch.testing.assert_close(out.cpu().double(), wanted(query, cache, [20, 9]), rtol=0, atol=2e-3)


@pytest.mark.usefixtures("on_310p")
def test_310p_has_masks_in_nz_order_and_rows_padded_to_16() -> None:
    query, key, value = (torch.randn(16, 2, 16).half() for _ in range(3))
    mask = torch.full((1, 2048, 2048), float("-inf")).triu(1).half()
    out = torch.empty_like(query).npu()
    torch_npu._npu_flash_attention_v3(
        query.npu(), key.npu(), value.npu(), blocked(mask).npu(), int32([5, 6]), 0.3, 2, 2, out=out
    )
    expected = [attention(query[i], key[:5], value[:5], 0.3, i + 1)[0] for i in range(5)]
    expected += [attention(query[5 + i], key[5:11], value[5:11], 0.3, i + 1)[0] for i in range(6)]
    torch.testing.assert_close(out[:11].cpu().double(), torch.stack(expected), rtol=0, atol=2e-3)
    assert not out[11:].cpu().any()
