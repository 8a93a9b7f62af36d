"""Public checkpoints without the libraries they come from: wrappers, rules, heads, and every way to be wrong."""

import json
from argparse import Namespace

import pytest
import torch
from torch import nn

from lit_models.classification import CaiT, VisionTransformer
from lit_models.pretrained import load_pretrained, to_huggingface, to_timm, to_torchvision
from lit_models.pretrained.rules import imagenet_class_names

SMALL = {"image_size": 32, "patch_size": 8, "dim": 64, "depth": 2, "num_heads": 1}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def vit(num_classes=3, **changes):
    return VisionTransformer(num_classes, **SMALL | changes)


def cait(num_classes=3, **changes):
    return CaiT(num_classes, **{**SMALL, "dim": 96, "num_heads": 2} | changes)


@pytest.fixture
def save(tmp_path):
    def write(content, name="weights.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


def assert_equal(network, state):
    assert all(torch.equal(tensor, state[name]) for name, tensor in to_timm(network).items())


WRAPPED = {
    "official": lambda state: {"model": state, "optimizer": {}, "epoch": 3},
    "timm run": lambda state: {"state_dict": state, "arch": "vit", "args": Namespace(mean=None)},
    "averaged alone": lambda state: {"state_dict_ema": state},
    "averaged": lambda state: {"model": state, "model_ema": {name: -tensor for name, tensor in state.items()}},
    "data parallel": lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
    "compiled": lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
    "compiled and parallel": lambda state: {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
    "Lightning": lambda state: {
        "state_dict": {f"model.{name}": tensor for name, tensor in state.items()} | {"loss.weight": torch.ones(3)}
    },
    "Lightning, compiled": lambda state: {f"network._orig_mod.{name}": tensor for name, tensor in state.items()},
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrappers(wrapper, save):
    state = to_timm(vit(distilled=True))
    loaded = load_pretrained(save(WRAPPED[wrapper](state)))
    assert_equal(loaded.network, state)
    assert loaded.unused == (["loss.weight"] if wrapper == "Lightning" else [])
    assert not loaded.network.training
    assert any("model_ema" in notice for notice in loaded.notices) == (wrapper == "averaged")


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "legacy"])
def test_kinds_of_files(suffix, tmp_path):
    """What a file is decides, not what it is called; half precision becomes float32."""
    from safetensors.torch import save_file

    state = {name: tensor.half() for name, tensor in to_timm(vit()).items()}
    path = tmp_path / "weights.bin"
    if suffix == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=suffix == "pth")
    network = load_pretrained(path).network
    assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32}
    assert_equal(network, {name: tensor.float() for name, tensor in state.items()})


# Rows 5, 10 and 14 of the notes' list of mistakes: epsilon, antialias, crop of each source.
# wrap, network -> epsilon, antialias, crop, drop-path mode
RULES = {
    "official DeiT": (True, vit, {}, (1e-6, False, 0.875, "linear")),
    "official DeiT at 384": (True, vit, {"image_size": 384, "patch_size": 96}, (1e-6, False, 1.0, "linear")),
    "official DeiT-III": (True, vit, {"layer_scale": 1e-4, "prefix_positions": False}, (1e-6, False, 1.0, "constant")),
    "official CaiT": (True, cait, {}, (1e-6, False, 1.0, None)),
    "timm DeiT": (False, vit, {}, (1e-6, True, 0.9, "linear")),
    "timm DeiT at 384": (False, vit, {"image_size": 384, "patch_size": 96}, (1e-6, True, 1.0, "linear")),
    "timm DeiT-III": (False, vit, {"layer_scale": 1e-4, "prefix_positions": False}, (1e-6, True, 1.0, "constant")),
    "timm CaiT": (False, cait, {}, (1e-6, True, 1.0, None)),
}


@pytest.mark.parametrize("source", RULES)
def test_rows_5_10_14_rules_of_each_source(source, save):
    official, make, changes, (epsilon, antialias, crop, mode) = RULES[source]
    state = to_timm(make(**changes), official=official)
    loaded = load_pretrained(save({"model": state} if official else state))
    settings, prepared = loaded.network.settings, loaded.preprocessing
    assert (settings["norm_eps"], settings["position_antialias"]) == (epsilon, antialias)
    assert (prepared["crop"], prepared["crop_mode"], prepared["interpolation"]) == (crop, "center", "bicubic")
    assert (prepared["mean"], prepared["std"]) == IMAGENET
    assert settings.get("drop_path_mode") == mode


