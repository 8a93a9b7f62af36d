"""DETR against the official structure, its initialisation and settings, and what padding does and does not change."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parent))

from tiny_detectors import SIZES, Patches, official, padded_batch, randomized

from lit_models.classification.resnet import ResNet
from lit_models.detection.backbone import ClassifierBackbone
from lit_models.detection.detr import DETR
from lit_models.layers import MultiHeadAttention


def tiny(**arguments):
    return randomized(DETR(4, **{"backbone": Patches(), **SIZES, **arguments}))


def assert_same(found, expected, **tolerance):
    torch.testing.assert_close(found.logits, expected.logits, **tolerance)
    torch.testing.assert_close(found.boxes, expected.boxes, **tolerance)


# Rows 1, 2, 6 and 7, for every layer's output and both orders of normalisation.
@pytest.mark.parametrize("norm_order", ["post", "pre"])
@pytest.mark.parametrize("sizes", [((24, 40), (9, 40), (24, 17)), ((24, 40), (24, 40))], ids=["padded", "whole"])
def test_every_layer_is_the_official_structures(norm_order, sizes):
    network = tiny(norm_order=norm_order).double().eval()
    images, sizes = padded_batch(sizes=sizes)
    found, (logits, boxes) = network(images.double(), sizes), official(network, images.double(), sizes)
    assert found.logits.shape == (3, 1, len(sizes), 5, 5) and found.boxes.shape == (3, 1, len(sizes), 5, 4)
    assert found.logits.dtype == found.boxes.dtype == torch.float32
    torch.testing.assert_close(found.logits[:, 0], logits.float(), atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(found.boxes[:, 0], boxes.float(), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.final, (logits[-1].float(), boxes[-1].float()), atol=2e-6, rtol=1e-6)


# Row 7: where nothing leaks in the backbone an image alone is an image in a batch ...
def test_padding_is_not_seen():
    network = tiny().eval()
    images, sizes = padded_batch()
    together = network(images, sizes)
    for number, (height, width) in enumerate(sizes):
        # The canvas of one image has whole patches.
        alone = images[number : number + 1, :, : -(-height // 8) * 8, : -(-width // 8) * 8]
        found = network(alone, (sizes[number],))
        torch.testing.assert_close(found.logits[:, :, 0], together.logits[:, :, number], atol=1e-5, rtol=1e-5)
    # ... and without its size it is another one.
    assert (network(images, ((24, 40),) * 3).logits - together.logits)[:, :, 1:].abs().max() > 1e-2


# ... but a ConvNet's biases make the padding something that its next layer sees, in the official code as here.
def test_padding_leaks_in_a_convnet():
    network = tiny(backbone=ClassifierBackbone(ResNet(1, depth=8, width=4))).eval()
    images, sizes = padded_batch(sizes=((24, 40), (12, 40)))
    alone = network(images[1:, :, :12], sizes[1:])
    assert (alone.final[0] - network(images, sizes).final[0][1:]).abs().max() > 1e-4


# Row 12: the fused attention runs, and no softmax over scores does.
def test_attention_is_fused():
    class Calls(TorchDispatchMode):
        names = ()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names += (function.name(),)
            return function(*args, **(kwargs or {}))

    network = tiny().eval()
    with torch.no_grad(), Calls() as calls:
        network(*padded_batch(sizes=((24, 40), (24, 40))))
    fused = [name for name in calls.names if "scaled_dot_product" in name]
    assert len(fused) == 2 + 2 * 3
    assert not any("softmax" in name or "masked_fill" in name for name in calls.names)


# Rows 3 and 5.
def test_initialisation():
    torch.manual_seed(0)
    network = DETR(4, backbone=Patches(), encoder_layers=1, decoder_layers=2)
    bound = (6 / (256 + 768)) ** 0.5
    attentions = [module for module in network.modules() if isinstance(module, MultiHeadAttention)]
    assert len(attentions) == 5
    for attention in attentions:
        assert 0.99 * bound < attention.query_key_value.weight.abs().max() <= bound
        assert not attention.query_key_value.bias.any() and not attention.output.bias.any()
        assert attention.dropout == 0.1
    assert network.query_embedding.weight.std().item() == pytest.approx(1.0, abs=0.02)
    layer = network.decoder_layers[0]
    assert layer.feed_forward.dropout == layer.cross_attention_norm.dropout == 0.1
    assert 0.95 / 16 < layer.feed_forward.expand.bias.abs().max() <= 1 / 16
    assert network.class_head.bias.abs().max() <= 1 / 16


def test_size_of_the_published_network():
    with torch.device("meta"):
        network = DETR(91)
    assert len(network.state_dict()) == 458
    assert sum(p.numel() for p in network.parameters()) == 41_524_768
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 41_302_368
    assert sum(tensor.numel() for tensor in network.state_dict().values()) == 41_631_008
    names = {name for name, _ in network.named_parameters()}
    assert all(name in names or name.startswith("backbone") for name in network.state_dict())


@pytest.mark.parametrize("norm_order", ["post", "pre"])
def test_every_parameter_learns(norm_order):
    network = tiny(norm_order=norm_order, positions="learned").train()
    predictions = network(*padded_batch())
    (predictions.logits.square().mean() + predictions.boxes.square().mean()).backward()
    missing = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # Content starts at zero, so that the gain of the norm which reads it first never matters; the official code's too.
    assert missing == (["decoder_input_norm.weight"] if norm_order == "pre" else [])


def test_bfloat16_autocast():
    network = tiny().train()
    with torch.autocast("cpu", torch.bfloat16):
        predictions = network(*padded_batch())
    assert predictions.logits.dtype == predictions.boxes.dtype == torch.float32
    (predictions.logits.square().mean() + predictions.boxes.sum()).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())
    # The heads run in float32: their last product has more digits than bfloat16.
    assert (predictions.logits != predictions.logits.bfloat16().float()).float().mean() > 0.9
    network.eval()
    with torch.autocast("cpu", torch.bfloat16):
        low = network(*padded_batch()).boxes
    assert low.isfinite().all()


def test_checkpointing_changes_no_gradient():
    batch, gradients = padded_batch(), []
    network = tiny().train()
    for on in (False, True):
        network.grad_checkpointing = on
        network.zero_grad()
        torch.manual_seed(3)
        network(*batch).logits.square().sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients)


def test_compiles_without_a_break():
    network = tiny().eval()
    # With padding the kernels' path for a CPU goes image by image, which a graph cannot.
    images, sizes = padded_batch(sizes=((24, 40), (24, 40)))
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    assert_same(compiled(images, sizes), network(images, sizes))


def test_settings_build_the_same_network():
    network = DETR(
        4,
        backbone=ClassifierBackbone(ResNet(1, depth=8, width=4)),
        positions="learned",
        position_length=10,
        norm_order="pre",
        dropout=0.2,
        **SIZES,
    )
    again = DETR(4, **json.loads(json.dumps(network.settings)))
    again.load_state_dict(network.state_dict())
    assert again.settings == network.settings
    batch = padded_batch()
    assert_same(again.eval()(*batch), network.eval()(*batch))


@pytest.mark.parametrize("sizes", [((24, 40), (9, 40), (24, 17)), ((24, 40), (24, 40))], ids=["padded", "whole"])
def test_attention_maps(sizes):
    network = tiny().train()
    images, sizes = padded_batch(sizes=sizes)
    found = network.attention_maps(images, sizes)
    assert network.training and not network.encoder_layers[-1].self_attention._forward_pre_hooks
    for number, (height, width) in enumerate(sizes):
        rows, columns = -(-height // 8), -(-width // 8)
        assert found[number].encoder.shape == (2, rows, columns, rows, columns)
        assert found[number].decoder.shape == (2, 5, rows, columns)
        torch.testing.assert_close(found[number].decoder.sum((-1, -2)), torch.ones(2, 5))
        alone = images[number : number + 1, :, : rows * 8, : columns * 8]
        (expected,) = network.attention_maps(alone, (sizes[number],))
        torch.testing.assert_close(found[number], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_queries": 0}, "num_queries must be at least 1"),
        ({"decoder_layers": 0}, "decoder_layers must be at least 1"),
        ({"norm_order": "sandwich"}, "norm_order must be pre or post"),
        ({"positions": "none"}, "positions must be sine or learned"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"dim": 18}, "multiple of 4"),
        ({"num_heads": 3}, "num_heads 3 must divide dim 16"),
        ({"backbone": "resnet9"}, "resnet18"),
    ],
)
def test_argument_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        DETR(4, **{"backbone": Patches(), **SIZES, **arguments})


@pytest.mark.parametrize(
    ("images", "sizes", "message"),
    [
        (torch.zeros(2, 3, 16, 16), ((16, 16),), "one entry for each of the 2 images, got 1"),
        (torch.zeros(1, 3, 16, 16), ((16, 17),), "outside the batch of 16x16 pixels"),
        (torch.zeros(1, 3, 16, 16), ((0, 16),), "outside the batch"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), ((16, 16),), "floating point, got .*uint8"),
    ],
)
def test_batch_errors(images, sizes, message):
    with pytest.raises(ValueError, match=message):
        tiny()(images, sizes)
