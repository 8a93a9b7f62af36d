"""timm's ViT, DeiT, DeiT-III and CaiT in our networks and back: logits, one-step gradients, and bit-equal weights."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from pretrained_testing import assert_same_gradients, assert_same_logits, assert_same_weights, images_of, shake

from lit_models.pretrained import load_pretrained, to_timm

timm = pytest.importorskip("timm")

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2, "num_classes": 7}
# What each case is for; the widths, heads and tables are those of the published models, the depth is cut.
REAL = {
    "vit_small_patch16_224": {"depth": 2},
    "deit_small_distilled_patch16_224": {"depth": 2},
    "deit3_small_patch16_224": {"depth": 2},
    "cait_xxs24_224": {"depth": 2},
}
VARIANTS = {
    "reg_tokens without positions, average, fc_norm": {"reg_tokens": 4, "no_embed_class": True, "global_pool": "avg"},
    "reg_tokens with positions": {"reg_tokens": 3},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "q_norm and k_norm": {"qk_norm": True},
    "qkv without bias": {"qkv_bias": False},
    "a feed-forward width that is no multiple": {"mlp_ratio": 2.7},
    "positions for patches alone": {"no_embed_class": True, "init_values": 1e-4},
    "rectangular patches": {"patch_size": (8, 16)},
}


def saved(model, tmp_path, **around):
    path = tmp_path / "weights.pth"
    torch.save(around | {"state_dict": model.state_dict()} if around else model.state_dict(), path)
    return path


@pytest.mark.parametrize("name", REAL)
def test_published_shapes(name, tmp_path):
    theirs = shake(timm.create_model(name, **REAL[name]))
    loaded = load_pretrained(saved(theirs, tmp_path))
    assert loaded.missing == loaded.unused == []
    assert_same_weights(to_timm(loaded.network), theirs.state_dict())
    images = images_of(224)
    assert_same_logits(theirs, loaded.network, images)
    assert_same_gradients(theirs, loaded.network, to_timm, images)


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "cait_xxs24_224"])
def test_full_depth(name, tmp_path):
    theirs = shake(timm.create_model(name), 0.02)
    ours = load_pretrained(saved(theirs, tmp_path)).network
    assert_same_logits(theirs, ours, images_of(224, batch=1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant, tmp_path):
    theirs = shake(timm.models.VisionTransformer(**SMALL | VARIANTS[variant]), 0.1)
    size = (32, 32)
    loaded = load_pretrained(saved(theirs, tmp_path), image_size=size)
    assert loaded.missing == loaded.unused == []
    assert_same_weights(to_timm(loaded.network), theirs.state_dict())
    assert_same_logits(theirs, loaded.network, images_of(size))


def test_row_5_epsilon(tmp_path):
    """1e-6, not torch's 1e-5: on tokens of small variance the two differ by far more than the tolerance."""
    theirs = shake(timm.models.VisionTransformer(**SMALL), 0.1)
    for module in theirs.modules():
        if isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-6
    theirs.patch_embed.proj.weight.data *= 1e-3
    theirs.patch_embed.proj.bias.data *= 1e-3
    theirs.pos_embed.data *= 1e-3
    theirs.cls_token.data *= 1e-3
    ours = load_pretrained(saved(theirs, tmp_path)).network
    assert ours.settings["norm_eps"] == 1e-6
    assert_same_logits(theirs, ours, images_of(32))


@pytest.mark.parametrize("size", [64, 48, (24, 40)])
@pytest.mark.parametrize("distilled", [False, True])
def test_row_10_positions_resize_as_timm_does(distilled, size, tmp_path):
    """timm antialiases, which differs even when the table grows."""
    kind = timm.models.deit.VisionTransformerDistilled if distilled else timm.models.VisionTransformer
    theirs = shake(kind(**SMALL), 0.1)
    path = saved(theirs, tmp_path)
    pair = (size, size) if isinstance(size, int) else size
    loaded = load_pretrained(path, image_size=size)
    theirs.set_input_size(img_size=pair)
    torch.testing.assert_close(loaded.network.positions, theirs.pos_embed)
    assert_same_logits(theirs, loaded.network, images_of(pair))
    assert loaded.preprocessing["image_size"] == size


@pytest.mark.parametrize("model", ["vit", "deit", "cait"])
def test_row_10_official_positions_resize_without_antialias(model, tmp_path):
    kinds = {
        "vit": partial(timm.models.VisionTransformer, init_values=1e-4, no_embed_class=True),
        "deit": timm.models.deit.VisionTransformerDistilled,
        "cait": timm.models.cait.Cait,
    }
    theirs = shake(kinds[model](**SMALL), 0.1)
    torch.save({"model": theirs.state_dict()}, tmp_path / "official.pth")
    loaded = load_pretrained(tmp_path / "official.pth", image_size=64)
    prefix = 2 if model == "deit" else 0
    grid = theirs.pos_embed[:, prefix:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(grid, size=(8, 8), mode="bicubic", align_corners=False).flatten(2).mT
    torch.testing.assert_close(loaded.network.positions[:, prefix:], expected)
    torch.testing.assert_close(loaded.network.positions[:, :prefix], theirs.pos_embed[:, :prefix])


def test_official_deit_3_and_cait_names(tmp_path):
    """gamma_1 for ls1.gamma, and CaiT's module. prefix; both go back to their authors' names."""
    theirs = shake(timm.models.VisionTransformer(**SMALL, init_values=1e-4, no_embed_class=True), 0.1)
    scale = {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"}
    state = theirs.state_dict()
    official = {}
    for name, tensor in state.items():
        for old, new in scale.items():
            name = name.replace(old, new)
        official[name] = tensor
    torch.save({"model": official}, tmp_path / "deit_3.pth")
    loaded = load_pretrained(tmp_path / "deit_3.pth")
    assert "official DeiT-III" in loaded.source
    assert_same_logits(theirs, loaded.network, images_of(32))
    assert_same_weights(to_timm(loaded.network, official=True), official)
    assert_same_weights(to_timm(loaded.network), state)

    cait = shake(timm.models.cait.Cait(**SMALL), 0.1)
    torch.save({"model": {f"module.{name}": tensor for name, tensor in cait.state_dict().items()}}, tmp_path / "s.pth")
    loaded = load_pretrained(tmp_path / "s.pth")
    assert "official CaiT" in loaded.source
    assert_same_logits(cait, loaded.network, images_of(32))


def test_a_directory_of_the_hub(tmp_path):
    """timm's own save_for_hf: its config.json says what the shapes cannot."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_heads=2, num_classes=5)
    shake(model, 0.1)
    data = {"mean": (0.5, 0.5, 0.5), "std": (0.4, 0.5, 0.6), "crop_pct": 0.95, "interpolation": "bilinear"}
    names = ["ant", "bee", "cat", "dog", "eel"]
    timm.models.save_for_hf(
        model, tmp_path, safe_serialization=True, data_config=data, model_config={"label_names": names}
    )
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_args"]["num_heads"] == 2  # 96 wide: the shapes alone would say 3 of 64
    loaded = load_pretrained(tmp_path)
    assert loaded.class_names == names
    assert loaded.preprocessing == {
        "image_size": 32, "crop": 0.95, "crop_mode": "center", "interpolation": "bilinear",
        "mean": (0.5, 0.5, 0.5), "std": (0.4, 0.5, 0.6),
    }  # fmt: skip
    assert_same_logits(model, loaded.network, images_of(32))
