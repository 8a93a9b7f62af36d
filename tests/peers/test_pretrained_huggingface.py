"""Hugging Face's ViT and DeiT in our networks and back, from disk and from memory."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
from pretrained_testing import assert_same_gradients, assert_same_logits, assert_same_weights, images_of, shake

from lit_models.pretrained import load_pretrained, to_huggingface

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

# 96 wide in 3 heads of 32: the shapes alone cannot tell, config.json does.
SMALL = {
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 160,
    "image_size": 32,
    "patch_size": 8,
    "id2label": {0: "ant", 1: "bee", 2: "cat"},
    "label2id": {"ant": 0, "bee": 1, "cat": 2},
}
SMALL_DEIT = {"hidden_size": 384, "num_hidden_layers": 2, "num_attention_heads": 6, "intermediate_size": 1536}
MODELS = {
    "ViTForImageClassification": "ViTConfig",
    "DeiTForImageClassificationWithTeacher": "DeiTConfig",
    "DeiTForImageClassification": "DeiTConfig",
}


def model_of(name, scale=0.1, **changes):
    config = getattr(transformers, MODELS[name])(**SMALL | changes)
    return shake(getattr(transformers, name)(config), scale)


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_directory(name, tmp_path):
    theirs = model_of(name)
    theirs.save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path)
    ours = loaded.network
    assert loaded.missing == loaded.unused == []
    assert loaded.class_names == ["ant", "bee", "cat"]
    assert_same_logits(theirs, ours, images_of(32))
    assert_same_weights(to_huggingface(ours)[0], load_file(tmp_path / "model.safetensors"))
    assert_same_weights(to_huggingface(ours, layout="memory")[0], theirs.state_dict())
    assert_same_gradients(theirs, ours, lambda network: to_huggingface(network, layout="memory")[0], images_of(32))


@pytest.mark.parametrize("name", MODELS)
def test_back_to_a_model_and_from_its_memory(name, tmp_path):
    """What we write is a directory that Hugging Face reads, and the names of its memory are read as those on disk."""
    theirs = model_of(name)
    torch.save(theirs.state_dict(), tmp_path / "memory.pt")
    ours = load_pretrained(tmp_path / "memory.pt", num_heads=3).network
    hub = tmp_path / "hub"
    hub.mkdir()
    state, config = to_huggingface(ours)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, hub / "model.safetensors", {"format": "pt"})
    (hub / "config.json").write_text(json.dumps(config))
    assert config["architectures"] == [name]
    again = getattr(transformers, name).from_pretrained(hub)
    assert_same_logits(again, theirs, images_of(32))


@pytest.mark.parametrize("name", ["ViTForImageClassification", "DeiTForImageClassificationWithTeacher"])
def test_published_widths(name, tmp_path):
    """ViT-S and DeiT-S distilled at 224 pixels, two layers of them."""
    theirs = model_of(name, 0.05, **SMALL_DEIT, image_size=224, patch_size=16)
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = load_pretrained(tmp_path)
    assert_same_logits(theirs, loaded.network, images_of(224))
    assert_same_gradients(
        theirs, loaded.network, lambda network: to_huggingface(network, layout="memory")[0], images_of(224)
    )


@pytest.mark.parametrize(("epsilon", "named"), [(1e-12, False), (1e-12, True), (1e-2, True)])
def test_row_5_epsilon(epsilon, named, tmp_path):
    """1e-12 unless config.json says otherwise; on tokens of small variance 1e-6 would show."""
    theirs = model_of("ViTForImageClassification", layer_norm_eps=epsilon)
    for parameter in theirs.vit.embeddings.parameters():
        parameter.data *= 1e-3
    theirs.save_pretrained(tmp_path)
    if not named:
        (tmp_path / "config.json").unlink()
    ours = load_pretrained(tmp_path, num_heads=3).network
    assert ours.settings["norm_eps"] == epsilon
    assert_same_logits(theirs, ours, images_of(32))


def test_row_10_positions_resize_without_antialias(tmp_path):
    theirs = model_of("ViTForImageClassification")
    theirs.save_pretrained(tmp_path)
    images = images_of(48)
    with torch.no_grad():
        expected = theirs.eval()(images, interpolate_pos_encoding=True).logits
        actual = load_pretrained(tmp_path, image_size=48).network(images)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


# What an image processor writes, and what it means; older files have plain numbers where newer ones have dictionaries.
PROCESSORS = [
    ({"image_mean": [0.5] * 3, "image_std": [0.4] * 3, "resample": 2, "size": {"height": 32, "width": 32}},
     {"crop": 1.0, "crop_mode": "squash", "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.4,) * 3}),
    ({"resample": 3, "size": 256, "crop_size": 224, "do_center_crop": True},
     {"crop": 0.875, "crop_mode": "center", "interpolation": "bicubic"}),
    ({"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True},
     {"crop": 0.8, "crop_mode": "center"}),
    ({"image_mean": [1.0] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 127.5},
     {"mean": (0.5,) * 3, "std": (0.25,) * 3}),
    ({"do_normalize": False}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}),
]  # fmt: skip


@pytest.mark.parametrize(("processor", "expected"), PROCESSORS)
def test_row_14_the_image_processor_comes_along(processor, expected, tmp_path):
    model_of("ViTForImageClassification").save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    preprocessing = load_pretrained(tmp_path).preprocessing
    for name, value in expected.items():
        assert preprocessing[name] == pytest.approx(value), name


def test_row_14_processors_of_the_library(tmp_path):
    model_of("DeiTForImageClassificationWithTeacher").save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path)
    assert loaded.preprocessing["mean"] == (0.485, 0.456, 0.406)  # facebook/deit-* without its processor's file
    assert loaded.preprocessing["crop"] == 0.875
    transformers.DeiTImageProcessor().save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path)
    assert loaded.preprocessing["mean"] == (0.5, 0.5, 0.5)
    assert (loaded.preprocessing["crop"], loaded.preprocessing["interpolation"]) == (0.875, "bicubic")
    assert any("squashes" in notice for notice in loaded.notices)


def test_a_backbone_without_head(tmp_path):
    config = transformers.ViTConfig(**SMALL)
    shake(transformers.ViTModel(config)).save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path, num_classes=4)
    assert loaded.network.num_classes == 4
    assert loaded.missing == ["head.weight", "head.bias"]
    assert loaded.unused == ["pooler.dense.bias", "pooler.dense.weight"]


def test_what_hugging_face_has_not():
    from lit_models.classification import VisionTransformer

    network = VisionTransformer(3, image_size=16, patch_size=8, dim=64, depth=1, num_heads=1, layer_scale=1e-4)
    with pytest.raises(ValueError, match="layer_scale=0.0001"):
        to_huggingface(network)
