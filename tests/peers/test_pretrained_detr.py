"""Public DETRs in ours and ours in theirs: transformers' outputs on padded batches, and the official structure."""

import json
import re
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from pretrained_testing import assert_same_weights

from lit_models.detection.conditional import ConditionalDETR
from lit_models.detection.detr import DETR
from lit_models.pretrained import (
    detector_to_huggingface,
    detector_to_official,
    load_pretrained,
    load_pretrained_detector,
)
from lit_models.pretrained.detr_coco import COCO_CATEGORIES

transformers = pytest.importorskip("transformers")
pytest.importorskip("timm")
safetensors = pytest.importorskip("safetensors.torch")

SIZES = {"dim": 32, "num_heads": 4, "feed_forward_dim": 48, "num_queries": 7, "encoder_layers": 2, "decoder_layers": 3}
LEARNED = {"positions": "learned"}
PRE_NORM = {"norm_order": "pre"}


def network(kind=DETR, num_classes=5, backbone="resnet18", **settings):
    """Build a network whose every weight is nowhere neutral: gains, statistics and positions too."""
    torch.manual_seed(1)
    built = kind(num_classes, backbone=backbone, **(SIZES | settings))
    with torch.no_grad():
        for name, tensor in built.state_dict().items():
            if "running_var" in name:
                tensor.uniform_(0.5, 1.5)
            elif tensor.dim() == 1:
                tensor += 0.2 * torch.randn_like(tensor)
            elif not name.startswith("backbone"):
                tensor += 0.05 * torch.randn_like(tensor)
    return built.eval()


def peer(kind, config):
    name = "ConditionalDetr" if kind is ConditionalDETR else "Detr"
    name = "TableTransformer" if config["model_type"] == "table-transformer" else name
    values = {key: value for key, value in config.items() if key not in ("architectures", "model_type")}
    made = getattr(transformers, f"{name}Config")(**values)
    return getattr(transformers, f"{name}ForObjectDetection"), made


