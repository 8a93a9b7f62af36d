"""CaiT: talking heads, class attention, its initialisation and its protocol."""

import copy

import pytest
import torch
from torch.nn import functional

from lit_models.classification.cait import SIZES, CaiT, TalkingHeadsAttention

SMALL = {"image_size": 16, "patch_size": 4, "dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2.0}


def build(num_classes=5, **changes):
    network = CaiT(num_classes, **{**SMALL, **changes}).eval()
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return network


def draw():
    return torch.randn(2, 3, 16, 16)


def by_hand(network, images):
    """The network once more in plain loops over heads, from the paper."""
    norm = lambda module, x: functional.layer_norm(x, (24,), module.weight, module.bias, 1e-6)  # noqa: E731
    split = lambda x: x.unflatten(-1, (3, 8)).transpose(1, 2)  # noqa: E731

    def talk(attention, x):
        query, key, value = map(split, attention.query_key_value(x).chunk(3, dim=-1))
        scores = query @ key.transpose(-1, -2) / 8**0.5
        scores = attention.mix_scores(scores.movedim(1, -1)).softmax(2)
        weights = attention.mix_weights(scores).movedim(-1, 1)
        return attention.output((weights @ value).transpose(1, 2).flatten(2))

    def feed(module, x):
        return module.contract(functional.gelu(module.expand(x)))

    x = functional.conv2d(images, network.patch_embedding.weight, network.patch_embedding.bias, 4)
    x = x.flatten(2).transpose(1, 2) + network.positions
    for layer in network.layers:
        x = x + layer.attention_scale * talk(layer.attention, norm(layer.attention_norm, x))
        x = x + layer.feed_forward_scale * feed(layer.feed_forward, norm(layer.feed_forward_norm, x))
    token = network.class_token.expand(2, -1, -1)
    for layer in network.class_layers:
        both = norm(layer.attention_norm, torch.cat([token, x], 1))
        query, key, value = map(split, layer.attention.query_key_value(both).chunk(3, dim=-1))
        weights = (query[:, :, :1] @ key.transpose(-1, -2) / 8**0.5).softmax(-1)
        token = token + layer.attention_scale * layer.attention.output((weights @ value).transpose(1, 2).flatten(2))
        token = token + layer.feed_forward_scale * feed(layer.feed_forward, norm(layer.feed_forward_norm, token))
    return norm(network.norm, torch.cat([token, x], 1))


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_layers_follow_the_paper(qkv_bias):
    network, images = build(qkv_bias=qkv_bias), draw()
    expected = by_hand(network, images)
    torch.testing.assert_close(network.forward_features(images), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(network(images), network.head(expected[:, 0]), atol=1e-5, rtol=1e-5)
    assert network.forward_heads(images).distillation is None


# Row 17: 1e-5 down to 24 layers, 1e-6 in deeper networks; row 5: the norms' epsilon.
def test_initialisation():
    network = CaiT(10, **{**SMALL, "dim": 192})
    for layer in (*network.layers, *network.class_layers):
        for scale in (layer.attention_scale, layer.feed_forward_scale):
            assert torch.equal(scale, torch.full((192,), 1e-5))
        assert layer.attention_norm.eps == layer.feed_forward_norm.eps == network.norm.eps == 1e-6
        assert not layer.attention.query_key_value.bias.any()
        assert layer.attention.query_key_value.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert network.positions.std().item() == pytest.approx(0.02, rel=0.06)
    assert network.class_token.std().item() == pytest.approx(0.02, rel=0.25)
    assert network.positions.shape == (1, 16, 192)  # none for the class token
    assert {name: size["layer_scale"] for name, size in SIZES.items() if size["depth"] > 24} == {
        "xxs36": 1e-5,
        "s36": 1e-6,
        "m36": 1e-6,
        "m48": 1e-6,
    }


# Row 13: CaiT was first released without drop path; it is constant, and the class-attention layers have none.
def test_stochastic_depth_is_constant():
    network = CaiT(5, **SMALL, drop_path=0.4)
    assert [layer.drop_path for layer in network.layers] == [0.4, 0.4]
    assert [layer.drop_path for layer in network.class_layers] == [0.0, 0.0]
    network = build(drop_path=0.4).train()
    images = draw()
    assert not torch.equal(network(images), network(images))


def test_attention_maps_reproduce_the_layers():
    network, images = build(), draw()
    network.train()
    maps = network.attention_maps(images)
    assert network.training
    network.eval()
    assert [tuple(each.shape) for each in maps] == [(2, 3, 16, 16)] * 2 + [(2, 3, 1, 17)] * 2
    layer = network.layers[0]
    input = layer.attention_norm(None, network.embed(images))[0]
    value = layer.attention.project(input)[2]
    attended = layer.attention.output((maps[0] @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attended, layer.attention(input), atol=1e-5, rtol=1e-5)
    # Each head's row sums to what the second mixing makes of rows that sum to 1.
    mixed = layer.attention.mix_weights.weight.sum(1) + 16 * layer.attention.mix_weights.bias
    torch.testing.assert_close(maps[0].sum(-1), mixed[None, :, None].expand(2, 3, 16), atol=1e-5, rtol=1e-5)
    for weights in maps[2:]:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 1))


def test_intermediates_and_checkpointing():
    network, images = build(drop_path=0.5), draw()
    maps = network.forward_intermediates(images)
    assert [tuple(each.shape) for each in maps] == [(2, 24, 4, 4)] * 2
    normed = network.norm(maps[-1].flatten(2).transpose(1, 2))
    torch.testing.assert_close(normed, network.forward_features(images)[:, 1:])
    network.train()
    gradients = []
    for network.grad_checkpointing in (False, True):
        torch.manual_seed(3)
        network.zero_grad()
        network(images).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    torch.testing.assert_close(*gradients)


def test_protocol():
    network, images = build(), draw()
    assert network.no_weight_decay() == {"class_token", "positions"}
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}
    network.set_input_size(24)
    assert network.positions.shape == (1, 36, 24)
    twin = CaiT(5, **network.settings)
    twin.load_state_dict(network.state_dict())
    network.reset_classifier(0)
    larger = torch.randn(2, 3, 24, 24)
    torch.testing.assert_close(network(larger), network.forward_features(larger)[:, 0])
    with pytest.raises(ValueError, match=r"takes images \(batch, 3, 24, 24\), got \(2, 3, 16, 16\)"):
        network(images)


