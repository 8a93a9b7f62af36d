"""The small ConvNet: its shape against torchvision's blocks, its protocol and its messages."""

import pytest
import torch
from torchvision.models.resnet import BasicBlock

from lit_models.classification import ResNet
from lit_models.classification.resnet import ResidualBlock


def test_a_block_equals_torchvisions():
    torch.manual_seed(0)
    downsample = torch.nn.Sequential(torch.nn.Conv2d(4, 6, 1, 2, bias=False), torch.nn.BatchNorm2d(6))
    theirs, ours = BasicBlock(4, 6, stride=2, downsample=downsample), ResidualBlock(4, 6, 2)
    names = {"conv": "convolution", "bn": "norm", "downsample": "shortcut"}
    state = theirs.state_dict()
    renamed = {}
    for name, value in state.items():
        for old, new in names.items():
            name = name.replace(old, new)
        renamed[name] = value
    ours.load_state_dict(renamed)
    images = torch.randn(3, 4, 8, 8)
    torch.testing.assert_close(ours(images), theirs(images))


def test_parameters_of_the_papers_network():
    # He et al. 2016, table 6: 0.27 M for depth 20, 0.85 M for depth 56 (identity shortcuts; projections add 0.5 %).
    for depth, millions in ((20, 0.27), (56, 0.85)):
        count = sum(parameter.numel() for parameter in ResNet(10, depth=depth).parameters())
        assert abs(count / 1e6 - millions) < 0.01 * (1 + millions), (depth, count)


def test_protocol():
    torch.manual_seed(0)
    network = ResNet(7, depth=8, width=4, stages=4).eval()
    images = torch.randn(2, 3, 32, 48)
    heads = network.forward_heads(images)
    assert heads.classes.shape == (2, 7) and heads.distillation is None
    assert torch.equal(heads.mean, network(images))
    assert [tuple(map_.shape[1:]) for map_ in network.forward_intermediates(images)] == [
        (4, 32, 48),
        (8, 16, 24),
        (16, 8, 12),
        (32, 4, 6),
    ]
    assert ResNet(7, depth=8, stem_stride=2).forward_features(images).shape == (2, 64, 4, 6)
    again = ResNet(7, **network.settings)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.eval()(images), network(images))
    layers = {name: network.layer_of(name) for name, _ in network.named_parameters()}
    assert layers["stem.weight"] == 0 and layers["stages.0.0.convolution1.weight"] == 1 and layers["head.weight"] == 5
    network.reset_classifier(3)
    assert network(images).shape == (2, 3)
    network.reset_classifier(0)
    assert network(images).shape == (2, 32)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"depth": 21}, "6n . 2"), ({"width": 0}, "width"), ({"stages": 0}, "stages")],
)
def test_wrong_sizes(arguments, words):
    with pytest.raises(ValueError, match=words):
        ResNet(10, **arguments)


def test_a_stage_that_does_not_exist():
    with pytest.raises(ValueError, match="3 stages"):
        ResNet(10, depth=8).forward_intermediates(torch.zeros(1, 3, 8, 8), [3])


def test_attention_maps_are_refused():
    with pytest.raises(ValueError, match="ResNet has no attention"):
        ResNet(10, depth=8).attention_maps(torch.zeros(1, 3, 8, 8))
