"""Honest backends compared: what is right passes, what drifts is told, and the places are the model's own."""

from __future__ import annotations

import numpy as np
import pytest
from tests.models.memory_checkpoint import random_checkpoint
from tests.models.small_specs import CONFIGS, spec_of
from tests.models.targets import REFERENCE, Target
from tests.ops.accelerator import PretendAccelerator
from tests.verify.making import PROMPTS, cpu_and_reference, model, side

from gallium.models.catalog import load_model
from gallium.ops.handles import Precision
from gallium.ops.reference import ReferenceOps
from gallium.verify.comparing import Comparison, compare, judge_growth, kl
from gallium.verify.sides import Sequences, Side, greedy
from gallium.verify.verdicts import Judge


def places(found: Comparison, layer: str) -> list[tuple[str, str]]:
    return [(row.op, row.site) for row in found.ops if row.layer == layer]


@pytest.mark.parametrize("name", CONFIGS)
def test_float32_passes_everywhere(name: str) -> None:
    found = compare(*cpu_and_reference(name), PROMPTS, 6)
    assert found.verdict == "pass"
    assert [row.layer for row in found.layers] == ["embedding", "0", "1", "2", "head"]
    assert all(row.growth is not None and 0 < row.growth.error < 1e-5 for row in found.layers[1:4])
    assert found.logits is not None and found.logits.agreeing == found.logits.rows == 17  # 8 + 5, and 2 * 2 decoded
    assert found.logits.kl_max < 1e-9
    assert [(answer.tokens, answer.diverges_at, answer.verdict) for answer in found.answers] == [(6, None, "pass")] * 2


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("precision", ["bfloat16", "int8", "int4"])
def test_reduced_precisions_drift(name: str, precision: Precision) -> None:
    found = compare(*cpu_and_reference(name, precision), PROMPTS, 6)
    assert found.verdict == "drift"
    verdicts = {row.op: row.finding.verdict for row in found.ops}
    assert verdicts["linear"] == verdicts["gqa"] == "drift" and verdicts["rope"] == "pass"
    assert found.logits is not None and 1e-6 < found.logits.kl_mean < 1


def test_places_are_those_of_the_model() -> None:
    found = compare(side(REFERENCE, "glm4_moe-odd"), side(Target("cpu"), "glm4_moe-odd"), PROMPTS, 2)
    assert places(found, "embedding") == [("embed", "table")]
    assert places(found, "2") == [
        ("add", "add_rms_norm"), ("rms_norm", "norm_in"), ("linear", "attention.qkv"), ("rms_norm", "attention.q_gain"),
        ("rms_norm", "attention.k_gain"), ("rope", "gqa"), ("rope", "gqa #2"), ("attend", "gqa"),
        ("kv_write", "gqa"),
        ("linear", "attention.out"), ("all_reduce", "row_linear"),
        ("add", "add_rms_norm #2"), ("rms_norm", "norm_post"), ("linear", "mlp.router"),
        ("route", "mlp.router_bias"), ("experts", "mlp.experts"),
        ("linear", "mlp.shared_gate_up"), ("swiglu", "moe"), ("linear", "mlp.shared_down"), ("add", "moe"),
        ("all_reduce", "moe"),
    ]  # fmt: skip
    assert places(found, "head") == [
        ("add", "add_rms_norm"), ("rms_norm", "norm"), ("take_rows", ""), ("linear", "matrix"),
        ("all_gather", "logits"), ("sample", ""),
    ]  # fmt: skip
    assert {row.calls for row in found.ops} == {4}  # two chunks of the prompts, two decoded tokens


def test_a_fused_block_is_judged_whole_and_in_its_parts() -> None:
    found = compare(*cpu_and_reference("glm-odd"), PROMPTS, 2)
    inside = {(row.op, row.inside) for row in found.ops if row.layer == "1"}
    assert ("gqa", ()) in inside and ("attend", ("gqa",)) in inside and ("rms_norm", ("add_rms_norm",)) in inside
    assert ("linear", ("gqa", "row_linear")) in inside and ("swiglu", ("gated_mlp",)) in inside


def test_a_backend_with_other_tensors_caches_and_padded_steps() -> None:
    spec, checkpoint = model("glm4_moe-odd")
    pretend = Side("pretend", "float32", load_model(checkpoint, spec, PretendAccelerator()))
    assert compare(pretend, side(Target("cpu"), "glm4_moe-odd"), PROMPTS, 6).verdict == "pass"
    assert compare(side(Target("cpu"), "glm4_moe-odd"), pretend, PROMPTS, 6).verdict == "pass"


def test_one_token_is_a_prompt() -> None:
    assert compare(*cpu_and_reference("glm-odd"), [[5]], 0).verdict == "pass"


class WrongInSteps(ReferenceOps):
    """Right op by op, wrong in the steps that an engine runs."""

    def compile_step(self, forward, decode_sizes=()):  # type: ignore[no-untyped-def]
        honest = super().compile_step(forward, decode_sizes)
        return lambda step: honest(step) * np.float32(-1 if len(step.token_ids) == 2 else 1)


