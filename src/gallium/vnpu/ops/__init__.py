"""Bodies of CANN's operators on PyTorch's CPU kernels, one family per file."""

from __future__ import annotations

import importlib
import pkgutil


def load() -> None:
    """Import every family, so that its operators are registered. Needs torch."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
