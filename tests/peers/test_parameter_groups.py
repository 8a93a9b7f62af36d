"""Layer-wise decay of the learning rate against timm's."""

import pytest
import timm
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay

from lit_models.optimization import parameter_groups


def test_equals_timms_layer_decay():
    """A ViT of timm and its groups; ours are asked for the same network through the protocol."""
    network = timm.create_model("vit_tiny_patch16_224", depth=3, embed_dim=24, num_heads=2, img_size=32, num_classes=5)
    layers = group_parameters(network, network.group_matcher(coarse=False), reverse=True)
    network.num_layers, network.layer_of = max(layers.values()) - 1, layers.__getitem__
    theirs = param_groups_layer_decay(network, 0.05, network.no_weight_decay(), layer_decay=0.75)
    expected = {id(p): (group["lr_scale"], group["weight_decay"]) for group in theirs for p in group["params"]}
    ours = parameter_groups(network, 0.75)
    found = {id(p): (g["lr_scale"], g.get("weight_decay", 0.05)) for g in ours for p in g["params"]}
    assert found.keys() == expected.keys()
    for key, pair in found.items():
        assert pair == pytest.approx(expected[key])
