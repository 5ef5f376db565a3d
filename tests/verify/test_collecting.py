"""Contributed records reach the backend's data, and only those of hardware do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tools import collect_records

from gallium.errors import UsageError
from gallium.verify.records import KIND, SCHEMA, content_hash


def record(**changes: Any) -> dict[str, Any]:
    made = {
        "schema": SCHEMA, "kind": KIND, "date": "2026-11-25T20:00:00+00:00", "gallium": "0.1.0", "signed_by": "Jane",
        "model": "m", "arch": "glm", "backend": "ascend", "precision": "bfloat16", "emulated": False,
        "soc": "Ascend910B2", "facts": {"CANN": "8.5.0", "torch_npu": "2.13.0", "driver": "25.2"}, "against": {},
        "verdict": "drift", "ops": {"rope": {"verdict": "drift"}, "attend": {"verdict": "wrong"}}, "logits": None,
        "greedy": [], "prompt_tokens": [3],
    } | changes  # fmt: skip
    return made | {"hash": content_hash(made)}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one backend that keeps records."""
    home = tmp_path / "src/gallium/backends/ascend/data"
    home.mkdir(parents=True)
    (home / "verified.json").write_text("[]")
    (tmp_path / "docs/records").mkdir(parents=True)
    monkeypatch.setattr(collect_records, "ROOT", tmp_path)
    monkeypatch.setattr(collect_records, "RECORDS", tmp_path / "docs/records")
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr("sys.argv", ["collect_records.py", *args])
    return collect_records.main()


def test_records_are_collected(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--check") == 0
    (place / "docs/records/one.json").write_text(json.dumps(record()))
    assert run(monkeypatch, "--check") == 1
    assert run(monkeypatch) == 0
    assert "Ascend910B2, bfloat16: rope verified on hardware, attend wrong on hardware" in capsys.readouterr().out
    assert run(monkeypatch, "--check") == 0
    (entry,) = json.loads((place / "src/gallium/backends/ascend/data/verified.json").read_text())
    assert (entry["soc"], entry["emulated"], entry["cann"]) == ("Ascend910B2", False, "8.5.0")
    assert entry["ops"] == {"rope": "pass", "attend": "wrong"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"emulated": True}, "verifies no chip"),
        ({"facts": {"EMULATED": "virtual"}}, "verifies no chip"),
        ({"soc": "unknown"}, "verifies no chip"),
        ({"backend": "cpu"}, "keeps no records"),
    ],
)
def test_others_are_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    path = place / "docs/records/one.json"
    path.write_text(json.dumps(record(**changes)))
    with pytest.raises(UsageError, match=said):
        collect_records.collected([path], place)
    assert run(monkeypatch) == 1 and said in capsys.readouterr().err


def test_the_repository_is_collected() -> None:
    homes = collect_records.collected(collect_records.RECORDS.glob("*.json"), collect_records.ROOT)
    assert homes, "no backend keeps records"
    assert all(json.loads(home.read_text(encoding="utf-8")) == entries for home, entries in homes.items())


def test_the_backend_reads_what_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    from gallium.backends.ascend import records
    from gallium.verify.records import entry_of

    monkeypatch.setattr(records, "records", lambda: (entry_of(record()), entry_of(record(emulated=True))))
    found = records.verified("Ascend910B2", "bfloat16")
    assert found == {"rope": "run of 2026-11-25T20:00:00+00:00 by Jane"}
    assert records.verified("Ascend910B2", "float16") == {}
