"""ViT and DeiT in training against timm: stochastic depth draw by draw, features, depths and decay groups."""

import pytest
import torch
from torch.nn import functional

from lit_models.classification.vit import VisionTransformer
from lit_models.pretrained import to_timm

timm = pytest.importorskip("timm")
models = pytest.importorskip("timm.models")

THEIRS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
OURS = {"image_size": 32, "patch_size": 8, "dim": 32, "depth": 3, "num_heads": 2}
CASES = {
    "plain": ("vit_tiny_patch16_224", {}, {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}, {"distilled": True}),
    "norm after pooling": (
        "vit_tiny_patch16_224",
        {"global_pool": "avg", "reg_tokens": 2},
        {"pool": "average", "pool_norm": True, "registers": 2},
    ),
    "deit3": ("deit3_small_patch16_224", {}, {"layer_scale": 0.2, "prefix_positions": False}),
}


def twins(case, drop_path=0.0):
    name, theirs, ours = CASES[case]
    mine = VisionTransformer(5, **OURS, **ours, drop_path=drop_path)
    for parameter in mine.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    peer = timm.create_model(name, **THEIRS, **theirs, drop_path_rate=drop_path)
    peer.load_state_dict(to_timm(mine))
    return peer, mine


# Row 13. Both draw one number per sample and branch from torch's generator, in the same order.
@pytest.mark.parametrize("case", CASES)
def test_a_training_step_with_stochastic_depth(case):
    peer, mine = twins(case, drop_path=0.6)
    images, results = torch.randn(8, 3, 32, 32), []
    if case == "distilled":
        peer.set_distilled_training(True)
    for network in (peer.train(), mine.train()):
        torch.manual_seed(7)
        logits = network(images) if network is peer else network.forward_heads(images)
        logits = [one for one in (logits if isinstance(logits, tuple) else (logits,)) if one is not None]
        sum(functional.cross_entropy(one, torch.arange(8) % 5) for one in logits).backward()
        results.append(logits)
    torch.testing.assert_close(*map(list, results), atol=1e-5, rtol=1e-5)
    for parameter in mine.parameters():
        parameter.data = parameter.grad
    gradients = to_timm(mine)
    for name, parameter in peer.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_features(case):
    peer, mine = twins(case)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(mine.eval().forward_features(images), peer.eval().forward_features(images))
        theirs = peer.forward_intermediates(images, indices=[0, 2], intermediates_only=True)
        torch.testing.assert_close(mine.forward_intermediates(images, [0, 2]), theirs)
        mine.set_input_size((40, 24))
        peer.set_input_size((40, 24))
        assert mine(torch.randn(2, 3, 40, 24)).shape == (2, 5)


# Row 10: timm resamples with antialias.
@pytest.mark.parametrize("case", ["distilled", "deit3"])
@pytest.mark.parametrize("size", [(24, 16), (64, 40)])
def test_input_size(case, size):
    peer, mine = twins(case)
    other = VisionTransformer(5, **{**mine.settings, "position_antialias": True})
    other.load_state_dict(mine.state_dict())
    other.set_input_size(size)
    mine.set_input_size(size)
    peer.set_input_size(size)
    torch.testing.assert_close(other.positions, peer.pos_embed)
    assert (mine.positions - peer.pos_embed).abs().max() > 0.01


@pytest.mark.parametrize("case", CASES)
def test_depths_and_decay(case):
    peer, mine = twins(case)
    depths = models.group_parameters(peer, peer.group_matcher(coarse=False), reverse=True)
    undecayed = mine.no_weight_decay()
    for name, parameter in mine.named_parameters():
        parameter.data.fill_(mine.layer_of(name))
    assert {name: set(tensor.flatten().tolist()) for name, tensor in to_timm(mine).items()} == {
        name: {float(depth)} for name, depth in depths.items()
    }
    assert mine.num_layers + 1 == max(depths.values())
    for name, parameter in mine.named_parameters():
        parameter.data.fill_(name in undecayed)
    names = {name for name, tensor in to_timm(mine).items() if tensor.any()}
    assert names == peer.no_weight_decay() & depths.keys()
