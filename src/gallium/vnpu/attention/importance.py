"""How much the attention on compressed blocks of keys gives to each block that may be selected."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.attention.core import Attention, head_parts, row_parts, scores_of


def importance(work: Attention, maximum: Tensor, total: Tensor, per_selected: int, overlap: int, count: int) -> Tensor:
    """[B, Nkv, Sq, count]: for block j the sum over heads of the group, a < per_selected and b < overlap of

    P[per_selected * (j + 1) - a - b], P the probabilities whose maximum and sum [B, N, Sq, 1] are given. Blocks
    before the first and after the last compressed one have P = 0.
    """
    batch, _, queries, keys = work.full_shape
    kv_heads = work.key.shape[1]
    reach = per_selected + overlap - 1
    window = torch.tensor([float(min(t + 1, reach - t, per_selected, overlap)) for t in range(reach)])[None, None]
    found = torch.zeros(batch, kv_heads, queries, count)
    for heads in head_parts(work):
        key = heads.of_keys(work.key)
        for rows in row_parts(work):
            columns, probabilities = scores_of(work, heads, key, rows)
            top, whole = (heads.of_queries(x[:, :, rows.start : rows.stop], kv_heads) for x in (maximum, total))
            probabilities.sub_(top).exp_().div_(whole + (whole == 0))
            shares = torch.nn.functional.pad(probabilities.sum(2), (columns.start, keys - columns.stop))
            # window j covers the keys from per_selected * (j + 1) - reach + 1 to per_selected * (j + 1)
            shares = torch.nn.functional.pad(shares, (overlap - 2, max(0, per_selected * count + 1 - keys)))
            flat = torch.conv1d(shares.flatten(0, 2)[:, None], window, stride=per_selected)[:, 0, :count]
            found[heads.batch, heads.kv, rows.start : rows.stop] = flat.view(*shares.shape[:3], count)
    return found
