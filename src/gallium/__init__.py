"""Gallium: Z.ai's GLM language models on any silicon, with no CUDA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gallium.engine.llm import LLM
    from gallium.errors import GalliumError
    from gallium.types import Completion, SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "Completion", "GalliumError", "SamplingParams", "__version__"]

_HOMES = {
    "LLM": "gallium.engine.llm",
    "Completion": "gallium.types",
    "GalliumError": "gallium.errors",
    "SamplingParams": "gallium.types",
}


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that `import gallium` stays fast."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gallium' has no attribute {name!r}")
