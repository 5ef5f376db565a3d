"""`traced` sees every op once; `checked` passes what is right and names the first op that is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.models.driving import Driver
from tests.models.memory_checkpoint import random_checkpoint
from tests.models.small_specs import CONFIGS, spec_of
from tests.ops.accelerator import PretendAccelerator, unwrap
from tests.ops.sampling_rows import Row, inputs

from gallium.errors import BackendError
from gallium.models.catalog import load_model
from gallium.ops.interface import CORE_OPS, Ops
from gallium.ops.reference import ReferenceOps
from gallium.ops.wrappers import OpCall, checked, traced, watched_ops

MOE = "glm4_moe-odd"  # a dense layer, then two sparse ones
CHUNKS = [{"a": [5, 7, 11]}, {"a": [2], "b": [3, 9]}, {"a": [4]}]  # the last is padded where steps are


def run(ops: Ops, name: str = MOE) -> list[np.ndarray]:
    """Three steps of two sequences, and a token drawn from each row."""
    spec = spec_of(name)
    driver = Driver(load_model(random_checkpoint(spec), spec, ops))
    logits = [np.concatenate(list(driver.step(chunk).values())) for chunk in CHUNKS]
    for rows in logits:
        ops.sample(ops.upload(rows), inputs([Row(seed=i) for i in range(len(rows))], spec.vocab_size))
    return logits


def test_a_trace_counts_every_op_that_no_op_has_called() -> None:
    log: list[OpCall] = []
    plain = run(ReferenceOps())
    seen = run(traced(ReferenceOps(), log.append))
    np.testing.assert_array_equal(np.concatenate(seen), np.concatenate(plain))
    steps, layers, sparse = 3, 3, 2
    assert all(call.seconds >= 0 for call in log)
    assert Counter(call.op for call in log if call.depth == 0) == {
        "embed": steps,
        "add": steps * (2 * layers + sparse),  # residuals, and the shared expert's output
        "rms_norm": steps * (2 * layers + 1 + 2 * layers),  # two norms, the last one, and those of q and k
        "linear": steps * (2 * layers + 2 + 3 * sparse + 1),
        "rope": steps * 2 * layers,
        "kv_write": steps * layers,
        "attend": steps * layers,
        "swiglu": steps * layers,  # dense and shared; those inside `experts` belong to it
        "route": steps * sparse,
        "experts": steps * sparse,
        "all_reduce": steps * 2 * layers,
        "all_gather": steps,
        "take_rows": steps,
        "sample": steps,
    }


def test_a_trace_is_in_the_order_of_the_model() -> None:
    log: list[str] = []
    run(traced(ReferenceOps(), lambda call: log.append(call.op)), "glm-odd")
    attention = ["linear", "rope", "rope", "kv_write", "attend", "linear", "all_reduce"]
    assert log[:9] == ["embed", "rms_norm", *attention]
    assert log[9:15] == ["add", "rms_norm", "linear", "swiglu", "linear", "all_reduce"]


def test_a_trace_sees_a_fused_block_as_one() -> None:
    log: list[str] = []
    ops = PretendAccelerator()
    assert set(watched_ops(ops)) == {*CORE_OPS, "add_rms_norm"}
    run(traced(ops, lambda call: log.append(call.op)), "glm-odd")
    assert log.count("add_rms_norm") == 3 * 7 and "add" not in log and "rms_norm" not in log


def test_what_a_fused_block_calls_is_a_part_of_it() -> None:
    class Fusing(ReferenceOps):
        def gated_mlp(self, x: Any, gate_up: Any, down: Any) -> Any:
            return self.linear(self.swiglu(self.linear(x, gate_up)), down)

    log: list[OpCall] = []
    run(traced(Fusing(), log.append), "glm-odd")
    blocks = [call for call in log if call.op == "gated_mlp"]
    assert [call.depth for call in blocks] == [0] * 9
    for block in blocks:
        parts = [call for call in log if call.depth == 1 and block.start <= call.start < block.start + block.seconds]
        assert [part.op for part in parts] == ["linear", "swiglu", "linear"]
        assert sum(part.seconds for part in parts) <= block.seconds
        assert log.index(parts[-1]) < log.index(block)


def test_a_trace_waits_for_a_device_once_per_op_of_the_model() -> None:
    class Apart(ReferenceOps):
        waited = 0

        def add_rms_norm(self, *args: Any) -> Any:
            return super().add_rms_norm(*args)

        def wait(self) -> None:
            self.waited += 1

    log: list[OpCall] = []
    ops = Apart()
    run(traced(ops, log.append), "glm-odd")
    assert ops.waited == sum(call.depth == 0 for call in log) < len(log)


def test_a_trace_survives_an_op_that_fails() -> None:
    log: list[tuple[str, bool]] = []
    ops = traced(ReferenceOps(), lambda call: log.append((call.op, call.done)))
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="broadcast"):
        ops.add(x, np.zeros((5, 7), np.float32))
    ops.add(x, x)
    assert log == [("add", False), ("add", True)]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("make", [ReferenceOps, PretendAccelerator])
def test_what_is_right_passes(make: Callable[[], Ops], name: str) -> None:
    plain = run(make(), name)
    seen = run(checked(make(), ReferenceOps(), "float32"), name)
    np.testing.assert_allclose(np.concatenate(seen), np.concatenate(plain), atol=1e-5, rtol=0)


def off_by_a_little(op: str, make: Callable[[], Ops]) -> Ops:
    """Ops of which one is wrong in its last element: by a thousandth, or by one for ids."""
    ops = make()
    honest = getattr(ops, op)

    def wrong(*args: Any) -> Any:
        result = honest(*args)
        array = unwrap(result[-1] if isinstance(result, tuple) else result)
        array.reshape(-1)[-1] += 1 if array.dtype == np.int32 else 1e-3 * np.abs(array).max()
        return result

    setattr(ops, op, wrong)
    return ops


@pytest.mark.parametrize(
    "op",
    ["embed", "linear", "add", "rms_norm", "rope", "swiglu", "route", "experts", "attend", "take_rows", "sample"],
)
def test_the_first_wrong_op_is_named(op: str) -> None:
    with pytest.raises(BackendError, match=f"op '{op}' of backend 'reference' is not the reference's: .* differ"):
        run(checked(off_by_a_little(op, ReferenceOps), ReferenceOps(), "float32"))


@pytest.mark.parametrize("op", ["add_rms_norm", "experts", "attend"])
def test_a_wrong_fused_block_is_named(op: str) -> None:
    with pytest.raises(BackendError, match=f"op '{op}' of backend 'pretend'"):
        run(checked(off_by_a_little(op, PretendAccelerator), ReferenceOps(), "float32"))


def test_a_wrong_cache_shows_in_the_first_op_that_reads_it() -> None:
    class Forgetful(ReferenceOps):
        def kv_write(self, k: Any, v: Any, cache: Any, plan: Any) -> None:
            super().kv_write(k, v * np.float32(1.01), cache, plan)

    with pytest.raises(BackendError, match="op 'attend'"):
        run(checked(Forgetful(), ReferenceOps(), "float32"))


def test_what_is_not_a_number_is_wrong() -> None:
    class Hot(ReferenceOps):
        def swiglu(self, gate_up: Any) -> Any:
            return super().swiglu(gate_up) * np.float32(np.nan)

    with pytest.raises(BackendError, match="op 'swiglu'"):
        run(checked(Hot(), ReferenceOps(), "float32"))


def test_only_the_ops_that_were_asked_for_are_compared() -> None:
    run(checked(off_by_a_little("swiglu", ReferenceOps), ReferenceOps(), "float32", names=["embed", "rope"]))
    with pytest.raises(BackendError, match="op 'swiglu'"):
        run(checked(off_by_a_little("swiglu", ReferenceOps), ReferenceOps(), "float32", names=["swiglu"]))


def test_tolerances_are_those_of_the_precision() -> None:
    run(checked(off_by_a_little("linear", ReferenceOps), ReferenceOps(), "int8"))


def test_ops_are_wrapped_before_the_model_is_loaded() -> None:
    spec = spec_of("glm-odd")
    model = load_model(random_checkpoint(spec), spec, ReferenceOps())
    checked(model.ops, ReferenceOps(), "float32")
    with pytest.raises(BackendError, match="before the model is loaded"):
        Driver(model).step({"a": [1, 2]})


def test_a_traced_model_still_says_which_code_runs() -> None:
    plain = ReferenceOps().explain()
    assert traced(ReferenceOps(), lambda call: None).explain() == plain
    assert checked(ReferenceOps(), ReferenceOps(), "float32").explain() == plain
