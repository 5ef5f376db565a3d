"""Gallium: Z.ai's GLM language models on any silicon, with no CUDA."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gallium.starting import on_first_use

if TYPE_CHECKING:
    from gallium.engine.llm import LLM
    from gallium.errors import GalliumError
    from gallium.types import Completion, SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "Completion", "GalliumError", "SamplingParams", "__version__"]

__getattr__ = on_first_use(
    __name__,
    {
        "LLM": "gallium.engine.llm",
        "Completion": "gallium.types",
        "GalliumError": "gallium.errors",
        "SamplingParams": "gallium.types",
    },
)  # so that `import gallium` stays fast
