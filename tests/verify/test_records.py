"""Records: what they hold, that a change shows, and that emulated hardware never counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.verify.making import PROMPTS, cpu_and_reference, emulated, model

from gallium.errors import UsageError
from gallium.verify.comparing import compare
from gallium.verify.opening import Pair
from gallium.verify.records import (
    FIELDS,
    content_hash,
    counts_as_hardware,
    entry_of,
    hardware_status,
    read_record,
    record_of,
)
from gallium.verify.results import result_of

FACTS = {"chip": "Ascend910B2, sold as 910B, 64 GiB", "torch_npu": "2.13.0 with torch 2.13.0", "CANN": "8.5.0",
         "driver": "25.2.0"}  # fmt: skip


@pytest.fixture(scope="module")
def pair() -> Pair:
    tested, other = cpu_and_reference("glm-odd", "bfloat16")
    tested.facts = dict(FACTS)
    return Pair("tiny", False, model("glm-odd")[0], None, tested, other)


@pytest.fixture(scope="module")
def result(pair: Pair) -> dict[str, Any]:
    return result_of(pair, PROMPTS, compare(pair.tested, pair.other, PROMPTS, 4))


@pytest.fixture
def record(result: dict[str, Any]) -> dict[str, Any]:
    return record_of(result, " Jane Doe ")


def written(tmp_path: Path, record: dict[str, Any]) -> Path:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    return path


def test_what_a_record_holds(record: dict[str, Any]) -> None:
    assert record.keys() == FIELDS.keys()
    assert (record["soc"], record["backend"], record["precision"]) == ("Ascend910B2", "cpu", "bfloat16")
    assert (record["signed_by"], record["emulated"], record["verdict"]) == ("Jane Doe", False, "drift")
    assert record["facts"] == FACTS
    assert record["ops"]["rope"]["verdict"] == "pass" and record["ops"]["linear"]["verdict"] == "drift"
    assert record["hash"] == content_hash(record) and record["hash"].startswith("sha256:")


def test_a_record_comes_back(tmp_path: Path, record: dict[str, Any]) -> None:
    assert read_record(written(tmp_path, record)) == record


def changed(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda record: record.update({name: value})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda record: record["ops"]["rope"].update(verdict="wrong"), "was changed after it was written"),
        (changed("emulated", True), "was changed after it was written"),
        (changed("schema", 99), "has schema 99"),
        (changed("kind", "shopping list"), "is no record of"),
        (changed("soc", 7), "soc"),
        (changed("colour", "blue"), "colour"),
        (lambda record: record.pop("driver" if "driver" in record else "date"), "date"),
        (lambda record: record["ops"].update(dance={}), "unknown ops dance"),
    ],
)
def test_what_is_no_record_is_refused(
    tmp_path: Path, record: dict[str, Any], change: Callable[[dict[str, Any]], None], said: str
) -> None:
    copy = json.loads(json.dumps(record))
    change(copy)
    with pytest.raises(UsageError, match=said) as refusal:
        read_record(written(tmp_path, copy))
    assert "record.json" in refusal.value.message


@pytest.mark.parametrize("content", ["", "[1]", "{", "null"])
def test_other_files_are_no_records(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(UsageError, match="no record"):
        read_record(path)


def test_signed_by_nobody_is_refused(tmp_path: Path, result: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="signed by nobody"):
        read_record(written(tmp_path, record_of(result, " ")))


def test_hardware_status(record: dict[str, Any]) -> None:
    found = hardware_status([record])["Ascend910B2"]["bfloat16"]
    assert found["rope"] == found["linear"] == "verified on hardware"
    later = json.loads(json.dumps(record)) | {"date": "2999-01-01T00:00:00+00:00"}
    later["ops"]["rope"]["verdict"] = "wrong"
    for order in ([record, later], [later, record]):
        found = hardware_status(order)["Ascend910B2"]["bfloat16"]
        assert (found["rope"], found["linear"]) == ("wrong on hardware", "verified on hardware")


def test_emulated_hardware_never_counts(pair: Pair, result: dict[str, Any], record: dict[str, Any]) -> None:
    assert counts_as_hardware(record) and entry_of(record)["emulated"] is False
    virtual = Pair(pair.label, False, pair.spec, None, emulated(pair.tested), pair.other)
    made = record_of(result_of(virtual, PROMPTS, compare(virtual.tested, virtual.other, PROMPTS, 4)), "Jane")
    lying = made | {"emulated": False}  # the backend's own facts still tell
    for one in (made, lying, record | {"soc": "unknown"}):
        assert not counts_as_hardware(one)
        assert hardware_status([one]) == {}
        assert entry_of(one)["emulated"] is True


def test_an_entry_is_what_the_backend_reads(record: dict[str, Any]) -> None:
    entry = entry_of(record)
    assert entry["soc"] == "Ascend910B2" and entry["cann"] == "8.5.0" and entry["driver"] == "25.2.0"
    assert entry["ops"]["linear"] == "pass", "drift of the precision is right"
    wrong = json.loads(json.dumps(record))
    wrong["ops"]["linear"]["verdict"] = "wrong"
    assert entry_of(wrong)["ops"]["linear"] == "wrong"