def test_row_14_larger_images_keep_the_whole(save):
    """DeiT evaluates at 384 pixels without a crop, so positions resized to 384 come with a crop of 1."""
    path = save({"model": to_timm(vit(patch_size=32))})
    loaded = load_pretrained(path, image_size=384)
    assert (loaded.preprocessing["image_size"], loaded.preprocessing["crop"]) == (384, 1.0)
    assert loaded.network.image_size == (384, 384)


def test_what_a_run_says_of_itself_wins(save):
    run = Namespace(
        mean=[0.1, 0.2, 0.3], std=[0.5, 0.5, 0.5], crop_pct=0.95, interpolation="bilinear", crop_mode="squash"
    )
    loaded = load_pretrained(save({"state_dict": to_timm(vit()), "args": run}))
    assert loaded.preprocessing == {
        "image_size": 32, "crop": 0.95, "crop_mode": "squash", "interpolation": "bilinear",
        "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5),
    }  # fmt: skip
    run.interpolation = "lanczos"
    loaded = load_pretrained(save({"state_dict": to_timm(vit()), "args": run}))
    assert loaded.preprocessing["interpolation"] == "bicubic"
    assert "lanczos" in loaded.report()


def test_mean_and_std_that_nobody_stated_are_noticed(save):
    """A plain ViT in timm's names may be one of AugReg, with means of 0.5; a distilled one is Facebook's."""
    assert "assumed" in load_pretrained(save(to_timm(vit()))).report()
    assert "assumed" not in load_pretrained(save(to_timm(vit(distilled=True)))).report()
    assert "assumed" not in load_pretrained(save({"model": to_timm(vit())})).report()


@pytest.mark.parametrize("distilled", [False, True])
def test_a_head_of_another_size(distilled, save):
    state = to_timm(vit(distilled=distilled))
    loaded = load_pretrained(save(state), num_classes=5)
    heads = ["head", "head_distillation"] if distilled else ["head"]
    assert loaded.missing == [f"{head}.{kind}" for head in heads for kind in ("weight", "bias")]
    assert len(loaded.unused) == 2 * len(heads)
    assert loaded.network(torch.zeros(1, 3, 32, 32)).shape == (1, 5)
    report = loaded.report()
    assert "3 classes and 5 are wanted" in report and "freshly initialised: head.weight" in report
    assert "left out" in load_pretrained(save(state), num_classes=0).report()
    same = load_pretrained(save(state), num_classes=3)
    assert same.missing == [] and torch.equal(same.network.head.weight, state["head.weight"])


def test_no_head(save):
    state = {name: tensor for name, tensor in to_timm(vit()).items() if not name.startswith("head")}
    loaded = load_pretrained(save(state))
    assert loaded.network.num_classes == 0 and "give num_classes" in loaded.report()
    assert load_pretrained(save(state), num_classes=4).missing == ["head.weight", "head.bias"]


def test_class_names(save):
    loaded = load_pretrained(save(to_timm(vit(1000))))
    assert loaded.class_names[:2] == ["tench", "goldfish"] and len(loaded.class_names) == 1000
    assert loaded.class_names == list(imagenet_class_names())
    assert load_pretrained(save(to_timm(vit(7)))).class_names is None
    # A fresh head of 1,000 classes is not ImageNet's.
    assert load_pretrained(save(to_timm(vit(7))), num_classes=1000).class_names is None
    assert "ImageNet-21k" in load_pretrained(save(to_timm(vit(21843)))).report()


def test_num_heads(save):
    """64 wide heads are the rule; what no rule tells must be said."""
    assert load_pretrained(save(to_timm(vit(dim=192, num_heads=1)))).network.settings["num_heads"] == 3
    narrow = save(to_timm(vit(dim=48, num_heads=3)))
    with pytest.raises(ValueError, match="48 is no multiple of 64: give num_heads"):
        load_pretrained(narrow)
    assert load_pretrained(narrow, num_heads=3).network.settings["num_heads"] == 3
    with pytest.raises(ValueError, match="num_heads 5 does not divide"):
        load_pretrained(narrow, num_heads=5)
    normed = save(to_timm(vit(dim=48, num_heads=3, qk_norm=True)))
    assert load_pretrained(normed).network.settings["num_heads"] == 3
    with pytest.raises(ValueError, match="num_heads 4 was given"):
        load_pretrained(normed, num_heads=4)
    assert load_pretrained(save(to_timm(cait()))).network.settings["num_heads"] == 2
    with pytest.raises(ValueError, match=r"num_heads 4 was given, but 'blocks\.0\.attn\.proj_l\.weight' mixes 2"):
        load_pretrained(save(to_timm(cait())), num_heads=4)


