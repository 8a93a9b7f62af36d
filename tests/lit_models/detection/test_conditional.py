"""Conditional DETR: what groups of queries see, where boxes start, and the settings."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny_detectors import SIZES, Patches, padded_batch, randomized

from lit_models.classification.resnet import ResNet
from lit_models.detection.backbone import ClassifierBackbone
from lit_models.detection.conditional import ConditionalDETR


def tiny(**arguments):
    return ConditionalDETR(4, **{"backbone": Patches(), **SIZES, **arguments})


@pytest.mark.parametrize("sizes", [((24, 40), (9, 40), (24, 17)), ((24, 40), (24, 40))], ids=["padded", "whole"])
def test_groups_do_not_see_each_other(sizes):
    network = randomized(tiny(groups=3, dropout=0.0)).train()
    batch = padded_batch(sizes=sizes)
    trained = network(*batch)
    assert trained.logits.shape == (3, 3, len(sizes), 5, 4) and trained.boxes.shape == (3, 3, len(sizes), 5, 4)
    single = tiny(groups=1, dropout=0.0).eval()
    for group in range(3):
        state = network.state_dict()
        state["query_embedding.weight"] = state["query_embedding.weight"][5 * group : 5 * group + 5]
        single.load_state_dict(state)
        alone = single(*batch)
        torch.testing.assert_close(alone.logits[:, 0], trained.logits[:, group], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone.boxes[:, 0], trained.boxes[:, group], atol=1e-5, rtol=1e-5)
    # Evaluation has the first group alone.
    evaluated = network.eval()(*batch)
    assert evaluated.logits.shape == (3, 1, len(sizes), 5, 4)
    torch.testing.assert_close(evaluated.logits, trained.logits[:, :1], atol=1e-5, rtol=1e-5)


def test_where_it_starts():
    network = tiny().eval()
    predictions = network(*padded_batch())
    # Centres at the reference points, in every layer and image, and classes near the prior.
    reference = network.reference_head(network.query_embedding.weight).sigmoid()
    torch.testing.assert_close(predictions.boxes[..., :2], reference.expand(3, 1, 3, 5, 2))
    assert (predictions.boxes[..., 2:] == 0.5).all()
    torch.testing.assert_close(network.class_head.bias.sigmoid(), torch.full((4,), 0.01))


# Only the first layer adds positions to the content of queries and keys.
def test_only_the_first_layer_has_query_positions():
    layers = tiny().decoder_layers
    assert [layer.cross_attention.query_position is None for layer in layers] == [False, True, True]


# Row 7, as for DETR.
def test_padding_is_not_seen():
    network = randomized(tiny()).eval()
    images, sizes = padded_batch()
    together = network(images, sizes)
    alone = network(images[1:2, :, :16], sizes[1:2])
    torch.testing.assert_close(alone.logits[:, :, 0], together.logits[:, :, 1], atol=1e-5, rtol=1e-5)
    assert (network(images, ((24, 40),) * 3).logits - together.logits)[:, :, 1:].abs().max() > 1e-2


@pytest.mark.parametrize("norm_order", ["post", "pre"])
def test_every_parameter_learns_in_bfloat16_with_dropout(norm_order):
    network = randomized(tiny(groups=2, norm_order=norm_order)).train()
    network.grad_checkpointing = True
    with torch.autocast("cpu", torch.bfloat16):
        predictions = network(*padded_batch())
        references = network._queries().reference
    assert predictions.logits.dtype == predictions.boxes.dtype == references.dtype == torch.float32
    (predictions.logits.square().mean() + predictions.boxes.square().mean()).backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def test_settings_build_the_same_network():
    network = tiny(backbone=ClassifierBackbone(ResNet(1, depth=8, width=4)), groups=2, decoder_layers=1)
    again = ConditionalDETR(4, **json.loads(json.dumps(network.settings)))
    again.load_state_dict(network.state_dict())
    assert again.settings == network.settings and again.groups == 2


def test_attention_maps():
    network = randomized(tiny(groups=2)).train()
    images, sizes = padded_batch()
    found = network.attention_maps(images, sizes)
    assert found[1].decoder.shape == (2, 5, 2, 5)
    torch.testing.assert_close(found[1].decoder.sum((-1, -2)), torch.ones(2, 5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"groups": 0}, "groups must be at least 1"), ({"dim": 18, "positions": "learned"}, "multiple of 4")],
)
def test_argument_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny(**arguments)
