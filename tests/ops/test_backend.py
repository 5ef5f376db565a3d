"""How backends are found and chosen: by name or the best real one, and never something else in silence."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
from tests.models.small_specs import spec_of

from gallium.errors import BackendError, UsageError
from gallium.ops.backend import API_VERSION, ENTRY_POINT_GROUP, Backend, Probe, Support, choose, installed
from gallium.ops.handles import ModelFacts, Precision
from gallium.ops.interface import Ops, op_names
from gallium.ops.reference import ReferenceOps

FACTS = spec_of("glm-odd").facts


@dataclass
class Candidate:
    """A backend on paper; only choosing is tested here."""

    name: str
    priority: int
    available: bool = True
    emulated: bool = False
    reason: str = ""
    api_version: int = API_VERSION

    def probe(self) -> Probe:
        return Probe(self.available, self.emulated, int(self.available), self.reason)

    def support(self, model: ModelFacts, precision: Precision) -> list[Support]:
        return []

    def open(self, model: ModelFacts, precision: Precision, threads: int | None = None) -> Ops:
        return ReferenceOps()


PLAIN = Candidate("plain", 0)
FAST = Candidate("fast", 50)
ABSENT = Candidate("absent", 90, available=False, reason="no device of this kind: install its driver")
EMULATED = Candidate("emulated", 99, emulated=True)
RELUCTANT = Candidate("reluctant", -1)
ALL = [RELUCTANT, PLAIN, EMULATED, ABSENT, FAST]


def test_when_only_an_emulated_one_is_there_auto_says_how_to_name_it() -> None:
    with pytest.raises(BackendError, match="must be named: --backend emulated"):
        choose("auto", [EMULATED, RELUCTANT])


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(ALL, FAST), (ALL[::-1], FAST), ([ABSENT, PLAIN], PLAIN), ([EMULATED, PLAIN, RELUCTANT], PLAIN)],
)
def test_auto_takes_the_best_real_one(offered: list[Backend], chosen: Backend) -> None:
    assert choose("auto", offered) is chosen


@pytest.mark.parametrize("offered", [[], [EMULATED], [RELUCTANT], [ABSENT], [EMULATED, RELUCTANT, ABSENT]])
def test_auto_takes_nothing_rather_than_something_else(offered: list[Backend]) -> None:
    with pytest.raises(BackendError, match="no usable backend is installed: `gallium doctor`"):
        choose("auto", offered)


@pytest.mark.parametrize("backend", [PLAIN, FAST, EMULATED, RELUCTANT])
def test_a_named_one_is_used_whatever_its_rank(backend: Candidate) -> None:
    assert choose(backend.name, ALL) is backend


def test_a_named_one_that_is_not_usable_is_refused_with_its_reason() -> None:
    with pytest.raises(BackendError, match="'absent' was asked for but is not usable: no device of this kind"):
        choose("absent", ALL)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown backend 'fastest'; installed: emulated, absent, fast, plain, rel"):
        choose("fastest", ALL)


def test_the_built_in_ones_are_found_like_any_other() -> None:
    found = {backend.name: backend for backend in installed()}
    assert {"cpu", "reference"} <= found.keys()
    assert choose("auto", found.values()).name == "cpu"
    assert found["reference"].priority < 0 <= found["cpu"].priority


Plugin = Callable[[str], None]


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plugin:
    """Installs a distribution with one backend module of this source."""

    def install(source: str) -> None:
        (tmp_path / "strange_backend.py").write_text(source)
        info = tmp_path / "strange-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strange\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\nstrange = strange_backend:backend\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "strange_backend", raising=False)

    return install


def test_a_plugin_is_found_and_ranked(plugin: Plugin) -> None:
    plugin("from tests.ops.test_backend import Candidate\nbackend = Candidate('strange', 7)")
    names = [backend.name for backend in installed()]
    assert names.index("strange") < names.index("cpu") < names.index("reference")
    assert choose("auto", installed()).name == "strange"


STALE = "from tests.ops.test_backend import Candidate\nbackend = Candidate('strange', 7, api_version=99)"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (STALE, f"speaks API version 99, Gallium speaks {API_VERSION}: install matching versions"),
        (
            "import a_module_that_is_not_there",
            "does not load: ModuleNotFoundError: No module named 'a_module",
        ),
        ("something_else = 1", "does not load: AttributeError: "),
        ("1 / 0", "does not load: ZeroDivisionError: division by zero"),
        ("(", "does not load: SyntaxError: "),
    ],
)
def test_a_plugin_that_cannot_be_used_says_why_and_keeps_no_other_from_working(
    plugin: Plugin, source: str, reason: str
) -> None:
    plugin(source)
    assert choose("auto", installed()).name == "cpu"
    with pytest.raises(BackendError, match="'strange' was asked for but is not usable: ") as caught:
        choose("strange", installed())
    assert reason in str(caught.value)
    (found,) = (backend for backend in installed() if backend.name == "strange")
    assert {row.status for row in found.support(FACTS, "float32")} == {"unsupported"}
    with pytest.raises(BackendError, match=re.escape(reason)):
        found.open(FACTS, "float32")


@pytest.mark.parametrize("backend", installed(), ids=lambda b: b.name)
@pytest.mark.parametrize("precision", get_args(Precision))
def test_support_answers_for_every_op_with_a_reason(backend: Backend, precision: Precision) -> None:
    rows = backend.support(FACTS, precision)
    assert [row.op for row in rows] == list(op_names())
    assert all(row.reason for row in rows)
    if any(row.status == "unsupported" for row in rows):
        with pytest.raises(BackendError, match=precision if backend.probe().available else None):
            backend.open(FACTS, precision)
    else:
        assert isinstance(backend.open(FACTS, precision), Ops)
