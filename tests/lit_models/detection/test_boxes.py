"""Boxes against torchvision and plain arithmetic, with gradients, in half precision and without area."""

import pytest
import torch
from torchvision import ops

from lit_models.detection.boxes import (
    box_iou,
    cxcywh_to_xyxy,
    generalized_box_iou,
    generalized_box_iou_pairs,
    xyxy_to_cxcywh,
)


def random_boxes(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    first = torch.rand(*shape, 2, generator=generator, dtype=torch.float64)
    return torch.cat((first, first + 0.01 + torch.rand(*shape, 2, generator=generator, dtype=torch.float64)), -1)


def test_conversions_are_torchvisions_and_each_others_inverse():
    boxes = random_boxes(3, 5)
    centred = xyxy_to_cxcywh(boxes)
    torch.testing.assert_close(centred, ops.box_convert(boxes, "xyxy", "cxcywh"), rtol=0, atol=1e-15)
    torch.testing.assert_close(cxcywh_to_xyxy(centred), boxes, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(box_iou, ops.box_iou), (generalized_box_iou, ops.generalized_box_iou)], ids=["iou", "giou"]
)
def test_pairwise_overlap_and_gradient_are_torchvisions(ours, theirs):
    boxes, others = random_boxes(7), random_boxes(9, seed=1) + 0.3
    others[0] = boxes[0]  # the same box
    others[1] = boxes[1] + 5.0  # far away
    others[2, :2], others[2, 2:] = boxes[2, :2] + 0.001, boxes[2, 2:] - 0.001  # inside
    pairs = [(function, boxes.clone().requires_grad_()) for function in (ours, theirs)]
    values = [function(leaf, others) for function, leaf in pairs]
    torch.testing.assert_close(*values, rtol=1e-12, atol=1e-12)
    weights = torch.rand_like(values[0])
    weights[0, 0] = 0.0  # at two equal boxes the derivative jumps
    (a,), (b,) = (
        torch.autograd.grad((value * weights).sum(), leaf) for value, (_, leaf) in zip(values, pairs, strict=True)
    )
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_leading_dimensions_broadcast_and_pairs_are_the_diagonal():
    boxes, others = random_boxes(4, 2, 6), random_boxes(2, 6, seed=1)
    matrix = generalized_box_iou(others, boxes)
    assert matrix.shape == (4, 2, 6, 6)
    torch.testing.assert_close(matrix.diagonal(dim1=-2, dim2=-1), generalized_box_iou_pairs(boxes, others))
    torch.testing.assert_close(matrix[3, 1], ops.generalized_box_iou(others[1], boxes[3, 1]))
    assert generalized_box_iou(others[:, :0], boxes).shape == (4, 2, 0, 6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    # Notes, row 11: 1e-3 x 1e-3 of an image underflows in float16 products, and cdist has no half.
    boxes = torch.tensor([[0.5, 0.5, 1e-3, 1e-3]], dtype=dtype)
    corners = cxcywh_to_xyxy(boxes)
    assert corners.dtype == torch.float32
    assert box_iou(corners, corners).item() == pytest.approx(1.0, abs=1e-3)


def test_boxes_without_area_have_no_overlap_and_finite_gradients():
    empty = torch.tensor([[0.5, 0.5, 0.5, 0.5]], requires_grad=True)
    for other in (torch.zeros(1, 4), empty.detach(), torch.tensor([[0.2, 0.2, 0.8, 0.8]])):
        value = generalized_box_iou_pairs(empty, other)
        (gradient,) = torch.autograd.grad(value.sum(), empty)
        assert torch.isfinite(value).all() and torch.isfinite(gradient).all()
        assert box_iou(empty, other).item() == 0.0