def test_a_grid_that_is_not_square(save):
    network = vit(image_size=(24, 56)).eval()
    path = save(to_timm(network))
    with pytest.raises(ValueError, match=r"'pos_embed' has shape \(1, 22, 64\).*give the image_size"):
        load_pretrained(path)
    loaded = load_pretrained(path, image_size=(24, 56))
    assert loaded.network.image_size == (24, 56)
    assert torch.equal(loaded.network.positions, network.positions)


def test_the_report_is_complete(save):
    state = to_timm(vit()) | {"aux_head.weight": torch.ones(2), "mask_token": torch.ones(1, 1, 64)}
    loaded = load_pretrained(save(state))
    assert loaded.unused == ["aux_head.weight", "mask_token"]
    assert "not used: aux_head.weight, mask_token" in loaded.report()
    assert "(timm ViT or DeiT)" in loaded.report() and "crop 0.9" in loaded.report()


class Unknown:
    """Stands for a yacs.config.CfgNode or any other class that a file may name."""


def test_no_code_is_run(save, tmp_path):
    for content in ({"model": to_timm(vit()), "config": Unknown()}, nn.Linear(2, 2)):
        with pytest.raises(
            ValueError, match=r"weights\.pth holds an object of \S*(Unknown|Linear).*only code can rebuild"
        ):
            load_pretrained(save(content))


def test_objects_in_an_npz(tmp_path):
    import numpy as np

    path = tmp_path / "vit.npz"
    np.savez(path, a=np.array([Unknown()], dtype=object))
    with pytest.raises(ValueError, match=r"vit\.npz holds arrays of objects"):
        load_pretrained(path)


