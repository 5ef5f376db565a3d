"""`gallium bench`: what it measures, how it counts, and what it refuses."""

from __future__ import annotations

import json
import math
import statistics
from types import SimpleNamespace

import pytest
from tests.checkpoints.gguf_making import hf_config
from tests.checkpoints.safetensors_making import write_model
from tests.checkpoints.test_gguf_reading import model_tensors
from tests.cli.test_doctor import Emulated

from gallium.cli.measuring import Stopwatch
from gallium.cli.shapes import SHAPES, shape_config
from gallium.cli.work import Work
from gallium.errors import EngineDead, UsageError
from gallium.models.config import read_spec
from gallium.types import Delta

QUICK = ("--prompt-tokens", "40", "--batch", "1,3", "--context", "5", "--new-tokens", "24", "--rounds", "2")


@pytest.fixture
def tiny(monkeypatch):
    """A shape that takes no time."""
    monkeypatch.setitem(SHAPES, "tiny", hf_config("glm4moe"))
    return "tiny"


def measured(result):
    """What --json says; standard output holds nothing else."""
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_list_of_shapes(gallium):
    assert gallium("bench", "--shape", "list").stdout.split() == list(SHAPES)


def test_json_of_a_backend_that_knows_no_limits(gallium, tiny):
    told = measured(gallium("bench", "--shape", tiny, "--backend", "reference", *QUICK, "--json"))
    prefill, decode = told.pop("prefill"), told.pop("decode")
    assert told.pop("gallium")
    assert told == {
        "model": "tiny (random weights)",
        "arch": "glm4_moe",
        "precision": "float32",
        "kv_precision": "float32",
        "backend": "reference",
        "weight_bytes": None,
        "limits": {"read_bytes_per_second": None, "operations_per_second": None},
        "plan": {"prompt_tokens": 40, "context": 5, "new_tokens": 24, "rounds": 2},
    }
    assert (prefill["tokens"], prefill["share_of_peak"], len(prefill["rounds"])) == (40, None, 2)
    assert prefill["seconds"] == statistics.median(prefill["rounds"]) > 0
    assert prefill["tokens_per_second"] == 40 / prefill["seconds"]
    assert [row["batch"] for row in decode] == [1, 3]
    for row in decode:
        assert len(row["rounds"]) == 2
        assert row["tokens_per_second"] == statistics.median(row["rounds"]) > 0
        assert row["tokens_per_second_each"] == row["tokens_per_second"] / row["batch"]
        assert row["weight_bytes_per_second"] is row["share_of_bandwidth"] is None


@pytest.mark.parametrize("precision", ["bfloat16", "int4"])
def test_figures_stand_beside_what_the_machine_can_do(gallium, tiny, precision):
    told = measured(gallium("bench", "--shape", tiny, "--precision", precision, *QUICK, "--json"))
    assert (told["backend"], told["precision"]) == ("cpu", precision)
    read, peak = told["limits"]["read_bytes_per_second"], told["limits"]["operations_per_second"]
    work = Work.of(read_spec(shape_config(tiny)))
    assert told["weight_bytes"] > work.total / 2
    for row in told["decode"]:
        weights = told["weight_bytes"] * work.share_read(row["batch"])
        assert row["weight_bytes_per_second"] == pytest.approx(row["tokens_per_second_each"] * weights)
        assert row["share_of_bandwidth"] == pytest.approx(row["weight_bytes_per_second"] / read)
    prefill = told["prefill"]
    assert prefill["share_of_peak"] == pytest.approx(work.prefill_operations(40) / prefill["seconds"] / peak)


def test_the_least_that_can_be_asked_for(gallium, tiny):
    least = ("--prompt-tokens", "1", "--context", "1", "--new-tokens", "8", "--batch", "1", "--rounds", "1")
    told = measured(gallium("bench", "--shape", tiny, "--backend", "reference", *least, "--json"))
    assert (told["prefill"]["tokens"], len(told["decode"][0]["rounds"])) == (1, 1)


def test_report_for_people(gallium, tiny):
    lines = gallium("bench", "--shape", tiny, *QUICK).stdout.splitlines()
    assert lines[0].startswith("tiny (random weights): glm4_moe, bfloat16, on cpu; weights 0.00 GB")
    assert lines[1].startswith("machine: ") and "GB/s read, " in lines[1] and lines[1].endswith(" GOP/s in bfloat16")
    assert lines[3].split() == ["tokens/s", "each", "of", "the", "machine"]
    names = ["prefill of 40", "decode, batch 1", "decode, batch 3"]
    for line, name in zip(lines[5:], names, strict=True):
        assert line.startswith(name)
        assert line.endswith(" of peak" if name.startswith("prefill") else " of bandwidth")
    assert {line.index("%") for line in lines[5:]} <= {lines[3].index("of the") + n for n in (1, 2, 3)}


