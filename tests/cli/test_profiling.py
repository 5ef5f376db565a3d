"""`gallium bench --profile`: the sections, how they add up, the table, and what is refused."""

from __future__ import annotations

import json

import pytest
from tests.cli.test_bench import QUICK
from tests.cli.test_bench import tiny as tiny

from gallium.cli.profiling import profile_tables
from gallium.cli.shapes import shape_config
from gallium.models.config import read_spec

PROFILE = (*QUICK, "--profile")


def profile_of(gallium, *args):
    result = gallium("bench", *args, *PROFILE, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_a_section_for_prefill_and_for_each_batch(gallium, tiny):
    told = profile_of(gallium, "--shape", tiny)
    sections = {section["what"]: section for section in told["profile"]}
    assert list(sections) == ["prefill of 40", "decode, batch 1", "decode, batch 3"]
    prefill, one, three = sections.values()
    assert (prefill["median_of"], prefill["unit"], prefill["steps"], prefill["tokens"]) == (2, "prompts", 1, 40)
    assert (one["median_of"], one["unit"], one["steps"], one["tokens"]) == (23, "steps", 1, 1)
    assert (three["unit"], three["steps"], three["tokens"]) == ("steps", 1, 3)


def test_a_prompt_in_chunks_is_one(gallium, tiny):
    prefill = profile_of(gallium, "--shape", tiny, "--max-step-tokens", "16")["profile"][0]
    assert (prefill["median_of"], prefill["steps"], prefill["tokens"]) == (2, 3, 40)
    whole = profile_of(gallium, "--shape", tiny)["profile"][0]
    attention = [next(row for row in each["ops"] if row["op"] == "gqa") for each in (prefill, whole)]
    assert attention[0]["operations"] == attention[1]["operations"]
    assert attention[0]["weight_bytes"] == 3 * attention[1]["weight_bytes"]


def test_a_section_adds_up(gallium, tiny):
    spec = read_spec(shape_config(tiny))
    for section in profile_of(gallium, "--shape", tiny)["profile"]:
        ops = {row["op"]: row for row in section["ops"]}
        assert ops["gqa"]["calls"] == spec.num_layers
        assert ops["moe"]["calls"] == spec.num_layers - spec.first_dense
        assert [row["seconds"] for row in section["ops"]] == sorted((r["seconds"] for r in ops.values()), reverse=True)
        step, between = section["whole"], section["between_ops"]
        assert between["seconds"] >= 0
        assert step["seconds"] == pytest.approx(sum(r["seconds"] for r in ops.values()) + between["seconds"])
        assert sum(row["share"] for row in section["ops"]) + between["share"] == pytest.approx(1)
        for kind in ("weight_bytes", "kv_bytes", "activation_bytes"):
            assert step[kind] == pytest.approx(sum(row[kind] for row in section["ops"]))
        moved = step["weight_bytes"] + step["kv_bytes"] + step["activation_bytes"]
        assert step["bytes_per_second"] == pytest.approx(moved / step["seconds"])
        assert all(row["limit"] and row["share_of_limit"] > 0 for row in section["ops"] if row["bytes_per_second"])


def test_decode_reads_the_weights_once(gallium):
    told = profile_of(gallium, "--threads", "1")
    prefill, decode, _ = told["profile"]
    # the head is the embedding, of which one row more is read
    assert decode["whole"]["weight_bytes"] == pytest.approx(told["weight_bytes"], rel=1e-4)
    assert prefill["whole"]["weight_bytes"] == pytest.approx(told["weight_bytes"], rel=1e-2)
    assert decode["whole"]["operations"].keys() == {"int4", "int8", "bfloat16", "float32"}


def test_a_backend_that_knows_no_limits_has_none_in_its_profile(gallium, tiny):
    told = profile_of(gallium, "--shape", tiny, "--backend", "reference")
    for section in told["profile"]:
        assert {row["op"] for row in section["ops"]} > {"linear", "attend", "experts", "kv_write", "plan"}
        assert all(row["limit"] is row["share_of_limit"] is None for row in section["ops"])


def test_tables_for_people(gallium, tiny):
    text = gallium("bench", "--shape", tiny, *PROFILE).stdout
    assert "prefill of 40 (median of 2 prompts, 1 step), sizes in MB" in text
    assert "decode, batch 1 (median of 23 steps, 1 step), sizes in MB" in text
    tables = text.split("sizes in MB\n\n")[1:]
    assert len(tables) == 3
    for lines in (each.splitlines() for each in tables):
        header, _, *rows = lines
        assert header.split() == [
            "calls", "ms", "share", "weights", "KV", "activ.", "GB/s", "MOP", "GOP/s", "of", "limit",
        ]  # fmt: skip
        names = [row[:12].strip() for row in rows if row and "sizes" not in row and not row.startswith("decode")]
        assert names[-2:] == ["between ops", "all"] and {"gqa", "moe", "sample"} <= set(names)


def test_what_moves_nothing_and_takes_no_time_is_no_line():
    row = {
        "op": "all_gather", "calls": 1, "seconds": 1e-7, "share": 1e-6, "weight_bytes": 0, "kv_bytes": 0,
        "activation_bytes": 0, "operations": {}, "bytes_per_second": None, "operations_per_second": None,
        "share_of_limit": None, "limit": None,
    }  # fmt: skip
    section = {
        "what": "decode", "median_of": 1, "unit": "steps", "steps": 1, "ops": [row],
        "between_ops": row | {"op": "between ops"},
        "whole": row | {"op": "all"},
    }  # fmt: skip
    assert "all_gather" not in profile_tables([section])
    section["ops"] = [row | {"share": 0.1}]
    assert "all_gather" in profile_tables([section])


def test_a_trace_of_the_whole_bench_beside_its_profile(gallium, tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("GALLIUM_TRACE", str(tmp_path / "trace.json"))
    told = profile_of(gallium, "--shape", tiny)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    steps = [event for event in events if event.get("cat") == "step"]
    assert len(steps) > sum(section["median_of"] for section in told["profile"])
    assert events[0]["args"]["name"] == "gallium: tiny (random weights), bfloat16, on cpu"


def test_ranks_cannot_be_looked_into(gallium):
    result = gallium("bench", "--tp", "3", "--profile")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "leave out --tp, --dp and --ep" in result.stderr
