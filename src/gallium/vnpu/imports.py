"""Does something when a module has been imported, by whoever imports it first, or refuses that it be imported."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

Action = Callable[[], None]


class NotEmulated(ImportError):
    """A package whose work cannot be done without the real software of the chip."""


def after(name: str, action: Action) -> None:
    """Call `action` once the module is imported: now if it is already."""
    if name in sys.modules:
        action()
    else:
        _finder().actions.setdefault(name, []).append(action)


def refuse(name: str, text: str) -> None:
    """Make the import of the module, where it is installed, raise NotEmulated with this text."""
    _finder().refused[name] = text


class _Finder(importlib.abc.MetaPathFinder):
    """Finds a module as the other finders do, with a loader of our own around the real one."""

    def __init__(self) -> None:
        self.actions: dict[str, list[Action]] = {}
        self.refused: dict[str, str] = {}
        self._asking = threading.local()  # the others are being asked: stand aside

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec with the wrapped loader; None for other modules. Programs may ask for it without importing."""
        if (fullname not in self.actions and fullname not in self.refused) or getattr(self._asking, "now", False):
            return None
        self._asking.now = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asking.now = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self, fullname)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, real: Any, finder: _Finder, name: str) -> None:
        self._real = real
        self._finder = finder
        self._name = name

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """As the real loader."""
        found: ModuleType | None = self._real.create_module(spec)
        return found

    def exec_module(self, module: ModuleType) -> None:
        """Refuse, or do as the real loader does and then what was to come after."""
        if self._name in self._finder.refused:
            raise NotEmulated(self._finder.refused[self._name], name=self._name)
        self._real.exec_module(module)
        for action in self._finder.actions.pop(self._name, ()):
            action()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _finder() -> _Finder:
    for finder in sys.meta_path:
        if isinstance(finder, _Finder):
            return finder
    made = _Finder()
    sys.meta_path.insert(0, made)
    return made
