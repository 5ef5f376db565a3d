"""The torch backend: every op in plain, device-neutral PyTorch. Importing this does not import torch."""

from gallium.backends.torch.backend import backend

__all__ = ["backend"]
