"""CaiT in training against timm: stochastic depth draw by draw, initialisation, features, depths and decay groups."""

import math

import pytest
import torch

from lit_models.classification.cait import CaiT
from lit_models.pretrained import to_timm

timm = pytest.importorskip("timm")
models = pytest.importorskip("timm.models")

THEIRS = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4, "num_classes": 5}
OURS = {"image_size": 32, "patch_size": 8, "dim": 48, "depth": 3, "num_heads": 4}


def twins(drop_path=0.0):
    mine = CaiT(5, **OURS, drop_path=drop_path)
    for parameter in mine.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    peer = timm.create_model("cait_xxs24_224", **THEIRS, drop_path_rate=drop_path)
    peer.load_state_dict(to_timm(mine))
    return peer, mine


# Row 13.
def test_a_training_step_with_stochastic_depth():
    peer, mine = twins(drop_path=0.5)
    images, results = torch.randn(8, 3, 32, 32), []
    for network in (peer.train(), mine.train()):
        torch.manual_seed(7)
        results.append(network(images))
        results[-1].square().sum().backward()
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)
    for parameter in mine.parameters():
        parameter.data = parameter.grad
    gradients = to_timm(mine)
    for name, parameter in peer.named_parameters():
        largest = max(parameter.grad.abs().max().item(), 1.0)
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5 * largest, rtol=1e-4, msg=name)


def test_features():
    peer, mine = twins()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(mine.eval().forward_features(images), peer.eval().forward_features(images))
        theirs = peer.forward_intermediates(images, indices=[0, 2], intermediates_only=True)
        torch.testing.assert_close(mine.forward_intermediates(images, [0, 2]), theirs)


def test_initialisation():
    """Mean and deviation of every parameter, to six deviations of their estimate; row 17: LayerScale's too."""
    mine = to_timm(CaiT(5, **OURS))
    for name, theirs in timm.create_model("cait_xxs24_224", **THEIRS).named_parameters():
        count, deviation = theirs.numel(), theirs.std().item()
        assert mine[name].mean().item() == pytest.approx(theirs.mean().item(), abs=6 * deviation / math.sqrt(count)), (
            name
        )
        assert mine[name].std().item() == pytest.approx(deviation, rel=6 / math.sqrt(2 * count)), name


def test_depths_and_decay():
    peer, mine = twins()
    depths = models.group_parameters(peer, peer.group_matcher(coarse=False), reverse=True)
    for name, parameter in mine.named_parameters():
        parameter.data.fill_(mine.layer_of(name))
    assert {name: set(tensor.flatten().tolist()) for name, tensor in to_timm(mine).items()} == {
        name: {float(depth)} for name, depth in depths.items()
    }
    assert mine.num_layers + 1 == max(depths.values())
    assert {name.replace("positions", "pos_embed").replace("class", "cls") for name in mine.no_weight_decay()} == (
        peer.no_weight_decay()
    )