def test_broken_files(save, tmp_path):
    with pytest.raises(FileNotFoundError, match="no file of weights"):
        load_pretrained(tmp_path / "absent.pth")
    with pytest.raises(FileNotFoundError, match="neither model.safetensors nor pytorch_model.bin"):
        load_pretrained(tmp_path)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="in several files"):
        load_pretrained(tmp_path / "shards")
    from safetensors.torch import save_file

    whole = save(to_timm(vit())).read_bytes()
    torch.save(to_timm(vit()), tmp_path / "legacy", _use_new_zipfile_serialization=False)
    legacy = (tmp_path / "legacy").read_bytes()
    save_file(to_timm(vit()), tmp_path / "safe")
    safe = (tmp_path / "safe").read_bytes()
    contents = {
        "cut.pth": (whole[: len(whole) // 2], "cut short"),
        "cut.pt": (legacy[: len(legacy) // 2], "cut short"),
        "cut.safetensors": (safe[: len(safe) // 2], "cut short"),
        "cut.npz": (whole[: len(whole) // 2], "cut short"),
        "text.pth": (b"once upon a time", "not a file of weights"),
        "empty.pth": (b"", "not a file of weights"),
        "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
    }
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.*{message}"):
            load_pretrained(tmp_path / name)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        load_pretrained(tmp_path / "weights.pth")


FOREIGN = {
    "a Swin Transformer": ["layers.0.blocks.0.attn.relative_position_bias_table", "patch_embed.proj.weight"],
    "a ConvNeXt": ["downsample_layers.0.0.weight", "stages.0.0.dwconv.weight"],
    "a DETR": [
        "transformer.encoder.layers.0.linear1.weight",
        "class_embed.weight",
        "backbone.0.body.layer1.0.conv1.weight",
    ],
    "a BERT": ["bert.embeddings.word_embeddings.weight"],
    "a Marian": ["final_logits_bias", "model.encoder.embed_tokens.weight"],
    "an MLP-Mixer": ["blocks.0.mlp_tokens.fc1.weight"],
    "a ResNet": ["layer1.0.conv1.weight"],
    "no network known here": ["weight"],
}


@pytest.mark.parametrize("what", FOREIGN)
def test_another_architecture(what, save):
    with pytest.raises(
        ValueError, match=rf"weights\.pth: this looks like {what}.*What can be read: .*CaiT.*torchvision"
    ):
        load_pretrained(save({name: torch.zeros(2, 2) for name in FOREIGN[what]}))


def test_a_run_of_this_project(save):
    content = {"state_dict": {"network.head.weight": torch.zeros(2, 2)}, "heddle": {"task": "translation"}}
    with pytest.raises(ValueError, match="a translation run of this project"):
        load_pretrained(save(content))


def test_no_weights(save):
    with pytest.raises(ValueError, match=r"holds no weights: its entries are epoch, net"):
        load_pretrained(save({"epoch": 3, "net": {"a": torch.zeros(1)}}))


CONTRADICTIONS = {
    "blocks.1.mlp.fc2.weight": ((64, 100), r"has shape \(64, 100\).*ask for \(64, 256\)"),
    "blocks.1.attn.qkv.weight": ((128, 64), r"has shape \(128, 64\).*ask for \(192, 64\)"),
    "norm.weight": ((65,), r"has shape \(65,\).*ask for \(64,\)"),
    "head.bias": ((4,), r"has shape \(4,\).*ask for \(3,\)"),
    "patch_embed.proj.weight": ((64, 192), r"has shape \(64, 192\); a tensor of 4 dimensions"),
    "pos_embed": ((1, 19, 64), r"has shape \(1, 19, 64\).*no square grid"),
    "cls_token": ((1, 1, 32), r"has shape \(1, 1, 32\).*ask for \(1, 1, 64\)"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_shapes_that_contradict_each_other(name, save):
    shape, message = CONTRADICTIONS[name]
    with pytest.raises(ValueError, match=rf"weights\.pth: '{name}' {message}"):
        load_pretrained(save(to_timm(vit()) | {name: torch.zeros(shape)}))


def test_grey_images_and_incomplete_files(save):
    state = to_timm(vit())
    with pytest.raises(ValueError, match=r"'patch_embed\.proj\.weight'.*reads 1 channels"):
        load_pretrained(save(state | {"patch_embed.proj.weight": torch.zeros(64, 1, 8, 8)}))
    del state["blocks.1.norm2.bias"]
    with pytest.raises(ValueError, match=r"incomplete: there is nothing for layers\.1\.feed_forward_norm\.bias"):
        load_pretrained(save(state))
    del state["pos_embed"]
    with pytest.raises(ValueError, match="no weight for 'positions'"):
        load_pretrained(save(state))


@pytest.mark.parametrize(
    "name",
    ["norm_pre.weight", "attn_pool.q.weight", "blocks.0.attn.q_bias", "blocks.0.attn.rel_pos_h", "register_tokens"],
)
def test_weights_that_would_make_it_another_network(name, save):
    """CLIP's first norm, pooling by attention, BEiT, SAM and DINOv2 begin as ViTs do and compute something else."""
    with pytest.raises(ValueError, match=f"does not have, and would compute something else without them: {name}"):
        load_pretrained(save(to_timm(vit()) | {name: torch.zeros(64)}))


def test_query_key_value_apart(save, tmp_path):
    state, config = to_huggingface(vit())
    (tmp_path / "config.json").write_text(json.dumps(config))
    key = "vit.encoder.layer.0.attention.attention.key.weight"
    with pytest.raises(ValueError, match=rf"'{key}' has shape \(32, 64\), but .*query\.weight' has \(64, 64\)"):
        load_pretrained(save(state | {key: torch.zeros(32, 64)}))
    with pytest.raises(ValueError, match="no weight for 'layers.0.attention.key.weight'"):
        load_pretrained(save({name: tensor for name, tensor in state.items() if name != key}))
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 12}))
    with pytest.raises(ValueError, match="config.json has num_hidden_layers 12, but the weights have 2"):
        load_pretrained(save(state))
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "quick_gelu"}))
    with pytest.raises(ValueError, match="hidden_act 'quick_gelu'"):
        load_pretrained(save(state))


def test_layouts_without_a_place():
    with pytest.raises(ValueError, match="not for CaiT"):
        to_huggingface(cait())
    with pytest.raises(ValueError, match="not for Linear"):
        to_timm(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="no place for 'distillation_token'"):
        to_torchvision(vit(distilled=True))
    with pytest.raises(ValueError, match="prefix_positions"):
        to_torchvision(vit(prefix_positions=False))
