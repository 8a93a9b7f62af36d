"""Swin V1 and V2 of Microsoft, timm, Hugging Face and torchvision in our network and back."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
from pretrained_testing import assert_same_logits, images_of, shake

from lit_models.classification import SwinTransformer
from lit_models.pretrained import load_pretrained, swin_layouts, to_huggingface, to_timm, to_torchvision

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")
models = pytest.importorskip("torchvision.models")
transformers.utils.logging.disable_progress_bar()

# Two stages of maps of 8 x 8 and 4 x 4: windows of 4 are shifted in the first alone.
SMALL = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
PADDING = {
    "official": "microsoft",
    "timm": "timm",
    "disk": "microsoft",
    "memory": "microsoft",
    "torchvision": "torchvision",
}


def timm_model(version, **changes):
    kind = timm.models.SwinTransformer if version == 1 else timm.models.SwinTransformerV2
    return shake(kind(**{"img_size": 32, "num_classes": 5} | SMALL | changes), 0.1)


def official_state(model):
    """Return a timm model's weights as microsoft/Swin-Transformer saves them: mergings earlier, buffers among them."""
    state = model.state_dict() | {name: buffer for name, buffer in model.named_buffers() if "k_bias" not in name}
    return {
        re.sub(r"layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", name)
        .replace("head.fc", "head"): tensor
        for name, tensor in state.items()
    }  # fmt: skip


def huggingface_model(version, **changes):
    settings = {"image_size": 32, "num_labels": 5, **SMALL, "depths": [2, 2], "num_heads": [2, 4]} | changes
    family = ("Swin", "Swinv2")[version - 1]
    model = getattr(transformers, f"{family}ForImageClassification")
    return shake(model(getattr(transformers, f"{family}Config")(**settings)), 0.1)


def torchvision_model(version):
    parts = models.swin_transformer
    second = {"block": parts.SwinTransformerBlockV2, "downsample_layer": parts.PatchMergingV2}
    model = models.SwinTransformer(
        [4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=5, **({} if version == 1 else second)
    )  # fmt: skip
    return shake(model, 0.1)


def save(layout, version, path):
    """Return a model, the file or directory of its weights, and what is in it."""
    if layout in ("official", "timm"):
        model = timm_model(version)
        state = official_state(model) if layout == "official" else model.state_dict()
    elif layout == "torchvision":
        model = torchvision_model(version)
        state = model.state_dict()
    else:
        model = huggingface_model(version)
        if layout == "disk":
            model.save_pretrained(path)
            return model, path, load_file(path / "model.safetensors")
        state = model.state_dict()
    torch.save({"model": state} if layout == "official" else state, path / "weights.pth")
    return model, path / "weights.pth", state


def back(layout, network):
    if layout in ("official", "timm"):
        return to_timm(network, official=layout == "official")
    return to_torchvision(network) if layout == "torchvision" else to_huggingface(network, layout=layout)[0]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("layout", PADDING)
def test_both_ways(layout, version, tmp_path):
    theirs, path, state = save(layout, version, tmp_path)
    silent = version == 2 and layout in ("timm", "memory")  # neither buffers nor a config.json tell the windows
    loaded = load_pretrained(path, window_size=4 if silent else None)
    assert loaded.missing == loaded.unused == []
    settings = loaded.network.settings
    padding = "fixed" if version == 2 and layout in ("disk", "memory") else PADDING[layout]
    assert (settings["padding"], settings["window_size"], settings["version"]) == (padding, 4, version)
    assert settings["pretrained_window_size"] is None
    assert_same_logits(theirs, loaded.network, images_of(32))
    if layout == "official":
        state = {name: tensor for name, tensor in state.items() if not name.endswith(swin_layouts.BUFFERS)}
    if (layout, version) == ("torchvision", 2):  # the keys' bias, which torchvision sets to zero whatever it is
        for name in [name for name in state if name.endswith("qkv.bias")]:
            third = len(state[name]) // 3
            assert state[name][third : 2 * third].any()
            state[name][third : 2 * third] = 0
    written = back(layout, loaded.network)
    assert written.keys() == state.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(written[name], tensor, rtol=0, atol=1e-6 if "coords" in name else 0, msg=name)


@pytest.mark.parametrize("version", [1, 2])
def test_back_to_models(version, tmp_path):
    """What we write is a directory that Hugging Face reads, and torchvision takes all of its state from us."""
    settings = {"dim": 24, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4, "version": version}
    ours = shake(SwinTransformer(5, **settings, pretrained_window_size=3 if version == 2 else None), 0.1)
    theirs = torchvision_model(version)
    theirs.load_state_dict(to_torchvision(ours))
    assert_same_logits(theirs, ours, images_of(32))
    state, config = to_huggingface(ours)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = getattr(transformers, config["architectures"][0]).from_pretrained(tmp_path)
    assert_same_logits(again, ours, images_of(32))


@pytest.mark.parametrize("version", [1, 2])
def test_stages_of_different_windows(version, tmp_path):
    """Built for a map smaller than its window, a stage has a smaller table; V2 was tuned from windows of 6 and 3."""
    trained = {} if version == 1 else {"pretrained_window_sizes": (6, 3)}
    theirs = timm_model(version, window_size=8, **trained)
    torch.save({"model": official_state(theirs)}, tmp_path / "weights.pth")
    loaded = load_pretrained(tmp_path / "weights.pth")
    assert loaded.network.settings["window_size"] == (8, 4)
    assert loaded.network.settings["pretrained_window_size"] == ((6, 3) if version == 2 else None)
    assert loaded.preprocessing["image_size"] == 32  # no mask tells, the last window does
    assert_same_logits(theirs, loaded.network, images_of(32))


def test_row_7_padding_comes_along(tmp_path):
    """A map of 11 x 11 and one of 6 x 6, which windows of 4 do not divide."""
    theirs, path, _ = save("disk", 1, tmp_path)
    assert_same_logits(theirs, load_pretrained(path).network, images_of(44))


# At 32 pixels the maps are of 8 x 8 and 4 x 4 positions, at 16 of 4 x 4 and 2 x 2, at 80 of 20 x 20 and 10 x 10.
@pytest.mark.parametrize(("native", "unshifted"), [(16, 2), (32, 1), (80, 0)])
def test_hugging_faces_v2_is_made_for_one_size(native, unshifted, tmp_path):
    """It never shifts a stage whose map was one window at that size, and makes no window smaller at another."""
    theirs = huggingface_model(2, image_size=native)
    theirs.save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path)
    settings = loaded.network.settings
    assert (settings["padding"], settings["unshifted_stages"]) == ("fixed", unshifted)
    for size in (native, (74, 59), (20, 12)):
        assert_same_logits(theirs, loaded.network, images_of(size))
    state, config = to_huggingface(loaded.network)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = transformers.Swinv2ForImageClassification.from_pretrained(tmp_path)
    assert_same_logits(again, loaded.network, images_of((74, 59)))


