"""Position encodings added to the scores ("pse"): as given, or made from ALiBi slopes, or from ALiBi's last rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gallium.vnpu.registry import Illegal, Unsupported

MUL_ADD, ADD_MUL, ALIBI = 0, 1, 2  # pse_type, from MindSpeed's fusion_attention page; 3 is ALiBi with a square root
ALIBI_ROWS = 1024


@dataclass(frozen=True)
class Positions:
    """The pse argument of one call.

    pse_type 0 adds it to the scaled scores, 1 adds it before scaling. 2 takes float32 slopes [N] or [B, N] and adds
    -slope * |i + q_start - j - kv_start|, the standard ALiBi with its zero diagonal at the upper left corner.
    """

    pse: Tensor
    kind: int
    q_start: int = 0
    kv_start: int = 0

    def __post_init__(self) -> None:
        if self.kind not in (MUL_ADD, ADD_MUL, ALIBI):
            raise Unsupported("pse_type", self.kind, "0, 1 and 2")
        if self.kind == ALIBI and (self.pse.dtype != torch.float32 or self.pse.dim() not in (1, 2)):
            raise Illegal("pse", self.pse, "float32 slopes [N] or [B, N] for pse_type 2")

    def weight(self, scale: float) -> float:
        """What the bias is multiplied with."""
        return scale if self.kind == ADD_MUL else 1.0

    def bias(self, sequence: slice, shape: tuple[int, int, int, int], packed: bool) -> Tensor:
        """What is added to the scores [b, N, Sq, Skv] of these sequences, broadcastable to them, in float32."""
        _, heads, queries, keys = shape
        if self.kind == ALIBI:
            slopes = self.pse if self.pse.dim() == 2 else self.pse[None]
            return (slopes if len(slopes) == 1 else slopes[sequence])[..., None, None] * self.distances(queries, keys)
        if self.pse.dim() != 4:
            raise Illegal("pse", self.pse, "of four dimensions")
        pse = self.pse if self.pse.shape[0] == 1 else self.pse[sequence]
        if packed or (self.compressed(queries) and pse.shape[2] != queries):
            return _from_last_rows(pse, heads, queries, keys)
        if pse.shape[1] != heads or pse.shape[2] not in (1, queries) or pse.shape[3] != keys:
            raise Illegal("pse", self.pse, f"[B or 1, N, Sq, Skv] or [B, N, 1, Skv], here N, Sq, Skv = {shape[1:]}")
        return pse.to(torch.float32)

    def compressed(self, queries: int) -> bool:
        """Whether the tensor holds only the last 1024 rows of a longer encoding."""
        return self.kind != ALIBI and self.pse.shape[2] == ALIBI_ROWS and queries > ALIBI_ROWS

    def distances(self, queries: int, keys: int) -> Tensor:
        """-|i + q_start - j - kv_start|, [Sq, Skv]."""
        rows = torch.arange(queries, dtype=torch.float32)[:, None] + self.q_start
        return -(rows - torch.arange(keys, dtype=torch.float32) - self.kv_start).abs()


def _from_last_rows(pse: Tensor, heads: int, queries: int, keys: int) -> Tensor:
    """ALiBi depends on i - j alone, so that its last row, shifted, gives every row (alibi_compress of the page)."""
    size = pse.shape[3]
    if pse.shape[1] != heads or pse.shape[2] != ALIBI_ROWS or size < max(queries, keys):
        raise Illegal("pse", pse, f"[B or 1, N, 1024, Skv], the last 1024 rows of an ALiBi encoding, N = {heads}")
    lower = torch.ones(ALIBI_ROWS - 1, size - 1, dtype=torch.bool).tril(size - ALIBI_ROWS)
    if not torch.equal(pse[..., :-1, :-1].masked_fill(~lower, 0), pse[..., 1:, 1:].masked_fill(~lower, 0)):
        raise Illegal("pse", pse, "constant along diagonals, if only its last 1024 rows are given")
    ago = torch.arange(queries)[:, None] - torch.arange(keys)
    return pse[:, :, -1].to(torch.float32)[..., (size - 1 - ago).clamp_(0, size - 1)]
