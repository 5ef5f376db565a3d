"""Reading model files: safetensors, GGUF, hubs; and writing them in another precision."""

from gallium.checkpoints.checkpoint import Checkpoint
from gallium.checkpoints.hub import pull
from gallium.checkpoints.opening import open_checkpoint
from gallium.checkpoints.resolve import ResolvedModel, resolve_model
from gallium.checkpoints.writing import convert

__all__ = ["Checkpoint", "ResolvedModel", "convert", "open_checkpoint", "pull", "resolve_model"]