def test_a_real_checkpoint_without_a_tokenizer(gallium, tmp_path):
    config = hf_config("glm4")
    folder = write_model(tmp_path / "model", model_tensors(config), config)
    told = measured(gallium("bench", str(folder), *QUICK, "--json"))
    assert (told["model"], told["arch"], told["precision"]) == ("model", "glm4", "float32")
    assert told["decode"][0]["share_of_bandwidth"] > 0


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("--shape", "cube"), 2, "unknown shape 'cube'"),
        (("model", "--shape", "tiny"), 2, "give either MODEL or --shape"),
        (("--shape", "tiny", "--tp", "2"), 2, "leave out --tp, --dp and --ep"),
        (("--shape", "tiny", "--batch", "0"), 2, "'0'"),
        (("--shape", "tiny", "--batch", "1,x"), 2, "'1,x'"),
        (("--shape", "tiny", "--context", "600"), 2, "the model's limit is 512 tokens"),
        (("--shape", "tiny", "--new-tokens", "7"), 2, "--new-tokens"),
        (("--shape", "tiny", "--precision", "int3"), 2, "int3"),
        (("--shape", "tiny", "--backend", "abacus"), 2, "unknown backend 'abacus'"),
        (("--shape", "tiny", "--backend", "reference", "--precision", "int8"), 1, "float32 only"),
        (("--shape", "tiny", "--batch", "64", "--kv-memory", "2MiB"), 1, "choose smaller batches"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(gallium, tiny, args, code, says):
    result = gallium("bench", "--prompt-tokens", "8", *args)
    assert (result.exit_code, result.stdout) == (code, "")
    assert says in result.stderr and "Traceback" not in result.stderr


def test_a_shape_that_does_not_fit_is_refused_before_it_is_made(gallium, monkeypatch):
    monkeypatch.setattr("gallium.engine.memory.available_bytes", lambda: 4 << 30)
    result = gallium("bench", "--shape", "glm-4.5")
    assert result.exit_code == 1
    assert "657.1 GiB in bfloat16, but 4.0 GiB are free" in result.stderr


def test_emulated_hardware_has_no_speed(gallium, tiny, monkeypatch):
    monkeypatch.setattr("gallium.ops.backend.installed", lambda: [Emulated()])
    result = gallium("bench", "--shape", tiny, "--backend", "pretend")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "backend 'pretend' is emulated" in result.stderr


# -- the stopwatch -----------------------------------------------------------------------------


class ScriptedEngine:
    """When all requests are there, their tokens come at the given times; a None is an engine that died."""

    def __init__(self, monkeypatch, *times):
        self.times, self.waiting, self.cancelled = times, [], 0
        self.now = 0.0
        monkeypatch.setattr("gallium.cli.measuring.time", SimpleNamespace(perf_counter=lambda: self.now))

    def submit(self, prompt, params, on_delta):
        self.waiting.append((on_delta, prompt, params))
        if len(self.waiting) == len(self.times):
            self._play()
        return SimpleNamespace(cancel=self._count_cancel)

    def _count_cancel(self):
        self.cancelled += 1

    def _play(self):
        deltas = [
            (when, stream, number == len(times) - 1)
            for stream, times in enumerate(self.times)
            for number, when in enumerate(times)
        ]
        for when, stream, last in sorted(deltas, key=lambda delta: delta[0] or math.inf):
            self.now = self.now if when is None else when
            send = self.waiting[stream][0]
            send(
                EngineDead("it died.") if when is None else Delta(0, (7,), "", finish_reason="length" if last else None)
            )


def test_prefill_is_the_time_to_the_first_token(monkeypatch):
    engine = ScriptedEngine(monkeypatch, [2.5])
    assert Stopwatch(engine, 50).prefill(9) == 2.5
    ((_, prompt, params),) = engine.waiting
    assert len(prompt) == 9 and all(0 <= token < 50 for token in prompt)
    assert (params.temperature, params.max_tokens, params.ignore_eos) == (0, 1, True)


def test_decode_counts_only_while_all_decode(monkeypatch):
    # from 3.0, when the last begins, to 5.0, when the first ends: 4.0 and 5.0, 4.5, 5.0
    engine = ScriptedEngine(monkeypatch, [1.0, 2.0, 4.0, 5.0], [2.0, 4.5, 6.0, 7.0], [3.0, 5.0, 8.0, 9.0])
    assert Stopwatch(engine, 50).decode(3, context=2, new_tokens=4) == 4 / 2.0
    assert {len(prompt) for _, prompt, _ in engine.waiting} == {2}
    assert {params.max_tokens for _, _, params in engine.waiting} == {4}


def test_decode_that_never_ran_together_is_no_figure(monkeypatch):
    engine = ScriptedEngine(monkeypatch, [1.0, 2.0], [2.0, 3.0])
    with pytest.raises(UsageError, match="2 sequences were never all decoding at once: ask for more --new-tokens"):
        Stopwatch(engine, 50).decode(2, context=2, new_tokens=2)


def test_a_dead_engine_is_reported_and_the_others_cancelled(monkeypatch):
    engine = ScriptedEngine(monkeypatch, [1.0, 9.0], [None])
    with pytest.raises(EngineDead):
        Stopwatch(engine, 50).decode(2, context=2, new_tokens=2)
    assert engine.cancelled == 2