def test_a_fault_of_compiled_steps_shows_in_greedy_decoding() -> None:
    spec, checkpoint = model("glm-odd")
    tested = Side("steps", "float32", load_model(checkpoint, spec, WrongInSteps()))
    found = compare(tested, side(REFERENCE, "glm-odd"), PROMPTS, 6)
    assert {row.finding.verdict for row in found.ops} == {row.verdict for row in found.layers} == {"pass"}
    assert found.verdict == "wrong"
    assert [answer.diverges_at for answer in found.answers] == [1, 1]
    for answer in found.answers:
        assert answer.margin > 1 and answer.reason.startswith("no near tie")
        assert answer.reason.endswith("its ops one by one do not give that token, its compiled steps do")


class WrongLater(ReferenceOps):
    """Rope is wrong from a position on that the steps compared first do not reach."""

    def rope(self, x, plan, spec):  # type: ignore[no-untyped-def]
        turned = super().rope(x, plan, spec)
        return np.where((plan.positions < 14)[:, None, None], turned, 3 * x)


def test_a_fault_beyond_the_first_steps_is_found_where_the_answers_part() -> None:
    spec, checkpoint = model("glm-odd")
    tested = Side("later", "float32", load_model(checkpoint, spec, WrongLater()))
    found = compare(tested, side(REFERENCE, "glm-odd"), [PROMPTS[0]], 16)
    assert found.answers[0].diverges_at is not None and found.answers[0].diverges_at >= 14 - len(PROMPTS[0])
    assert {row.op for row in found.ops if row.finding.verdict == "wrong"} == {"rope"}


def test_an_expert_that_another_token_chose_is_no_fault() -> None:
    """In this model a near tie between experts changes the logits by more than the steps before had shown."""
    spec = spec_of("glm4_moe-odd")
    checkpoint = random_checkpoint(spec, 5)
    tested = Side("cpu", "bfloat16", Target("cpu", "bfloat16").load(checkpoint, spec))
    found = compare(tested, Side("reference", "float32", REFERENCE.load(checkpoint, spec)), PROMPTS, 6)
    assert found.verdict == "drift"


class Forgetful(ReferenceOps):
    """Each op is right, but one is right only the first time that it sees an array."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()

    def swiglu(self, gate_up):  # type: ignore[no-untyped-def]
        key = gate_up.tobytes()
        again = key in self.seen
        self.seen.add(key)
        return super().swiglu(gate_up) * np.float32(1.5 if again else 1)


def test_a_fault_of_the_chain_alone_shows_in_the_layers() -> None:
    spec, checkpoint = model("glm-odd")
    tested = Side("chain", "float32", load_model(checkpoint, spec, Forgetful()))
    found = compare(tested, side(REFERENCE, "glm-odd"), PROMPTS, 2)
    assert "wrong" in {row.verdict for row in found.layers} and found.verdict == "wrong"


def test_tokens_that_go_their_own_way_after_a_near_tie_are_drift() -> None:
    wanted = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    got = wanted.copy()
    got[3] = -wanted[3]
    judge = Judge("bfloat16", None)
    assert judge_growth(judge, 1, got, wanted, routed=False).verdict == "wrong"
    found = judge_growth(judge, 1, got, wanted, routed=True)
    assert found.verdict == "drift" and found.reason.startswith("1 of 5 tokens went their own way")
    assert judge_growth(judge, 1, -wanted, wanted, routed=True).verdict == "wrong"


def test_kl_is_that_of_the_definition() -> None:
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.5, 0.25]])
    expected = (p * np.log(p / q)).sum()
    got = kl(np.log(p).astype(np.float32) + 3, np.log(q).astype(np.float32) - 2)
    np.testing.assert_allclose(got, [expected], rtol=1e-5)


def test_sequences_are_laid_out_in_blocks_with_a_spare_slot() -> None:
    sequences = Sequences([4, 9], 4)
    assert sequences.num_blocks == 2 + 3
    first = sequences.step([[1, 2, 3], [4, 5]])
    assert first.positions.tolist() == [0, 1, 2, 0, 1] and first.query_start.tolist() == [0, 3, 5]
    assert first.logit_rows.tolist() == [0, 1, 2, 3, 4]
    second = sequences.step([[6], [7]], every_row=False)
    assert second.positions.tolist() == [3, 2] and second.context_lens.tolist() == [4, 3]
    assert second.logit_rows.tolist() == [0, 1]
    used = second.block_tables[second.block_tables >= 0]
    assert sorted(used.tolist()) == list(range(5)) and second.block_tables[0, 2] == -1


def test_greedy_takes_the_best_token_of_each_step() -> None:
    tokens, rows = greedy(side(REFERENCE, "glm-odd"), PROMPTS, 3)
    assert tokens == [[int(row[i].argmax()) for row in rows] for i in range(2)]
    again, _ = greedy(side(REFERENCE, "glm-odd"), [PROMPTS[0] + tokens[0][:1], PROMPTS[1] + tokens[1][:1]], 2)
    assert again == [one[1:] for one in tokens]
