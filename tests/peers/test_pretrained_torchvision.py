"""torchvision's VisionTransformer in our network and back."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from pretrained_testing import assert_same_gradients, assert_same_logits, assert_same_weights, images_of, shake

from lit_models.pretrained import load_pretrained, to_torchvision
from lit_models.pretrained.family import Checkpoint
from lit_models.pretrained.torchvision import TORCHVISION

models = pytest.importorskip("torchvision.models")


def small(**changes):
    """Return a torchvision ViT of two layers and two heads of 64."""
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 128, "mlp_dim": 160}
    return shake(models.VisionTransformer(**sizes | {"num_classes": 7} | changes), 0.1)


def test_both_ways(tmp_path):
    theirs = small()
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    loaded = load_pretrained(tmp_path / "vit.pth")
    assert loaded.missing == loaded.unused == []
    assert_same_weights(to_torchvision(loaded.network), theirs.state_dict())
    assert_same_logits(theirs, loaded.network, images_of(32))
    assert_same_gradients(theirs, loaded.network, to_torchvision, images_of(32))


def test_row_5_epsilon(tmp_path):
    """The rule of the source is 1e-6, which torchvision's own default is; a network of 1e-5 would differ."""
    theirs = small()
    theirs.conv_proj.weight.data *= 1e-3
    theirs.conv_proj.bias.data *= 1e-3
    theirs.encoder.pos_embedding.data *= 1e-3
    theirs.class_token.data *= 1e-3
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    images = images_of(32)
    assert_same_logits(theirs, load_pretrained(tmp_path / "vit.pth").network, images)
    other = small(norm_layer=partial(nn.LayerNorm, eps=1e-5))
    other.load_state_dict(theirs.state_dict())
    with pytest.raises(AssertionError):
        assert_same_logits(other, load_pretrained(tmp_path / "vit.pth").network, images)


def test_row_10_positions_resize_with_aligned_corners(tmp_path):
    theirs = small()
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    resized = models.vision_transformer.interpolate_embeddings(56, 8, theirs.state_dict())
    ours = load_pretrained(tmp_path / "vit.pth", image_size=56).network
    torch.testing.assert_close(ours.positions, resized["encoder.pos_embedding"])
    larger = small(image_size=56)
    larger.load_state_dict(resized)
    assert_same_logits(larger, ours, images_of(56))


def test_row_14_preprocessing_of_published_weights(tmp_path):
    """vit_b_32's transforms are found by its number of parameters, SWAG's by the name of its file."""
    with torch.device("meta"):
        network = models.vit_b_32()
    facts = TORCHVISION.read(Checkpoint(tmp_path / "mine.pth", network.state_dict())).facts
    assert facts.preprocessing == {
        "crop": 0.875, "crop_mode": "center", "interpolation": "bilinear",
        "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
    }  # fmt: skip
    assert facts.class_names[:2] == ["tench", "goldfish"]
    torch.save(small().state_dict(), tmp_path / "vit_b_16_lc_swag-4e70ced5.pth")
    swag = load_pretrained(tmp_path / "vit_b_16_lc_swag-4e70ced5.pth").preprocessing
    assert (swag["crop"], swag["interpolation"]) == (1.0, "bicubic")


def test_a_representation_layer(tmp_path):
    torch.save(small(representation_size=24).state_dict(), tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=r"heads\.pre_logits\.weight.*give num_classes"):
        load_pretrained(tmp_path / "vit.pth")
    loaded = load_pretrained(tmp_path / "vit.pth", num_classes=7)
    assert loaded.missing == ["head.weight", "head.bias"]
    assert any("representation layer" in notice for notice in loaded.notices)
