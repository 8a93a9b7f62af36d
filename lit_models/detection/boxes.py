"""Boxes: two ways to write them, and how much two of them overlap.

All functions compute in float32 at least: in half precision a small box on a large image has no area. None looks at
values, so none waits for the device.
"""

import torch
from torch import Tensor

# Coordinates around 1 are this far apart in float32: no box with sides has a smaller area, and one without sides gets
# an overlap of zero and finite gradients instead of 0 / 0.
_SMALLEST_AREA = torch.finfo(torch.float32).eps ** 2


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Turn boxes (..., 4) of (centre x, centre y, width, height) into (left, top, right, bottom)."""
    centre, size = at_least_float32(boxes).chunk(2, dim=-1)
    return torch.cat((centre - size / 2, centre + size / 2), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Turn boxes (..., 4) of (left, top, right, bottom) into (centre x, centre y, width, height)."""
    first, last = at_least_float32(boxes).chunk(2, dim=-1)
    return torch.cat(((first + last) / 2, last - first), dim=-1)


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the intersection over union of every pair.

    Args:
        boxes: (..., n, 4) as (left, top, right, bottom).
        others: (..., m, 4), the same.

    Returns:
        (..., n, m) in [0, 1]; 0 for two boxes without area.
    """
    intersection, union, _ = _areas(*_pairs(boxes, others))
    return intersection.div_(union)


def generalized_box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the generalised intersection over union of every pair (Rezatofighi et al. 2019).

    https://arxiv.org/abs/1902.09630

    Args:
        boxes: (..., n, 4) as (left, top, right, bottom).
        others: (..., m, 4), the same.

    Returns:
        (..., n, m) in [-1, 1].
    """
    return _generalized(*_pairs(boxes, others))


def generalized_box_iou_pairs(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the generalised intersection over union of each box with the one at its place.

    Args:
        boxes: (..., 4) as (left, top, right, bottom).
        others: (..., 4), the same.

    Returns:
        (...) in [-1, 1].
    """
    return _generalized(_planes(boxes), _planes(others))


def at_least_float32(values: Tensor) -> Tensor:
    """Return half precision as float32 and what is wider as it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _planes(boxes: Tensor) -> Tensor:
    """Return (4, ...): a coordinate's values lie side by side, which is what vector units read."""
    return at_least_float32(boxes).movedim(-1, 0).contiguous()


def _pairs(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    return _planes(boxes)[..., :, None], _planes(others)[..., None, :]


def _generalized(boxes: Tensor, others: Tensor) -> Tensor:
    intersection, union, hull = _areas(boxes, others)
    return intersection.div_(union).add_(union / hull).sub_(1.0)


def _areas(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the areas of intersection, union and smallest box around both, of planes (4, ...) that broadcast."""
    sizes, other_sizes = boxes[2:] - boxes[:2], others[2:] - others[:2]
    # Negative between boxes that are apart. What spans both is their sizes less what they share, or plus the gap.
    width = torch.minimum(boxes[2], others[2]).sub_(torch.maximum(boxes[0], others[0]))
    height = torch.minimum(boxes[3], others[3]).sub_(torch.maximum(boxes[1], others[1]))
    # In place, which autograd follows: with tensors of all pairs, fresh memory is what takes the time.
    hull = (sizes[0] + other_sizes[0]).sub_(width).mul_((sizes[1] + other_sizes[1]).sub_(height))
    intersection = width.clamp_(min=0).mul_(height.clamp_(min=0))
    union = (sizes[0] * sizes[1] + other_sizes[0] * other_sizes[1]).sub_(intersection)
    return intersection, union.clamp_(min=_SMALLEST_AREA), hull.clamp_(min=_SMALLEST_AREA)