def test_hugging_faces_v2_in_other_windows(tmp_path):
    """A network of that size with those windows has the same weights."""
    theirs = huggingface_model(2)
    theirs.save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path, window_size=8, image_size=32)
    larger = huggingface_model(2, window_size=8, pretrained_window_sizes=[4, 4])
    larger.load_state_dict(theirs.state_dict())
    assert loaded.network.settings["padding"] == "microsoft"
    assert_same_logits(larger, loaded.network, images_of(32))


def test_windows_of_v1_are_resized_by_head(tmp_path):
    """By the formula of the official code, which is timm's simple one."""
    theirs = timm_model(1)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    loaded = load_pretrained(tmp_path / "weights.pth", window_size=(7, 3), image_size=56)
    assert loaded.network.settings["window_size"] == (7, 3)
    assert any("4 becomes (7, 3): the bias tables are resized" in notice for notice in loaded.notices)
    for stage, window in enumerate((7, 3)):
        table = theirs.layers[stage].blocks[1].attn.relative_position_bias_table
        expected = timm.layers.resize_rel_pos_bias_table_simple(table, (window,) * 2, ((2 * window - 1) ** 2, 0))
        torch.testing.assert_close(loaded.network.stages[stage].layers[1].attention.bias_table, expected)


def test_windows_of_v2_are_asked_of_the_mlp(tmp_path):
    theirs = timm_model(2)
    torch.save({"model": official_state(theirs)}, tmp_path / "weights.pth")
    loaded = load_pretrained(tmp_path / "weights.pth", window_size=8, image_size=64)
    larger = timm_model(2, img_size=64, window_size=8, pretrained_window_sizes=(4, 4))
    larger.load_state_dict(theirs.state_dict())
    assert loaded.network.settings["pretrained_window_size"] == 4
    assert loaded.preprocessing["image_size"] == 64
    assert_same_logits(larger, loaded.network, images_of(64))


