"""The self-test finds each known fault at its op in its layer, and says so when it does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.models.targets import REFERENCE
from tests.verify.making import FAMILIES, PROMPTS, cpu_and_reference, side

from gallium.ops.handles import Precision
from gallium.verify import faults
from gallium.verify.faults import FAULTS, Fault, self_test
from gallium.verify.sides import Side

AT = {
    "wrong eps": {"rms_norm", "add_rms_norm"},
    "wrong scale": {"attend", "gqa"},
    "swapped rope pairing": {"rope", "gqa"},
    "off-by-one mask": {"attend"},
    "dropped router bias": {"route", "moe"},
    "float16 accumulation": {"linear", "gqa"},
}


def test_the_list_has_every_fault() -> None:
    assert [fault.name for fault in FAULTS] == list(AT)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_each_fault_is_found_at_its_op_in_its_layer(name: str, precision: Precision) -> None:
    for outcome in self_test(*cpu_and_reference(name, precision), PROMPTS):
        fault = outcome.fault.name
        if fault == "dropped router bias" and name != "glm4_moe-odd":
            assert (outcome.status, outcome.reason) == ("not applicable", "no layer has mlp.router_bias")
        elif fault == "float16 accumulation" and precision != "float32":
            assert outcome.status == "hidden" and "--precision float32" in outcome.reason
        else:
            assert outcome.status == "found", outcome
            layer = "2" if fault == "dropped router bias" else "1"
            assert outcome.layer == layer and {where for where, _ in outcome.found} == {layer}
            assert {op for _, op in outcome.found} == AT[fault]
        assert outcome.good


def test_ops_are_honest_again_afterwards() -> None:
    tested, other = cpu_and_reference("glm-odd")
    first = [outcome.found for outcome in self_test(tested, other, PROMPTS)]
    assert [outcome.found for outcome in self_test(tested, other, PROMPTS)] == first
    assert not {op for fault in FAULTS for op in fault.ops} & vars(tested.ops).keys()


def one(fault: Fault, monkeypatch: pytest.MonkeyPatch, sides: tuple[Side, Side]) -> faults.Outcome:
    monkeypatch.setattr(faults, "FAULTS", (fault,))
    (outcome,) = self_test(*sides, PROMPTS)
    return outcome


def test_a_fault_without_effect_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    harmless = replace(FAULTS[1], change=lambda scene, method, args: method(*args))
    outcome = one(harmless, monkeypatch, cpu_and_reference("glm-odd"))
    assert (outcome.status, outcome.found, outcome.good) == ("not found", (), False)


def test_a_fault_that_shows_at_another_op_is_found_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    misnamed = replace(FAULTS[1], ops=("rope", "attend"), change=FAULTS[1].change)
    assert one(misnamed, monkeypatch, cpu_and_reference("glm-odd")).status == "found"
    spilling = replace(FAULTS[1], ops=("kv_write",), change=lambda scene, method, args: method(args[0] * 3, *args[1:]))
    outcome = one(spilling, monkeypatch, (side(REFERENCE, "glm-odd"), cpu_and_reference("glm-odd")[0]))
    assert (outcome.status, outcome.good) == ("found elsewhere", False)
    assert outcome.reason == "also wrong: attend in layer 1"


def test_what_was_wrong_before_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    tested, other = cpu_and_reference("glm-odd")
    honest = tested.ops.rope
    tested.ops.rope = lambda x, plan, spec: honest(x, plan, replace(spec, base=spec.base * 2))  # type: ignore[method-assign]
    harmless = replace(FAULTS[2], ops=("swiglu",), change=lambda scene, method, args: method(*args))
    assert one(harmless, monkeypatch, (tested, other)).status == "not found"
