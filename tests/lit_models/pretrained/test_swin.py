"""Public Swin weights without the libraries they come from: rules, heads, windows, and every way to be wrong."""

import sys
import types

import pytest
import torch

from lit_models.classification import SwinTransformer
from lit_models.classification.checkpoint import start_from
from lit_models.pretrained import load_pretrained, to_huggingface, to_timm, to_torchvision
from lit_models.pretrained.rules import imagenet_class_names
from lit_models.pretrained.swin_architecture import with_windows

SMALL = {"dim": 24, "depths": (1, 1), "num_heads": (2, 4), "window_size": 4}


def swin(num_classes=3, **changes):
    return SwinTransformer(num_classes, **SMALL | changes)


@pytest.fixture
def save(tmp_path):
    def write(content, name="weights.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


def official(network):
    return {"model": to_timm(network, official=True)}


# Rows 5 and 14 of the notes' list of mistakes; 384 pixels are 12 windows of 4 patches, twice as large in the end.
# source -> state, image size, crop, its mode, padding
RULES = {
    "official": (official, None, (0.875, "center"), "microsoft"),
    "official at 384 squashes": (official, 384, (1.0, "squash"), "microsoft"),
    "timm": (to_timm, None, (0.9, "center"), "timm"),
    "timm at 384": (to_timm, 384, (1.0, "center"), "timm"),
    "Hugging Face": (lambda network: to_huggingface(network)[0], None, (1.0, "squash"), "microsoft"),
    "torchvision": (to_torchvision, None, (224 / 232, "center"), "torchvision"),
}


@pytest.mark.parametrize("source", RULES)
def test_rows_5_and_14_rules_of_each_source(source, save):
    state, image_size, crop, padding = RULES[source]
    loaded = load_pretrained(save(state(swin())), image_size=image_size)
    prepared, settings = loaded.preprocessing, loaded.network.settings
    assert (prepared["crop"], prepared["crop_mode"], prepared["interpolation"]) == (*crop, "bicubic")
    assert prepared["mean"] == (0.485, 0.456, 0.406)
    assert prepared["image_size"] == (image_size or 32)
    assert (settings["norm_eps"], settings["padding"]) == (1e-5, padding)


class CfgNode(dict):
    """What yacs stores: a dictionary with attributes of its own, and methods that must never run."""

    def __init__(self, values):
        super().__init__({key: CfgNode(v) if isinstance(v, dict) else v for key, v in values.items()})
        self.__dict__["__immutable__"] = True
        self.__dict__["__deprecated_keys__"] = set()

    def __setstate__(self, state):
        raise AssertionError("code of the file's classes was run")

    __setitem__ = __setstate__


def test_a_run_of_microsofts_code(save, monkeypatch):
    """Its config is read without yacs, and says how images are evaluated."""
    package, module = types.ModuleType("yacs"), types.ModuleType("yacs.config")
    module.CfgNode = CfgNode
    monkeypatch.setattr(CfgNode, "__module__", "yacs.config")
    monkeypatch.setitem(sys.modules, "yacs", package)
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    config = CfgNode({"DATA": {"IMG_SIZE": 48, "INTERPOLATION": "bilinear"}, "TEST": {"CROP": False}})
    path = save(official(swin()) | {"config": config, "epoch": 3, "optimizer": {}})
    prepared = load_pretrained(path).preprocessing
    assert (prepared["image_size"], prepared["crop_mode"], prepared["interpolation"]) == (48, "squash", "bilinear")


class Unknown:
    """Any other class that a file may name."""


def test_no_code_is_run(save):
    with pytest.raises(ValueError, match=r"weights\.pth holds an object of \S*Unknown, which only code can rebuild"):
        load_pretrained(save(official(swin()) | {"config": Unknown()}))


def test_rows_of_the_head(save, tmp_path):
    state = official(swin(21841))
    rows = [21840, 7, *range(100, 1098)]
    path = tmp_path / "map22kto1k.txt"
    path.write_text("".join(f"{row}\n" for row in rows))
    loaded = load_pretrained(save(state), head_rows=path)
    assert torch.equal(loaded.network.head.weight, state["model"]["head.weight"][rows])
    assert torch.equal(loaded.network.head.bias, state["model"]["head.bias"][rows])
    assert loaded.missing == [] and loaded.class_names == list(imagenet_class_names())
    assert "1000 of the checkpoint's 21841 classes" in loaded.report()
    with pytest.raises(ValueError, match=r"37 classes are wanted, but head_rows .*map22kto1k\.txt lists 1000"):
        load_pretrained(save(state), head_rows=path, num_classes=37)
    fresh = load_pretrained(save(state), num_classes=1000)  # nobody said which rows
    assert fresh.missing == ["head.weight", "head.bias"] and "21841 classes and 1000 are wanted" in fresh.report()


# The file's content, and what is said of it.
BAD_ROWS = {
    "3\n1\n": r"line 1: '3' is no row of a head of 3 classes \(0 to 2\)",
    "1\n\n2\n": "line 2: ''",
    "1\n-1\n": "line 2: '-1'",
    "0 n01440764\n": "line 1: '0 n01440764'",
    "": "is empty; data/map22kto1k.txt of https://github.com/microsoft/Swin-Transformer",
}


@pytest.mark.parametrize("content", BAD_ROWS)
def test_bad_rows_of_the_head(content, save, tmp_path):
    path = tmp_path / "rows.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"weights\.pth: head_rows: .*rows\.txt.*{BAD_ROWS[content]}"):
        load_pretrained(save(official(swin())), head_rows=path)
    with pytest.raises(FileNotFoundError, match="head_rows: there is no file"):
        load_pretrained(save(official(swin())), head_rows=tmp_path / "absent.txt")
    path.write_text("0\n")
    with pytest.raises(ValueError, match="the checkpoint has no head"):
        load_pretrained(save(official(swin(0))), head_rows=path)


def first_table(network):
    return network.stages[0].layers[0].attention.bias_table


def test_windows_that_are_not_square(save):
    """A table of 7 x 5 rows may be 4 x 3 or 3 x 4; one of 7 x 7 is taken for a square."""
    network = swin(window_size=((4, 3), (4, 4)))
    path = save(to_timm(network))
    with pytest.raises(ValueError, match=r"'layers\.0\.blocks\.0\.\S+table' has 35 rows.*give the window_size"):
        load_pretrained(path)
    loaded = load_pretrained(path, window_size=((4, 3), 4))
    assert loaded.network.settings["window_size"] == ((4, 3), 4)
    assert torch.equal(first_table(loaded.network), first_table(network))


# Arguments that cannot be meant, by the version of the network.
WRONG = {
    "a window for each of another number of stages": (1, {"window_size": (7, 7, 7)}, "each of 2 stages is expected"),
    "no window": (1, {"window_size": 0}, "window_size 0 was given"),
    "V1 has no MLP": (1, {"pretrained_window_size": 8}, "this is a Swin V1, which has no position MLP"),
    "other heads": (2, {"num_heads": (3, 6)}, r"num_heads \(3, 6\) was given, but the stages have \(2, 4\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(case, save):
    version, arguments, message = WRONG[case]
    with pytest.raises(ValueError, match=rf"weights\.pth: .*{message}"):
        load_pretrained(save(to_timm(swin(version=version))), **arguments)


def test_windows_of_a_network_without_any(save):
    from lit_models.classification import VisionTransformer

    vit = VisionTransformer(3, image_size=16, patch_size=8, dim=64, depth=1, num_heads=1)
    with pytest.raises(ValueError, match="this network has no windows"):
        load_pretrained(save(to_timm(vit)), window_size=7)


def test_damaged_and_foreign_files(save):
    state = to_timm(swin(depths=(2, 1)))
    for name, shape, asked in (
        ("layers.0.blocks.1.attn.relative_position_bias_table", (81, 2), r"\(49, 2\)"),  # of its stage's window
        ("layers.1.blocks.0.attn.qkv.weight", (100, 48), r"\(144, 48\)"),
        ("layers.1.downsample.norm.weight", (48,), r"\(96,\)"),  # V2 has such a norm
    ):
        with pytest.raises(ValueError, match=rf"'{name}' has shape .*, but the other weights ask for {asked}"):
            load_pretrained(save(state | {name: torch.zeros(shape)}))
    with pytest.raises(ValueError, match=r"would compute something else without them: layers\.0\.blocks\.0\.mlp\.gate"):
        load_pretrained(save(state | {"layers.0.blocks.0.mlp.gate.weight": torch.zeros(3)}))
    del state["layers.1.downsample.reduction.weight"]
    with pytest.raises(ValueError, match=r"incomplete: there is nothing for stages\.1\.merging\.reduction\.weight"):
        load_pretrained(save(state))
    with pytest.raises(ValueError, match="looks like a Swin Transformer of a layout or kind that is not read"):
        load_pretrained(save({f"backbone.{name}": tensor for name, tensor in state.items()}))


def test_fine_tuning_in_other_windows(save):
    """The network of the config says the windows and the padding that it wants."""
    source = swin()
    path = save(official(source))
    network = swin(window_size=6, padding="microsoft")
    notices = start_from(network, str(path), ["a", "b", "c"])
    assert "4 becomes 6: the bias tables are resized" in "\n".join(notices)
    assert "padding" not in "\n".join(notices[1:])
    resized = load_pretrained(path, window_size=6).network
    for changed in (network, with_windows(source, 6)):
        assert all(torch.equal(tensor, resized.state_dict()[name]) for name, tensor in changed.state_dict().items())
    assert any(
        "microsoft becomes timm" in notice for notice in start_from(swin(padding="timm"), str(path), list("abc"))
    )
    second = save(to_timm(swin(version=2)), "swinv2_window4_32.pth")
    with pytest.raises(ValueError, match=r"network\.pretrained_window_size: checkpoint 4, config None"):
        start_from(swin(version=2, window_size=8, padding="timm"), str(second), list("abc"))
    start_from(swin(version=2, window_size=8, padding="timm", pretrained_window_size=4), str(second), list("abc"))


def test_layouts_without_a_place():
    with pytest.raises(ValueError, match="Hugging Face's Swin V1 has one window_size"):
        to_huggingface(swin(window_size=(8, 4)))
    with pytest.raises(ValueError, match="norm_eps=1e-05, not 1e-06"):
        to_huggingface(swin(norm_eps=1e-6))
    with pytest.raises(ValueError, match="torchvision's Swin has one window_size"):
        to_torchvision(swin(window_size=(8, 4)))
    with pytest.raises(ValueError, match="qkv_bias must be true"):
        to_torchvision(swin(qkv_bias=False))
