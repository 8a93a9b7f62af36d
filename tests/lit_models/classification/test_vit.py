"""The Vision Transformer: its variants, its initialisation, its protocol, and what each usual mistake would break."""

import math

import pytest
import torch
from torch.nn import functional

from lit_models.classification.vit import SIZES, VisionTransformer

SMALL = {"image_size": 16, "patch_size": 4, "dim": 32, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0}
VARIANTS = {
    "plain": {},
    "distilled": {"distilled": True},
    "rectangular": {"image_size": (16, 24), "patch_size": (8, 4)},
    "average": {"class_token": False, "pool": "average", "pool_norm": True},
    "registers": {"registers": 3, "qk_norm": True, "pool": "average"},
    "deit3": {"layer_scale": 0.1, "prefix_positions": False, "drop_path_mode": "constant", "qkv_bias": False},
}


def build(num_classes=5, **changes):
    network = VisionTransformer(num_classes, **{**SMALL, **changes}).eval()
    for parameter in network.parameters():  # nothing at its neutral value, and attention far from uniform
        parameter.data += 0.2 * torch.randn_like(parameter)
    return network


def draw(network, batch=3):
    return torch.randn(batch, 3, *network.image_size)


@pytest.fixture(params=VARIANTS, ids=str)
def network(request):
    return build(**VARIANTS[request.param])


def by_hand(network, images):
    """The whole network once more, sublayer by sublayer, from the papers."""
    norm = lambda module, x: functional.layer_norm(x, (32,), module.weight, module.bias, 1e-6)  # noqa: E731
    x = functional.conv2d(
        images, network.patch_embedding.weight, network.patch_embedding.bias, network.patch_embedding.stride
    )
    x = x.flatten(2).transpose(1, 2)
    if not network.prefix_positions:
        x = x + network.positions
    for token in (network.register_tokens, network.distillation_token, network.class_token):
        x = x if token is None else torch.cat([token.expand(len(images), -1, -1), x], dim=1)
    if network.prefix_positions:
        x = x + network.positions
    for layer in network.layers:
        branch = layer.attention(norm(layer.attention_norm, x))
        x = x + (branch if layer.attention_scale is None else branch * layer.attention_scale)
        hidden = functional.gelu(layer.feed_forward.expand(norm(layer.feed_forward_norm, x)))
        branch = layer.feed_forward.contract(hidden)
        x = x + (branch if layer.feed_forward_scale is None else branch * layer.feed_forward_scale)
    x = x if network.pool_norm else norm(network.norm, x)
    pooled = x[:, 0] if network.pool == "token" else x[:, network.prefix_tokens :].mean(1)
    pooled = norm(network.norm, pooled) if network.pool_norm else pooled
    distillation = None if network.distillation_token is None else network.head_distillation(x[:, 1])
    return network.head(pooled), distillation


def test_layers_follow_the_papers(network):
    images = draw(network)
    classes, distillation = by_hand(network, images)
    heads = network.forward_heads(images)
    torch.testing.assert_close(heads.classes, classes, atol=1e-5, rtol=1e-5)
    assert (heads.distillation is None) == (distillation is None)
    if distillation is not None:
        torch.testing.assert_close(heads.distillation, distillation, atol=1e-5, rtol=1e-5)


# Row 1: the distillation head is a second head on its own token; prediction is the mean of the logits.
def test_two_heads():
    network = build(distilled=True)
    images = draw(network)
    heads = network.forward_heads(images)
    features = network.forward_features(images)
    torch.testing.assert_close(heads.classes, network.head(features[:, 0]))
    torch.testing.assert_close(heads.distillation, network.head_distillation(features[:, 1]))
    assert not torch.allclose(heads.classes, heads.distillation, atol=0.1)
    assert torch.equal(network(images), (heads.classes + heads.distillation) / 2)


def test_the_last_layer_computed_for_the_heads_alone_gives_the_same_gradients(network):
    images = draw(network)
    network.forward_heads(images).mean.square().sum().backward()
    short = {name: parameter.grad for name, parameter in network.named_parameters()}
    network.zero_grad()
    network.forward_head(network.forward_features(images)).mean.square().sum().backward()
    for name, parameter in network.named_parameters():
        largest = parameter.grad.abs().max().item()
        torch.testing.assert_close(short[name], parameter.grad, atol=1e-5 * max(largest, 1.0), rtol=0, msg=name)