def test_dropout_kinds():
    for kind in ("dropout", "attention_dropout"):
        network = build(**{kind: 0.5}).train()
        images = draw()
        assert not torch.equal(network(images), network(images)), kind


@pytest.mark.parametrize(("name", "millions"), [("xxs24", 11.956), ("s24", 46.917), ("m48", 356.459)])
def test_parameter_counts_are_the_published_ones(name, millions):
    with torch.device("meta"):
        network = CaiT.of_size(name, 1000, image_size=448 if name == "m48" else 224)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "num_heads 5 must divide dim 24"),
        ({"class_depth": 0}, "class_depth must be at least 1, got 0"),
        ({"image_size": (16, 18)}, "image_size 16x18 must be a multiple of patch_size 4x4"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        CaiT(5, **{**SMALL, **changes})


def test_unknown_size():
    with pytest.raises(ValueError, match="no CaiT of size 'tiny'; there are xxs24"):
        CaiT.of_size("tiny", 10)


@pytest.mark.parametrize("autocast", [False, True])
def test_row_15_scores_beyond_half_precision_do_not_overflow(autocast):
    torch.manual_seed(0)
    attention = TalkingHeadsAttention(32, 2)
    query, key = (240 * torch.randn(1, 2, 7, 16).half() for _ in range(2))
    assert (query.double() @ key.double().transpose(-1, -2) / 4).abs().max() > 65504, "or nothing is tested"
    expected = copy.deepcopy(attention).double()._mixed_weights(query.double(), key.double())
    attention = attention if autocast else attention.half()
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        found = attention._mixed_weights(query, key)
    assert found.dtype == torch.float16
    # The softmax of such scores is 0 or 1: what is left is the rounding of the second mixing's weights and sums.
    torch.testing.assert_close(found.double(), expected, atol=2**-10, rtol=2**-10)
