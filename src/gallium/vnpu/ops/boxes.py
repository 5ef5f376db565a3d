"""Regions of interest and how much boxes overlap."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gallium.vnpu.checks import check_choice, check_dims, check_family
from gallium.vnpu.refusals import Illegal
from gallium.vnpu.registry import only, op
from gallium.vnpu.writing import write

# roi_end_mode. 0 and 3: what torch_npu.contrib.module.ROIAlign passes for aligned=False and True. 1: op-plugin's
# test_roi_align_backward. 2 is in no public source.
NOT_ALIGNED, END_PLUS_ONE, ALIGNED = 0, 1, 3
CIOU_EPSILON = 1e-9
CIOU_COLUMNS = 1024


@op("ROIAlign")
def roi_align(
    features: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sample_num: int,
    roi_end_mode: int,
    out: Tensor,
) -> None:
    """Mean of bilinear samples in each bin of each region. rois [n, 5]: image, x0, y0, x1, y1."""
    pooled = pooled_height, pooled_width
    for result, roi in zip(out, rois.tolist(), strict=True):
        image = features[int(roi[0])].float()
        rows, columns = _weights(roi, spatial_scale, pooled, sample_num, roi_end_mode, image.shape[-2:])
        write(result, rows @ image @ columns.T)


@op("ROIAlignBackward")
def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    features_shape: tuple[int, ...],
    pooled_width: int,
    pooled_height: int,
    spatial_scale: float,
    sample_num: int,
    roi_end_mode: int,
    grad_features: Tensor,
) -> None:
    """The gradient of ROIAlign."""
    total = torch.zeros(features_shape)
    pooled = pooled_height, pooled_width
    for grad, roi in zip(grad_output, rois.tolist(), strict=True):
        rows, columns = _weights(roi, spatial_scale, pooled, sample_num, roi_end_mode, total.shape[-2:])
        total[int(roi[0])] += rows.T @ grad.float() @ columns
    write(grad_features, total)


def _weights(
    roi: list[float], scale: float, pooled: tuple[int, int], samples: int, mode: int, size: torch.Size
) -> tuple[Tensor, Tensor]:
    """The weight of each row of the image in each row of the result, and of each column: bilinear means separate."""
    only("roi_end_mode", mode, NOT_ALIGNED, END_PLUS_ONE, ALIGNED)
    x0, y0, x1, y1 = roi[1:]
    longer, shift = float(mode == END_PLUS_ONE), 0.5 if mode == ALIGNED else 0.0
    return (
        _axis(y0 * scale - shift, (y1 + longer) * scale - shift, mode, pooled[0], samples, size[0]),
        _axis(x0 * scale - shift, (x1 + longer) * scale - shift, mode, pooled[1], samples, size[1]),
    )


def _axis(start: float, end: float, mode: int, bins: int, samples: int, size: int) -> Tensor:
    length = end - start if mode == ALIGNED else max(end - start, 1.0)
    count = samples if samples > 0 else max(1, math.ceil(length / bins))
    position = start + (torch.arange(bins * count) + 0.5) * (length / bins / count)
    inside = (position >= -1) & (position <= size)
    position = position.clamp(0, size - 1)
    low = position.floor()
    share = position - low
    weight = torch.zeros(bins * count, size)
    each = torch.arange(bins * count)
    weight[each, low.long()] += (1 - share) * inside
    weight[each, (low.long() + 1).clamp(max=size - 1)] += share * inside
    return weight.view(bins, count, size).mean(1)


@op("Iou")
def iou(boxes: Tensor, gtboxes: Tensor, mode: str, eps: float, aligned: bool, overlap: Tensor) -> None:
    """[boxes, gtboxes]: the overlap by the union (iou) or by the second box (iof); eps is added to each length.

    Corners x0, y0, x1, y1. The place of eps follows from the figures of op-plugin's test_iou on the 950.
    """
    check_family("Iou", "950")
    check_choice("mode", mode, ("iou", "iof"))
    only("aligned", aligned, False)
    a, b = boxes.float()[:, None], gtboxes.float()[None]
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    common = (high - low + eps).clamp(min=0).prod(-1)
    area_a, area_b = ((box[..., 2:] - box[..., :2] + eps).prod(-1) for box in (a, b))
    write(overlap, common / (area_b if mode == "iof" else area_a + area_b - common))


@op("CIoU")
def ciou(
    boxes: Tensor, gtboxes: Tensor, trans: bool, is_cross: bool, mode: str, overlap: Tensor, atan_sub: Tensor
) -> None:
    """Complete IoU of pairs of boxes [4, n]: centre x, centre y, width, height (op-plugin's test_ciou)."""
    check_family("CIoU", "950")
    check_dims("self", boxes, 2, 2)
    only("trans", trans, True)
    only("mode", mode, "iou")
    if is_cross or boxes.shape[1] % CIOU_COLUMNS or gtboxes.shape[1] % CIOU_COLUMNS:
        legal = f"False, and the number of boxes a multiple of {CIOU_COLUMNS} (docs: torch_npu.npu_ciou)"
        raise Illegal("is_cross and the number of boxes", (is_cross, boxes.shape[1], gtboxes.shape[1]), legal)
    a, b = boxes.float(), gtboxes.float()
    low = torch.stack([t[:2] - t[2:] / 2 for t in (a, b)])
    high = torch.stack([t[:2] + t[2:] / 2 for t in (a, b)])
    common = (high.amin(0) - low.amax(0)).clamp(min=0).prod(0)
    width, height = (high - low)[:, 0], (high - low)[:, 1] + CIOU_EPSILON
    ratio = common / ((width * height).sum(0) - common + CIOU_EPSILON)
    diagonal = (high.amax(0) - low.amin(0)).square().sum(0) + CIOU_EPSILON
    distance = (low + high).diff(dim=0)[0].square().sum(0) / 4
    angle = torch.atan(width / height).diff(dim=0)[0]
    shape_term = (4 / math.pi**2) * angle.square()
    weight = shape_term / (1 + CIOU_EPSILON - ratio + shape_term)
    write(overlap, (ratio - distance / diagonal - shape_term * weight)[None])
    write(atan_sub, angle[None])