def test_initialisation_is_deits():
    """Normal of deviation 0.02 (the bounds ±2 are absolute, so no tail is cut), zero biases, neutral norms."""
    network = VisionTransformer(1000, **{**SMALL, "dim": 256}, distilled=True, registers=4)
    for name, parameter in network.named_parameters():
        if name.startswith("patch_embedding"):
            bound = 1 / math.sqrt(3 * 4 * 4)
            assert parameter.abs().max().item() == pytest.approx(bound, rel=0.05), name
        elif name.endswith("norm.weight"):
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:  # relative deviation of a deviation from n draws: 1 / sqrt(2n); four of them
            assert parameter.std().item() == pytest.approx(0.02, rel=4 / math.sqrt(2 * parameter.numel())), name
    weights = torch.cat([p.detach().flatten() for n, p in network.named_parameters() if n.endswith("expand.weight")])
    assert weights.abs().max() > 0.08  # beyond four deviations: a truncation at two would show


# Row 17.
@pytest.mark.parametrize("value", [1e-5, 0.1])
def test_layer_scale_starts_at_its_value(value):
    network = VisionTransformer(5, **SMALL, layer_scale=value)
    for layer in network.layers:
        assert torch.equal(layer.attention_scale, torch.full((32,), value))
        assert torch.equal(layer.feed_forward_scale, torch.full((32,), value))
    assert all(layer.attention_scale is None for layer in VisionTransformer(5, **SMALL).layers)


# Row 5.
def test_norm_epsilon():
    def epsilons(network):
        return {module.eps for module in network.modules() if hasattr(module, "eps")}

    assert epsilons(VisionTransformer(5, **SMALL, qk_norm=True)) == {1e-6}
    assert epsilons(VisionTransformer(5, **SMALL, qk_norm=True, norm_eps=1e-12)) == {1e-12}


# Row 13.
@pytest.mark.parametrize(("mode", "rates"), [("linear", [0.0, 0.3, 0.6]), ("constant", [0.6, 0.6, 0.6])])
def test_stochastic_depth(mode, rates):
    network = VisionTransformer(5, **SMALL, drop_path=0.6, drop_path_mode=mode)
    assert [layer.drop_path for layer in network.layers] == pytest.approx(rates)
    images = draw(network)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


def test_stochastic_depth_drops_both_branches_of_a_sample():
    layer = VisionTransformer(5, **SMALL, drop_path=0.5, drop_path_mode="constant").layers[0].train()
    branch, residual = layer(None, stream := torch.randn(64, 3, 32))
    for change in (residual - stream, branch):
        dropped = (change == 0).all(2).all(1)
        assert torch.equal(dropped, (change == 0).all(2).any(1))  # all tokens of a sample or none
        assert 12 < dropped.sum() < 52


def test_dropout_kinds():
    for kind in ("dropout", "attention_dropout"):
        network = VisionTransformer(5, **SMALL, **{kind: 0.5})
        images = draw(network)
        assert not torch.equal(network(images), network(images)), kind
        network.eval()
        assert torch.equal(network(images), network(images)), kind


def test_intermediates_are_maps_of_the_residual_stream(network):
    images = draw(network)
    maps = network.forward_intermediates(images)
    assert [tuple(each.shape) for each in maps] == [(3, 32, *network.grid)] * 3
    last, first = network.forward_intermediates(images, [-1, 0])
    assert torch.equal(last, maps[2])
    assert torch.equal(first, maps[0])
    if not network.pool_norm:
        normed = network.norm(None, maps[-1].flatten(2).transpose(1, 2))[0]
        torch.testing.assert_close(normed, network.forward_features(images)[:, network.prefix_tokens :])
    with pytest.raises(ValueError, match=r"layers \[3\] do not exist: the network has 3, from 0 to 2"):
        network.forward_intermediates(images, [3])


def test_attention_maps_reproduce_the_layers(network):
    images = draw(network)
    network.train()
    maps = network.attention_maps(images)
    assert network.training
    tokens = network.prefix_tokens + math.prod(network.grid)
    assert [tuple(each.shape) for each in maps] == [(3, 2, tokens, tokens)] * 3
    network.eval()
    branch, residual = None, network.embed(images)
    for layer, weights in zip(network.layers, maps, strict=True):
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, tokens))
        input = layer.attention_norm(branch, residual)[0]
        value = layer.attention.project(input)[2]
        attended = layer.attention.output((weights @ value).transpose(1, 2).flatten(2))
        torch.testing.assert_close(attended, layer.attention(input), atol=1e-5, rtol=1e-5)
        branch, residual = layer(branch, residual)


