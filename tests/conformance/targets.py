"""What the conformance suite runs on: every combination of backend, precision and instruction-set level."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, get_args

import pytest

from gallium.ops.backend import Backend, installed
from gallium.ops.handles import AttentionSpec, ModelFacts, MoeSpec, Precision, RopeSpec
from gallium.ops.interface import Ops
from gallium.ops.reference import ReferenceOps

GQA = AttentionSpec("gqa", 4, 2, 16, 16, 0.25, RopeSpec(8, 1e4, True))


def facts(attention: AttentionSpec = GQA, moe: MoeSpec | None = None) -> ModelFacts:
    """Of a small model."""
    return ModelFacts("conformance", 2, 64, 128, attention, moe)


@dataclass
class Target:
    """One backend in one precision, at one level if it has levels."""

    backend: Backend
    precision: Precision
    level: str | None
    opened: dict[ModelFacts, Ops] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return "-".join(part for part in (self.backend.name, self.level, self.precision) if part)

    @property
    def reference(self) -> Ops:
        return ReferenceOps()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make the level current, and put the old one back: it belongs to the process, not to an Ops."""
        if self.level is None:
            yield
            return
        from gallium.backends.cpu import library

        before = library.level()
        library.set_level(self.level)
        yield
        library.set_level(before)

    def open(self, attention: AttentionSpec = GQA, moe: MoeSpec | None = None) -> Ops:
        """Ops for a model with these facts, made once."""
        key = facts(attention, moe)
        if key not in self.opened:
            self.opened[key] = self.backend.open(key, self.precision)
        return self.opened[key]


def levels_of(backend: Backend) -> tuple[str | None, ...]:
    """The CPU backend has levels; another has none to choose."""
    if backend.name != "cpu":
        return (None,)
    from gallium.backends.cpu import library

    return library.available_levels()


def targets(name: str | None, level: str | None) -> list[Target]:
    """All that this machine can run, or those asked for; asking for one that is not there is an error."""
    found = []
    for backend in installed():
        probe = backend.probe()
        if (name is None and not probe.available) or name not in (None, backend.name):
            continue
        if not probe.available:
            raise pytest.UsageError(f"backend {name!r} is not usable: {probe.reason}")
        for precision in get_args(Precision):
            if any(row.status == "unsupported" for row in backend.support(facts(), precision)):
                continue
            found += [Target(backend, precision, at) for at in levels_of(backend) if level in (None, at)]
    if not found:
        raise pytest.UsageError(f"no backend to test: --backend {name} --level {level}")
    return found


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Give every test that has a `target` argument all targets."""
    if "target" in metafunc.fixturenames:
        config: Any = metafunc.config
        if not hasattr(config, "conformance_targets"):
            config.conformance_targets = targets(config.getoption("--backend"), config.getoption("--level"))
        metafunc.parametrize(
            "target", config.conformance_targets, ids=lambda t: t.label, indirect=True, scope="session"
        )
