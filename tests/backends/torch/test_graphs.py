"""Padded and replayed decode steps give what eager ones give, and touch nobody's blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.backends.torch.eager_graphs import SIZES, EagerGraphs, GraphDriver, model_of
from tests.conformance.targets import facts
from tests.models.driving import Driver
from tests.models.small_specs import CONFIGS
from tests.models.targets import Target

from gallium.backends.torch.backend import TorchBackend
from gallium.backends.torch.graphs import can_capture, pad
from gallium.backends.torch.ops import TorchOps
from gallium.backends.torch.plan import DUMMY_PAGE, FIRST_PAGE, ZERO_PAGE, TorchPlan
from gallium.backends.torch.routing import NO_SYNC_TOKENS
from gallium.errors import BackendError
from gallium.ops.handles import AttentionSpec, RopeSpec, Step

FLOAT32 = Target("torch")
NAMES = "abcdefghi"


def decode_step(contexts: list[int], block_size: int = 4, width: int = 8) -> Step:
    """One token for each sequence; sequence i has the blocks i * width, i * width + 1, …"""
    tables = np.full((len(contexts), width), -1, np.int32)
    for row, context in enumerate(contexts):
        used = -(-context // block_size)
        tables[row, :used] = row * width + np.arange(used)
    return Step(
        token_ids=np.arange(len(contexts), dtype=np.int32) + 5,
        positions=np.array(contexts, np.int32) - 1,
        query_start=np.arange(len(contexts) + 1, dtype=np.int32),
        context_lens=np.array(contexts, np.int32),
        block_tables=tables,
        logit_rows=np.arange(len(contexts), dtype=np.int32),
    )


def history(driver: Driver) -> list[Any]:
    """Prefill, decode in batches of many sizes over block edges, a sequence that ends, another that comes."""
    out = [driver.step({name: [i + 3] * (2 * i + 1) for i, name in enumerate(NAMES[:5])})]
    for token in range(9):
        out.append(driver.step({name: [token + 7] for name in NAMES[: 1 + token % 5]}))
    driver.drop("a")
    out.append(driver.step({"f": [9] * 17}))
    for token in range(6):
        out.append(driver.step({name: [token + 11] for name in "fbe"}))
    return out


@pytest.mark.parametrize("name", CONFIGS)
def test_replays_give_what_eager_steps_give(name: str) -> None:
    model = model_of(name, FLOAT32)
    eager, replayed = history(Driver(model)), history(GraphDriver(model))
    for one, two in zip(eager, replayed, strict=True):
        for key in one:
            np.testing.assert_allclose(two[key], one[key], atol=1e-4, rtol=0)
    assert EagerGraphs.made.captures == len(EagerGraphs.made.recorded) and EagerGraphs.made.replays >= 7
    assert {size for size, _ in EagerGraphs.made.recorded} == set(SIZES)


def test_one_capture_per_size_and_width() -> None:
    driver = GraphDriver(model_of("glm-odd", FLOAT32))
    driver.step({name: [1] for name in "abc"})
    graphs = EagerGraphs.made
    for _ in range(3):  # 3 and 4 sequences, one block each
        driver.step({name: [1] for name in "abc"})
    assert list(graphs.recorded) == [(4, 1)] and graphs.captures == 1 and graphs.replays == 3
    for _ in range(4):  # the second block: a wider table
        driver.step({name: [1] for name in "abc"})
    assert list(graphs.recorded) == [(4, 1), (4, 2)] and graphs.captures == 2
    driver.step({"a": [1]})
    assert list(graphs.recorded)[-1] == (1, 4)  # three blocks are padded to four


def test_what_cannot_be_replayed_runs_eagerly() -> None:
    driver = GraphDriver(model_of("glm-odd", FLOAT32))
    driver.step({"a": [1, 2]})  # a prompt
    driver.step({name: [1] for name in NAMES})  # more sequences than the largest size
    driver.step({"a": [1], "b": [2, 3]})  # decode beside a prompt
    assert not EagerGraphs.made.recorded
    empty = decode_step([])
    assert EagerGraphs.made(empty).shape[0] == 0


def test_a_step_with_too_many_keys_runs_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EagerGraphs, "most_keys", 16)
    driver = GraphDriver(model_of("glm-odd", FLOAT32), block_size=16)
    for _ in range(6):
        driver.step({name: [1] for name in "abc"})  # padded to 4 sequences
    assert EagerGraphs.made.captures == 1 and EagerGraphs.made.replays == 3  # up to 4 keys each


def test_the_caller_may_keep_the_logits() -> None:
    model = model_of("glm-odd", FLOAT32)
    driver = GraphDriver(model)
    steps = [driver.describe({"a": [token]}) for token in (1, 1, 1, 1)]
    driver.lengths["a"] = 0
    first = driver.run(steps[0])
    second = driver.run(replace(steps[0], token_ids=np.array([2], np.int32)))
    kept = second.clone()
    driver.run(replace(steps[0], token_ids=np.array([3], np.int32)))
    assert torch.equal(second, kept) and not torch.equal(first, second)


def test_only_the_rows_that_were_asked_for_come_back() -> None:
    model = model_of("glm-odd", FLOAT32)
    driver = GraphDriver(model)
    step = driver.describe({"a": [1], "b": [2], "c": [3]})
    whole = driver.run(step)
    some = driver.run(replace(step, logit_rows=np.array([2, 0], np.int32)))
    np.testing.assert_allclose(some.numpy(), whole.numpy()[[2, 0]], atol=1e-5)


def test_padding_writes_to_the_dummy_page_only() -> None:
    model = model_of("glm4_moe-even", FLOAT32)
    driver = GraphDriver(model)
    step = driver.describe({"a": [1], "b": [2], "c": [3]})
    driver.run(step)
    before = [(cache.data.k.clone(), cache.data.v.clone()) for cache in driver.caches]
    driver.run(replace(step, token_ids=np.array([4, 5, 6], np.int32)))
    own = {int(block) + FIRST_PAGE for block in step.block_tables[:, 0]}
    for (k, v), cache in zip(before, driver.caches, strict=True):
        for old, new in ((k, cache.data.k), (v, cache.data.v)):
            changed = {int(page) for page in (old != new).flatten(1).any(dim=1).nonzero()}
            assert changed - {DUMMY_PAGE} == own, changed
            assert not new[ZERO_PAGE].any()
            assert new[DUMMY_PAGE, 0].any() and not new[DUMMY_PAGE, 1:].any()


def test_a_neighbour_s_broken_numbers_stay_its_own() -> None:
    """Stale values behind a context, and the dummy page, are gathered with no weight; a NaN would survive that."""
    model = model_of("glm-odd", FLOAT32)
    for driver in (Driver(model), GraphDriver(model)):
        driver.step({"a": [1, 2, 3, 4, 5], "b": [1]})
        for cache in driver.caches:
            unwritten = torch.ones(cache.data.k.shape[:2], dtype=torch.bool)
            unwritten[ZERO_PAGE] = False
            for name in "ab":
                for position in range(driver.lengths[name]):
                    block = driver.tables[name][position // 4]
                    unwritten[block + FIRST_PAGE, position % 4] = False
            cache.data.k[unwritten] = cache.data.v[unwritten] = torch.nan
        for _ in range(3):
            logits = driver.step({"a": [7], "b": [8]})
            assert all(np.isfinite(rows).all() for rows in logits.values())


def test_pad() -> None:
    step = decode_step([5, 9], width=8)
    padded = pad(step, 4, 4)
    assert padded.token_ids.tolist() == [5, 6, 0, 0]
    assert padded.positions.tolist() == [4, 8, 0, 0]
    assert padded.context_lens.tolist() == [5, 9, 1, 1]
    assert padded.query_start.tolist() == [0, 1, 2, 3, 4]
    assert padded.logit_rows.tolist() == [0, 1, 2, 3]
    assert padded.block_tables.tolist() == [[0, 1, -1, -1], [8, 9, 10, -1], [-1] * 4, [-1] * 4]
    assert pad(step, 2, 16).block_tables.shape == (2, 16)


def test_a_plan_takes_steps_of_its_shape_only() -> None:
    plan = TorchPlan(decode_step([5, 9]), torch.device("cpu"), fixed=True)
    with pytest.raises(BackendError, match="shape"):
        plan.load(decode_step([5, 9, 2]), 3)


def test_a_plan_refuses_a_table_without_the_block_that_a_context_needs() -> None:
    step = decode_step([5, 9])
    step.block_tables[1, 2] = -1
    with pytest.raises(BackendError, match="block table"):
        TorchPlan(step, torch.device("cpu")).slots(4)


def test_the_cpu_captures_nothing() -> None:
    assert not can_capture(torch.device("cpu"))


def test_latent_attention_from_a_fixed_plan() -> None:
    """No model has it in the catalog yet: padded decode sequences beside eager ones, selected positions included."""
    spec = AttentionSpec(
        "mla_sparse", 4, 4, 24, 16, 0.2, RopeSpec(8, 1e4, True), latent_dim=32, index_dim=16, index_topk=3
    )
    ops = TorchBackend().open(facts(spec), "float32")
    assert isinstance(ops, TorchOps)
    cache = ops.make_kv_cache(spec, 32, 4)
    for page in (cache.data.k, cache.data.v, cache.data.index):
        page[FIRST_PAGE:] = torch.randn(page[FIRST_PAGE:].shape)
    step = decode_step([5, 9, 2])
    padded = pad(step, 4, 4)
    wide = torch.randn(4, 4, 40)
    q, q_rope, index_q, weights = wide[..., :32], wide[..., 32:], torch.randn(4, 3, 16), torch.randn(4, 3)
    results = []
    for plan, n in ((ops.plan(step), 3), (ops.fixed_plan(padded, 3), 4)):
        selected = ops.index_topk(index_q[:n], weights[:n], cache, plan, 3)
        some = ops.attend_latent(q[:n], q_rope[:n], cache, plan, spec, selected)
        everything = ops.attend_latent(q[:n], q_rope[:n], cache, plan, spec, None)
        results.append((selected[:3], some[:3], everything[:3]))
    assert torch.equal(results[0][0], results[1][0])
    for eager, fixed in zip(results[0][1:], results[1][1:], strict=True):
        torch.testing.assert_close(fixed, eager)


def test_a_mixture_of_experts_is_captured_only_where_its_experts_need_no_counts() -> None:
    model = model_of("glm4_moe-odd", FLOAT32)
    run = model.ops.compile_step(lambda plan: plan, (4, NO_SYNC_TOKENS, NO_SYNC_TOKENS + 1))
    assert isinstance(run, EagerGraphs) and run.sizes == (4, NO_SYNC_TOKENS)