def test_a_v2_file_that_does_not_tell_its_windows(tmp_path):
    theirs = timm_model(2, img_size=64, window_size=8)
    path = tmp_path / "weights.pth"
    torch.save(theirs.state_dict(), path)
    loaded = load_pretrained(path)
    assert any("window_size 8 is assumed: give window_size" in notice for notice in loaded.notices)
    assert_same_logits(theirs, loaded.network, images_of(64))
    loaded = load_pretrained(path, window_size=4, pretrained_window_size=8)
    assert (loaded.network.settings["window_size"], loaded.network.settings["pretrained_window_size"]) == (4, 8)
    named = tmp_path / "swinv2_small_window3to4_24to32.pth"
    torch.save(theirs.state_dict(), named)
    settings = load_pretrained(named).network.settings
    assert (settings["window_size"], settings["pretrained_window_size"]) == (4, 3)
    with pytest.raises(ValueError, match=r"pretrained_window_size 8 was given, but the file says 3"):
        load_pretrained(named, pretrained_window_size=8)


def test_a_directory_of_timm(tmp_path):
    model = timm_model(2, img_size=64, window_size=(4, 4), pretrained_window_sizes=(3, 3))
    model.pretrained_cfg = {"architecture": "swinv2_tiny_window8_256", "input_size": (3, 64, 64), "crop_pct": 0.95}
    config = {"architecture": "swinv2_tiny_window8_256", "pretrained_cfg": model.pretrained_cfg}
    config["model_args"] = {"window_size": [4, 4], "pretrained_window_sizes": [3, 3]}
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_pretrained(tmp_path)
    assert (loaded.preprocessing["crop"], loaded.preprocessing["image_size"]) == (0.95, 64)
    assert_same_logits(model, loaded.network, images_of(64))
    config.pop("model_args")  # then the name of the architecture says it
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_pretrained(tmp_path).network.settings["window_size"] == 8


PUBLISHED = {
    "timm V1": ("swin_tiny", swin_layouts.TIMM, lambda: timm.create_model("swin_tiny_patch4_window7_224")),
    "timm V2": ("swinv2_tiny", swin_layouts.TIMM, lambda: timm.create_model("swinv2_tiny_window8_256")),
    "torchvision V1": ("swin_tiny", swin_layouts.TORCHVISION, models.swin_t),
    "torchvision V2": ("swinv2_base", swin_layouts.TORCHVISION, models.swin_v2_b),
    "Hugging Face V1": ("swin_tiny", swin_layouts.hugging_face("swin.", version=1, memory=True),
        lambda: transformers.SwinForImageClassification(transformers.SwinConfig(num_labels=1000))),
    "Hugging Face V2": ("swinv2_tiny", swin_layouts.hugging_face("swinv2.", version=2, memory=True),
        lambda: transformers.Swinv2ForImageClassification(transformers.Swinv2Config(num_labels=1000))),
}  # fmt: skip


@pytest.mark.parametrize("source", PUBLISHED)
def test_published_shapes(source):
    """Names and shapes of the real networks; nothing is computed."""
    size, layout, make = PUBLISHED[source]
    with torch.device("meta"):
        weights = layout.read(make().state_dict())
        ours = SwinTransformer.of_size(size, 1000)
    assert not weights.unused
    shapes = {name: tensor.shape for name, tensor in weights.tensors.items()}
    assert shapes == {name: tensor.shape for name, tensor in ours.state_dict().items()}


def test_absolute_positions_are_refused(tmp_path):
    torch.save(
        {"model": official_state(timm_model(1)) | {"absolute_pos_embed": torch.zeros(1, 64, 24)}}, tmp_path / "w.pth"
    )
    with pytest.raises(ValueError, match=r"w\.pth: .*would compute something else without them: absolute_pos_embed"):
        load_pretrained(tmp_path / "w.pth")
    huggingface_model(1, use_absolute_embeddings=True).save_pretrained(tmp_path / "hub")
    with pytest.raises(ValueError, match=r"without them: swin\.embeddings\.position_embeddings"):
        load_pretrained(tmp_path / "hub")


def test_a_config_of_another_network(tmp_path):
    _, path, _ = save("disk", 2, tmp_path)
    config = json.loads((path / "config.json").read_text())
    for change, message in (
        ({"depths": [2, 6]}, r"config\.json has depths \[2, 6\], but the weights have 4 layers"),
        ({"embed_dim": 96}, "config.json has embed_dim 96, but the weights have 24"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps 1e-06"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
    ):
        (path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            load_pretrained(path)