def assert_same_outputs(theirs, ours):
    images, mask, sizes = torch.zeros(2, 3, 64, 96), torch.zeros(2, 64, 96, dtype=torch.long), ((64, 96), (33, 80))
    for image, valid, (height, width) in zip(images, mask, sizes, strict=True):
        image[:, :height, :width] = torch.randn(3, height, width)
        valid[:height, :width] = 1
    with torch.no_grad():
        expected, (logits, boxes) = theirs.eval()(images, pixel_mask=mask), ours(images, sizes).final
    assert expected.logits.std() > 0.1
    torch.testing.assert_close(logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(boxes, expected.pred_boxes, atol=1e-5, rtol=1e-5)


def to_official_by_hand(ours):
    """Rename with regular expressions, apart from the tables under test: notes §2."""
    rows = [
        (r"^backbone\.", "backbone.0.body."),
        (r"^(encoder|decoder)_layers\.", r"transformer.\1.layers."),
        (r"self_attention\.query_key_value\.", "self_attn.in_proj_"),
        (r"cross_attention\.query_key_value\.", "multihead_attn.in_proj_"),
        (r"self_attention\.output", "self_attn.out_proj"),
        (r"cross_attention\.output", "multihead_attn.out_proj"),
        (r"feed_forward\.expand", "linear1"),
        (r"feed_forward\.contract", "linear2"),
        (r"self_attention_norm", "norm1"),
        (r"cross_attention_norm", "norm2"),
        (r"(encoder.*)feed_forward_norm", r"\1norm2"),
        (r"(decoder.*)feed_forward_norm", r"\1norm3"),
        (r"^decoder_norm", "transformer.decoder.norm"),
        (r"^input_projection", "input_proj"),
        (r"^query_embedding", "query_embed"),
        (r"^class_head", "class_embed"),
        (r"^box_head", "bbox_embed"),
    ]
    renamed = {}
    for name, tensor in ours.items():
        for pattern, other in rows:
            name = re.sub(pattern, other, name)
        renamed[name] = tensor
    return renamed


HUGGING_FACE = [
    *((DETR, {}, timm, layout) for timm in (True, False) for layout in ("disk", "memory")),
    (DETR, LEARNED, True, "disk"),
    (DETR, PRE_NORM, True, "disk"),
    (ConditionalDETR, {}, True, "disk"),
    (ConditionalDETR, {}, False, "memory"),
]


@pytest.mark.parametrize(("kind", "settings", "timm", "layout"), HUGGING_FACE)
def test_hugging_face_both_ways(kind, settings, timm, layout, tmp_path):
    """Rows 1, 2, 6 and 7 of the usual mistakes: the outputs of a padded batch are those of the peer."""
    ours = network(kind, **settings)
    state, config = detector_to_huggingface(ours, layout=layout, timm=timm)
    model, values = peer(kind, config)
    if layout == "memory":
        theirs = model(values)
        theirs.load_state_dict(state)
        safetensors.save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    else:
        safetensors.save_file(
            {name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "model.safetensors"
        )
        (tmp_path / "config.json").write_text(json.dumps(config))
        theirs, info = model.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        theirs.save_pretrained(tmp_path)  # what is read below is what transformers writes
    loaded = load_pretrained_detector(tmp_path, num_heads=4, dilation=False)
    assert not loaded.missing and not loaded.unused
    assert_same_weights(loaded.network.state_dict(), ours.state_dict())
    assert_same_outputs(theirs, loaded.network)


# Row 8: with dilation 2 in the first block of layer4 the features differ.
def test_dilation_is_what_the_config_says(tmp_path):
    ours = network(backbone={"name": "resnet50", "dilation": True}, encoder_layers=1, decoder_layers=1)
    state, config = detector_to_huggingface(ours)
    safetensors.save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = transformers.DetrForObjectDetection.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path)
    loaded = load_pretrained_detector(tmp_path)
    assert loaded.network.settings["backbone"]["dilation"] is True and not any("dilated" in n for n in loaded.notices)
    assert_same_outputs(theirs, loaded.network)
    with pytest.raises(ValueError, match="dilation False was given, but the file says True"):
        load_pretrained_detector(tmp_path, dilation=False)
    with pytest.raises(ValueError, match="own ResNet has no dilation"):
        detector_to_huggingface(ours, timm=False)


@pytest.mark.parametrize("settings", [{}, LEARNED, PRE_NORM])
def test_official_files_both_ways(settings, tmp_path):
    ours = network(**settings)
    state = detector_to_official(ours)
    if not settings:
        assert_same_weights(state, to_official_by_hand(ours.state_dict()))
    torch.save({"model": state, "epoch": 3, "args": Namespace(nheads=4, dilation=False)}, tmp_path / "x.pth")
    loaded = load_pretrained_detector(tmp_path / "x.pth")
    assert not loaded.missing and not loaded.unused and not loaded.notices
    assert_same_weights(loaded.network.state_dict(), ours.state_dict())


def test_official_pre_norm_is_the_official_computation(tmp_path):
    """With pre-norm the names shift by one sublayer: torch's own pre-norm encoder layer has the official's names."""
    ours = network(**PRE_NORM, encoder_layers=1, dropout=0.0)
    state = detector_to_official(ours)
    beginning = "transformer.encoder.layers.0."
    theirs = nn.TransformerEncoderLayer(32, 4, 48, norm_first=True, batch_first=True, dropout=0.0).eval()
    theirs.load_state_dict({k.removeprefix(beginning): v for k, v in state.items() if k.startswith(beginning)})
    tokens = torch.randn(1, 6, 32)
    with torch.no_grad():
        _, residual = ours.encoder_layers[0](ours.encoder_input_norm(tokens), tokens, torch.zeros(1, 6, 32), None)
        torch.testing.assert_close(residual, theirs(tokens), atol=1e-5, rtol=1e-5)
    assert torch.equal(state["transformer.encoder.norm.weight"], ours.encoder_layers[0].feed_forward_norm.weight)


@pytest.mark.parametrize(
    ("name", "tensors", "parameters", "numbers"),
    [("resnet50", 458, 41_524_768, 41_631_008), ("resnet101", 713, 60_464_672, None)],
)
def test_golden_structure(name, tensors, parameters, numbers):
    """The published files: 458 tensors and 159 MB; the paper's 41.3 million trained parameters (notes §1.1, §2)."""
    with torch.device("meta"):
        built = DETR(91, backbone=name)
    state = detector_to_official(built)
    assert len(state) == tensors
    # The parameters of batch norms, which are frozen, count as in the official code: as none.
    assert sum(parameter.numel() for parameter in built.parameters()) == parameters
    assert numbers is None or sum(tensor.numel() for tensor in state.values()) == numbers
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    assert shapes["class_embed.weight"] == (92, 256) and shapes["query_embed.weight"] == (100, 256)
    assert shapes["transformer.decoder.layers.5.multihead_attn.in_proj_weight"] == (768, 256)
    assert shapes["backbone.0.body.layer4.0.downsample.0.weight"] == (2048, 1024, 1, 1)
    assert len(detector_to_huggingface(built)[0]) == tensors + 4 * 6 + 4 * 12


def test_the_published_structure_is_read_whatever_its_size(tmp_path):
    with torch.device("meta"):
        state = detector_to_official(DETR(91))
    # One stored number a tensor: the file is small, the shapes are those of R50.
    small = {key: torch.zeros(()).expand(tensor.shape) for key, tensor in state.items()}
    torch.save({"model": small}, tmp_path / "detr-r50-dc5-f0fb7ef5.pth")
    assert (tmp_path / "detr-r50-dc5-f0fb7ef5.pth").stat().st_size < 1e6
    loaded = load_pretrained_detector(tmp_path / "detr-r50-dc5-f0fb7ef5.pth")
    assert loaded.network.settings == DETR(91, backbone={"name": "resnet50", "dilation": True}).settings
    assert loaded.preprocessing["sizes"] == (800, 1333)
    assert (
        loaded.class_names[17] == "cat" and loaded.class_names[12] == "N/A" and loaded.category_ids == list(range(91))
    )
    assert "the name has DC5, so it is taken to be" in loaded.report() and "taken to be COCO's" in loaded.report()


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """An official file with COCO's 91 classes, and what is in it."""
    path = tmp_path_factory.mktemp("official") / "detr.pth"
    state = detector_to_official(network(num_classes=91))
    torch.save({"model": state}, path)
    return path, state


def test_a_head_of_other_classes_is_fresh(official):
    loaded = load_pretrained_detector(official[0], num_classes=3, num_heads=4)
    assert loaded.network.num_classes == 3 and loaded.network.class_head.weight.shape == (4, 32)
    assert loaded.missing == ["class_head.weight", "class_head.bias"]
    assert loaded.unused == ["class_embed.weight", "class_embed.bias"]
    assert loaded.class_names is None and loaded.category_ids is None
    report = loaded.report()
    assert "freshly initialised: class_head.weight, class_head.bias" in report and "not used: class_embed" in report
    assert "has 91 classes and 3 are wanted" in report
    assert torch.equal(loaded.network.box_head.layers[0].weight, official[1]["bbox_embed.layers.0.weight"])


def test_a_head_that_was_deleted(official, tmp_path):
    """The usual recipe of fine-tuning the official code: class_embed is deleted."""
    rest = {name: tensor for name, tensor in official[1].items() if not name.startswith("class_embed")}
    torch.save({"model": rest}, tmp_path / "x.pth")
    assert load_pretrained_detector(tmp_path / "x.pth", num_classes=2, num_heads=4).network.num_classes == 2
    with pytest.raises(ValueError, match="no head that tells classes: give num_classes"):
        load_pretrained_detector(tmp_path / "x.pth", num_heads=4)


def test_eighty_classes_have_cocos_ids(tmp_path):
    torch.save({"model": detector_to_official(network(num_classes=80))}, tmp_path / "d2.pth")
    loaded = load_pretrained_detector(tmp_path / "d2.pth", num_heads=4)
    assert loaded.category_ids == list(COCO_CATEGORIES) and loaded.class_names[-1] == "toothbrush"
    assert len(COCO_CATEGORIES) == 80 and max(COCO_CATEGORIES) == 90
    assert {0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83}.isdisjoint(COCO_CATEGORIES)


def test_a_panoptic_file_is_a_detector_without_masks(tmp_path):
    ours = network(num_classes=250)
    state = {f"detr.{name}": tensor for name, tensor in detector_to_official(ours).items()}
    state |= {"bbox_attention.q_linear.weight": torch.ones(2), "mask_head.lay1.weight": torch.ones(2)}
    torch.save({"model": state}, tmp_path / "detr-r50-panoptic.pth")
    loaded = load_pretrained_detector(tmp_path / "detr-r50-panoptic.pth", num_heads=4)
    assert_same_weights(loaded.network.state_dict(), ours.state_dict())
    assert "the mask head (2 weights) is left out" in loaded.report() and not loaded.unused
    assert loaded.class_names[1] == "person" and loaded.class_names[200] == "class 200"


def test_names_and_preprocessing_of_hugging_face(tmp_path):
    ours = network(num_classes=2)
    state, config = detector_to_huggingface(ours)
    safetensors.save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    config |= {"id2label": {"0": "table", "1": "rotated"}, "auxiliary_loss": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    processor = {"size": 600, "max_size": 1000, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    for size in (600, {"shortest_edge": 600, "longest_edge": 1000}):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor | {"size": size}))
        loaded = load_pretrained_detector(tmp_path)
        assert loaded.preprocessing == {"sizes": (600, 1000), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    assert loaded.class_names == ["table", "rotated"] and loaded.category_ids == [0, 1]
    # Row 2: with auxiliary_loss=True transformers feeds each layer the normed state.
    assert any("auxiliary_loss" in notice for notice in loaded.notices)


def test_a_module_around_the_network(tmp_path):
    """Fine-tuning in a LightningModule puts ``model.`` before Hugging Face's names, DataParallel ``module.``."""
    ours = network()
    for prefix, state in (("model.", detector_to_huggingface(ours)[0]), ("module.", detector_to_official(ours))):
        torch.save({"state_dict": {f"{prefix}{name}": tensor for name, tensor in state.items()}}, tmp_path / "x.pth")
        loaded = load_pretrained_detector(tmp_path / "x.pth", num_heads=4)
        assert_same_weights(loaded.network.state_dict(), ours.state_dict())


def damaged(official, change):
    state = dict(official[1])
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("transformer.encoder.layers.1.linear1.bias"),
            "incomplete.*encoder_layers.1.feed_forward.expand",
        ),
        (
            lambda s: s.update({"input_proj.weight": torch.ones(32, 512)}),
            "'input_proj.weight' has shape .* 4 dimensions",
        ),
        (
            lambda s: s.update({"query_embed.weight": torch.ones(7, 30)}),
            "'query_embed.weight' has shape .*7, 30.* ask for",
        ),
        (lambda s: s.update({"transformer.level_embed": torch.ones(3)}), "would compute something else.*level_embed"),
        (lambda s: s.pop("backbone.0.body.layer3.1.conv1.weight"), "incomplete.*layer3.1.conv1"),
        (lambda s: s.update({"backbone.0.body.layer4.2.conv1.weight": torch.ones(1)}), "backbone has 2, 2, 2, 3 basic"),
        (lambda s: s.pop("query_embed.weight"), r"looks like a DETR \(.*What can be read: official DETR; Hugging Face"),
    ],
)
def test_damaged_files_are_one_line(official, tmp_path, change, message):
    torch.save({"model": damaged(official, change)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=message) as caught:
        load_pretrained_detector(tmp_path / "x.pth", num_heads=4)
    assert str(caught.value).startswith(f"{tmp_path / 'x.pth'}: ") and "\n" not in str(caught.value)


def test_wrong_files(official, tmp_path):
    with pytest.raises(ValueError, match="give num_heads"):
        load_pretrained_detector(official[0])
    with pytest.raises(FileNotFoundError, match="no file of weights"):
        load_pretrained_detector(tmp_path / "no.pth")
    (tmp_path / "half.pth").write_bytes(official[0].read_bytes()[:5000])
    with pytest.raises(ValueError, match="cut short"):
        load_pretrained_detector(tmp_path / "half.pth")
    torch.save(
        {"patch_embed.proj.weight": torch.ones(1), "blocks.0.attn.qkv.weight": torch.ones(1)}, tmp_path / "vit.pth"
    )
    with pytest.raises(ValueError, match="looks like timm and official ViT"):
        load_pretrained_detector(tmp_path / "vit.pth")
    torch.save(
        {"transformer.encoder.layers.0.self_attn.sampling_offsets.weight": torch.ones(1)}, tmp_path / "deform.pth"
    )
    with pytest.raises(ValueError, match="deformable attention"):
        load_pretrained_detector(tmp_path / "deform.pth")
    with pytest.raises(ValueError, match=r"looks like a DETR \(load_pretrained_detector"):
        load_pretrained(official[0])
    torch.save({"heddle": {"task": "detection"}, "state_dict": {}}, tmp_path / "own.ckpt")
    with pytest.raises(ValueError, match="a detection run of this project"):
        load_pretrained_detector(tmp_path / "own.ckpt")


def test_no_code_is_run(tmp_path):
    class Runs:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"model": {"a": torch.ones(1)}, "args": Runs()}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="only code can rebuild"):
        load_pretrained_detector(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()


def test_what_no_layout_has():
    with pytest.raises(ValueError, match="Table Transformer alone"):
        detector_to_huggingface(network(**PRE_NORM), timm=False)
    with pytest.raises(ValueError, match="not for ConditionalDETR"):
        detector_to_official(network(ConditionalDETR))
    with pytest.raises(ValueError, match="ResNet with batch norms"):
        normed = {"name": "resnet18", "frozen_norm": False, "group_norm": 8}
        detector_to_official(network(backbone=normed))
    grouped = network(ConditionalDETR, groups=3)
    state, _ = detector_to_huggingface(grouped)
    assert torch.equal(state["model.query_position_embeddings.weight"], grouped.query_embedding.weight[:7])
