import pytest
import torch

from datamodules.image import normalize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_it_is_the_formula():
    images = torch.randint(0, 256, (3, 3, 5, 7), dtype=torch.uint8)
    images[0, :, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    expected = (images.double() / 255 - mean) / std
    found = normalize(images, MEAN, STD)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-6)


def test_channels_last_stays():
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8).to(memory_format=torch.channels_last)
    assert normalize(images, MEAN, STD).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2, 2, dtype=torch.uint8)])
def test_what_is_not_bytes_of_three_channels_is_refused(images):
    with pytest.raises(ValueError, match=r"must be \(batch, 3, height, width\) and torch.uint8"):
        normalize(images, MEAN, STD)


def test_a_standard_deviation_of_zero_is_refused():
    with pytest.raises(ValueError, match="std"):
        normalize(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), MEAN, (0.2, 0.0, 0.2))