def test_reset_classifier():
    network = build(distilled=True).double()
    images, body = draw(network).double(), network.layers[0].attention.output.weight.clone()
    network.reset_classifier(7)
    heads = network.forward_heads(images)
    assert heads.classes.shape == heads.distillation.shape == (3, 7)
    assert network.num_classes == 7
    assert network.head_distillation.weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert torch.equal(body, network.layers[0].attention.output.weight)
    network.reset_classifier(0)
    features = network.forward_features(images)
    torch.testing.assert_close(network.forward_heads(images).classes, features[:, 0])
    with pytest.raises(ValueError, match="num_classes must be at least 0, got -1"):
        network.reset_classifier(-1)


# Row 10: the network half.
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(
    "variant", [{}, {"distilled": True}, {"prefix_positions": False}, {"registers": 3, "distilled": True}]
)
def test_another_input_size(antialias, variant):
    network = build(position_antialias=antialias, **variant)
    before, prefix = network.positions.detach().clone(), network.prefix_positions
    network.set_input_size((24, 32))
    grid = before[:, prefix:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, (6, 8), mode="bicubic", align_corners=False, antialias=antialias)
    assert torch.equal(network.positions[:, :prefix], before[:, :prefix])
    torch.testing.assert_close(network.positions[:, prefix:], grid.flatten(2).transpose(1, 2))
    assert network(torch.randn(2, 3, 24, 32)).shape == (2, 5)
    assert isinstance(network.positions, torch.nn.Parameter)
    assert network.image_size == (24, 32)
    assert network.settings["image_size"] == (24, 32)
    twin = VisionTransformer(5, **network.settings)
    twin.load_state_dict(network.state_dict())


def test_state_dict_holds_parameters_alone(network):
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}


def test_decay_groups():
    network = build(distilled=True, registers=2, layer_scale=0.1)
    assert network.no_weight_decay() == {"class_token", "distillation_token", "register_tokens", "positions"}
    assert build(class_token=False, pool="average").no_weight_decay() == {"positions"}
    assert network.num_layers == 3
    assert network.layer_of("positions") == network.layer_of("patch_embedding.weight") == 0
    assert [network.layer_of(f"layers.{layer}.attention_norm.weight") for layer in range(3)] == [1, 2, 3]
    assert network.layer_of("head.weight") == network.layer_of("head_distillation.bias") == 4


def test_checkpointing_keeps_the_gradients():
    network = build(drop_path=0.5, distilled=True).train()
    images, gradients = draw(network), []
    for network.grad_checkpointing in (False, True):
        torch.manual_seed(3)
        network.zero_grad()
        network(images).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("tiny", 5.717),
        ("small", 22.051),
        ("base", 86.568),
        ("large", 304.327),
        ("vit_lite_6", 3.195),
        ("vit_lite_7", 3.722),
    ],
)
def test_parameter_counts_are_the_published_ones(name, millions):
    # timm's model cards for ImageNet; 3.19 M and 3.72 M of Hassani et al. 2021 for CIFAR-10
    classes = 10 if "lite" in name else 1000
    with torch.device("meta"):
        network = VisionTransformer.of_size(name, classes)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


def test_sizes_and_overrides():
    with torch.device("meta"):
        network = VisionTransformer.of_size("vit_lite_2", 10, drop_path=0.1, mlp_ratio=2.0)
    assert network.image_size == (32, 32)
    assert network.settings["mlp_ratio"] == 2.0
    with pytest.raises(ValueError, match="no VisionTransformer of size 'huge'; there are " + ", ".join(SIZES)):
        VisionTransformer.of_size("huge", 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "num_heads 5 must divide dim 32"),
        ({"image_size": 18}, "image_size 18x18 must be a multiple of patch_size 4x4"),
        ({"pool": "max"}, "pool must be token or average, got 'max'"),
        ({"class_token": False}, 'pool="token" reads the class token'),
        ({"distilled": True, "class_token": False, "pool": "average"}, "distilled=True .* needs class_token=True"),
        ({"distilled": True, "pool_norm": True}, "distilled=True .* pool_norm=False"),
        ({"registers": -1}, "registers must be at least 0, got -1"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"drop_path": 1.0}, r"drop_path must be in \[0, 1\), got 1.0"),
        ({"drop_path_mode": "cosine"}, "drop_path_mode must be one of linear, constant, got 'cosine'"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0.1"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        VisionTransformer(5, **{**SMALL, **changes})


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"takes images \(batch, 3, 16, 16\), got \(1, 3, 24, 24\).*set_input_size"):
        build()(torch.zeros(1, 3, 24, 24))
