"""What the searches do their own way to be fast on a CPU gives what PyTorch's functions give."""

import math

import pytest
import torch

from lit_models.translation.hypotheses import log_softmax_
from lit_models.translation.search import largest


@pytest.mark.parametrize("columns", [100, 2048, 2100, 5003])
@pytest.mark.parametrize("count", [1, 10, 90])
def test_largest_is_topk(columns, count):
    values = torch.randn(7, columns)
    values[0, ::3] = -math.inf
    values[1, 5:] = -math.inf
    values[2, -1], values[2, -300 % columns] = 50.0, 60.0
    expected, found = values.topk(count), largest(values, count)
    assert torch.equal(found[0], expected.values)
    assert torch.equal(values.gather(1, found[1]), expected.values)
    assert all(len(row.unique()) == count for row in found[1])


def test_log_softmax_in_place():
    logits = torch.randn(70, 8200)
    logits[:, 5] = -math.inf
    expected = logits.log_softmax(-1)
    assert torch.equal(log_softmax_(logits), expected)
    assert log_softmax_(torch.randn(3, 8, dtype=torch.bfloat16)).dtype == torch.float32
