"""Reading model files: safetensors, GGUF, hubs; and writing them in another precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gallium.starting import on_first_use

if TYPE_CHECKING:
    from gallium.checkpoints.checkpoint import Checkpoint
    from gallium.checkpoints.hub import pull
    from gallium.checkpoints.opening import open_checkpoint
    from gallium.checkpoints.resolve import ResolvedModel, resolve_model
    from gallium.checkpoints.writing import convert

__all__ = ["Checkpoint", "ResolvedModel", "convert", "open_checkpoint", "pull", "resolve_model"]
__getattr__ = on_first_use(
    __name__,
    {
        "Checkpoint": "gallium.checkpoints.checkpoint",
        "ResolvedModel": "gallium.checkpoints.resolve",
        "convert": "gallium.checkpoints.writing",
        "open_checkpoint": "gallium.checkpoints.opening",
        "pull": "gallium.checkpoints.hub",
        "resolve_model": "gallium.checkpoints.resolve",
    },
)  # a model that is here needs neither a hub nor a writer
