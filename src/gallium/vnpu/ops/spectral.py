"""Fourier transforms that CANN has as operators: of real signals, and short-time."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.refusals import Illegal, Unsupported
from gallium.vnpu.registry import op
from gallium.vnpu.writing import write

_NORMS = {1: "backward", 2: "forward", 3: "ortho"}  # op-plugin's fft_rfft


@op("aclRfft1D")
def rfft(self: Tensor, length: int, dim: int, normalize: int, out: Tensor) -> None:
    """The half spectrum of a real signal along `dim`, as pairs (real, imaginary) in a last dimension."""
    if normalize not in _NORMS:
        raise Unsupported("normalize", normalize, "1 backward, 2 forward, 3 ortho")
    spectrum = torch.fft.rfft(self.float(), length, dim, _NORMS[normalize])
    write(out, torch.view_as_real(spectrum))


@op("aclStft")
def stft(
    self: Tensor,
    window: Tensor | None,
    out: Tensor,
    n_fft: int,
    hop_length: int,
    win_length: int,
    normalized: bool,
    onesided: bool,
    return_complex: bool,
) -> None:
    """Short-time Fourier transform of a signal that is padded already (torch.stft with center=False)."""
    if onesided and (self.is_complex() or (window is not None and window.is_complex())):
        raise Illegal("onesided", onesided, "false for complex signals")
    spectrum = torch.stft(
        self,
        n_fft,
        hop_length,
        win_length,
        window if window is not None else torch.ones(win_length, dtype=self.real.dtype),
        center=False,
        normalized=normalized,
        onesided=onesided,
        return_complex=True,
    )
    write(out, spectrum if return_complex else torch.view_as_real(spectrum))
