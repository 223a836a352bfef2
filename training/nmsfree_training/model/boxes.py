"""Cells, decoding, and overlap of boxes (xyxy, pixels)."""

import torch
from torch import Tensor


def anchor_points(
    shapes: list[tuple[int, int]], strides: tuple[int, ...], device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Centres of all cells and their strides, levels concatenated, rows first.

    `shapes` are (h, w) of every level. Returns points float32 [M, 2] as (x, y) in pixels, and
    strides float32 [M].
    """
    points, cell_strides = [], []
    for (h, w), stride in zip(shapes, strides, strict=True):
        y, x = torch.meshgrid(
            torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij"
        )
        points.append((torch.stack([x, y], dim=-1).reshape(-1, 2) + 0.5) * stride)
        cell_strides.append(torch.full((h * w,), float(stride), device=device))
    return torch.cat(points), torch.cat(cell_strides)


def decode(deltas: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """(dx, dy, dw, dh) [..., M, 4] → boxes xyxy [..., M, 4] in pixels.

    centre = point + (dx, dy) · stride; size = exp(dw, dh) · stride.
    """
    centre = points + deltas[..., :2] * strides[..., None]
    half = deltas[..., 2:].exp() * strides[..., None] * 0.5
    return torch.cat([centre - half, centre + half], dim=-1)


def area(boxes: Tensor) -> Tensor:
    """[..., 4] → [...], square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union areas of boxes that broadcast against each other."""
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    size = (high - low).clamp(min=0)
    intersection = size[..., 0] * size[..., 1]
    return intersection, area(a) + area(b) - intersection


def iou(a: Tensor, b: Tensor, eps: float = 1e-7) -> Tensor:
    """Intersection over union of boxes that broadcast against each other."""
    intersection, union = overlap(a, b)
    return intersection / union.clamp(min=eps)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of every box in `a` [N, G, 4] with every box in `b` [N, M, 4], float [N, G, M].

    The same values as `iou`, but worked out coordinate by coordinate in three arrays of that
    shape, because they are large. Not differentiable.
    """
    ax1, ay1, ax2, ay2 = a[..., None].unbind(dim=2)  # [N, G, 1]
    bx1, by1, bx2, by2 = b.permute(2, 0, 1).contiguous()[:, :, None]  # [N, 1, M]
    shared = torch.minimum(ax2, bx2)
    other = torch.maximum(ax1, bx1)
    shared.sub_(other).clamp_(min=0)
    height = torch.minimum(ay2, by2)
    height.sub_(torch.maximum(ay1, by1, out=other)).clamp_(min=0)
    shared.mul_(height)
    union = torch.add(area(a)[..., None], area(b)[:, None], out=other).sub_(shared)
    return shared.div_(union.clamp_(min=1e-7))


def giou(a: Tensor, b: Tensor, eps: float = 1e-7) -> Tensor:
    """Generalised IoU (Rezatofighi et al., arXiv:1902.09630), −1 … 1."""
    intersection, union = overlap(a, b)
    size = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    hull = (size[..., 0] * size[..., 1]).clamp(min=eps)
    return intersection / union.clamp(min=eps) - (hull - union) / hull
