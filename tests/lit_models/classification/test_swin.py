"""Swin V1 and V2: layers by hand, small and odd maps, initialisation, protocol, and what each usual mistake breaks."""

import math

import pytest
import torch
from torch.nn import functional
from window_testing import window_formula

from lit_models.classification.swin import SIZES, PatchMerging, SwinTransformer
from lit_models.layers import CosineWindowAttention
from lit_models.layers.window_attention import fit_window, log_spaced_offsets

SMALL = {"dim": 8, "depths": (2, 3, 2), "num_heads": (1, 2, 4), "window_size": 3, "patch_size": 2, "mlp_ratio": 2.0}
VARIANTS = {
    "v1": {},
    "v2": {"version": 2},
    "timm": {"padding": "timm", "qkv_bias": False},
    "v2 timm": {"version": 2, "padding": "timm", "qkv_bias": False, "pretrained_window_size": 6},
    "microsoft": {"padding": "microsoft"},
    "v2 microsoft": {"version": 2, "padding": "microsoft", "pretrained_window_size": (8, 6, 4)},
    "fixed": {"padding": "fixed", "unshifted_stages": 1},
    "rectangles": {"window_size": (3, (2, 4), 2)},
}
# Maps of 11 x 9 (torchvision's, which leave out a row of pixels: 10 x 9), 6 x 5 and 3 x 3 positions: images and maps
# that need padding, and maps of one window.
ODD = (21, 18)


def build(num_classes=5, **changes):
    network = SwinTransformer(num_classes, **{**SMALL, **changes}).eval()
    for parameter in network.parameters():  # nothing at its neutral value, and attention far from uniform
        parameter.data += 0.3 * torch.randn_like(parameter)
    return network


@pytest.fixture(params=VARIANTS, ids=str)
def network(request):
    return build(**VARIANTS[request.param])


def norm_by_hand(module, x):
    return functional.layer_norm(x, x.shape[-1:], module.weight, module.bias, 1e-5)


def attention_by_hand(attention, x):
    """Attention with padding, rolling and partition written out, its windows chosen by the rules of each library."""
    (rows, columns), full = x.shape[1:3], attention.window_size
    window, shift = list(full), list(attention.shift)
    if attention.padding == "microsoft" and min(rows, columns) <= full[0]:
        window, shift = [min(rows, columns)] * 2, [0, 0]
    for axis, length in enumerate((rows, columns)):
        if attention.padding in ("timm", "torchvision") and length <= full[axis]:
            shift[axis] = 0
            window[axis] = length if attention.padding == "timm" else full[axis]
    weight, extra = attention.query_key_value.weight, {}
    if isinstance(attention, CosineWindowAttention):
        bias = attention.query_bias
        bias = None if bias is None else torch.cat([bias, 0 * bias, attention.value_bias])
        unit = attention.pretrained_window_size or window
        first, _, last = attention.position_mlp
        table = []
        for row in range(1 - window[0], window[0]):
            for column in range(1 - window[1], window[1]):
                place = [8 * offset / (side - 1) for offset, side in zip((row, column), unit, strict=True)]
                place = [math.copysign(math.log2(1 + abs(each)), each) / 3 for each in place]
                hidden = functional.relu(first.weight @ torch.tensor(place) + first.bias)
                table.append(16 / (1 + torch.exp(-last.weight @ hidden)))
        table = torch.stack(table)
        extra["logit_scale"] = attention.logit_scale.exp().clamp(max=100.0)
    else:
        bias = attention.query_key_value.bias
        table = attention.bias_table.view(2 * full[0] - 1, 2 * full[1] - 1, -1)
        table = torch.stack(
            [
                table[full[0] - 1 + row, full[1] - 1 + column]
                for row in range(1 - window[0], window[0])
                for column in range(1 - window[1], window[1])
            ]
        )
    attended = window_formula(
        functional.linear(x, weight, bias),
        table,
        window_size=window,
        shift=shift,
        num_heads=attention.num_heads,
        pad_mode=attention.pad_mode,
        qkv_padding=bias,
        **extra,
    )
    return attention.output(attended)


def by_hand(network, images):
    """The whole network once more, sublayer by sublayer, from the papers; returns the stages' maps and the logits."""
    size, post = network.settings["patch_size"], network.settings["version"] == 2
    if network.settings["padding"] != "torchvision":
        images = functional.pad(images, (0, -images.shape[3] % size, 0, -images.shape[2] % size))
    x = functional.conv2d(images, network.patch_embedding.weight, network.patch_embedding.bias, stride=size)
    x, maps = norm_by_hand(network.patch_norm, x.permute(0, 2, 3, 1)), []
    for stage in network.stages:
        if stage.merging is not None:
            x = functional.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
            x = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=-1)
            x = x if post else norm_by_hand(stage.merging.norm, x)
            x = x @ stage.merging.reduction.weight.T
            x = norm_by_hand(stage.merging.norm, x) if post else x
        for layer in stage.layers:
            sublayers = (
                (layer.attention_norm, lambda y, layer=layer: attention_by_hand(layer.attention, y)),
                (layer.feed_forward_norm, layer.feed_forward),
            )
            for norm, sublayer in sublayers:
                x = x + (norm_by_hand(norm, sublayer(x)) if post else sublayer(norm_by_hand(norm, x)))
        maps.append(x.permute(0, 3, 1, 2))
    return maps, network.head(norm_by_hand(network.norm, x).mean((1, 2)))


# Rows 5 to 8: epsilon of the norms, order of the merging, windows and shifts of small maps, value of the mask.
@pytest.mark.parametrize("image_size", [(24, 24), ODD, (5, 40)])  # divided; padded; one axis shorter than a window
def test_layers_follow_the_papers(network, image_size):
    images = torch.randn(2, 3, *image_size)
    maps, logits = by_hand(network, images)
    torch.testing.assert_close(network(images), logits, atol=1e-4, rtol=1e-4)
    for mine, expected in zip(network.forward_intermediates(images), maps, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-4, rtol=1e-4)


# Row 7. Maps one shorter than a window, equal to it (`<=`, not `<`), and one longer.
@pytest.mark.parametrize(
    ("padding", "size", "expected"),
    [
        ("torchvision", (6, 8), ((7, 7), (0, 3))),
        ("torchvision", (7, 7), ((7, 7), (0, 0))),
        ("timm", (6, 8), ((6, 7), (0, 3))),
        ("timm", (8, 7), ((7, 7), (3, 0))),
        ("timm", (2, 3), ((2, 3), (0, 0))),
        ("microsoft", (6, 8), ((6, 6), (0, 0))),
        ("microsoft", (14, 7), ((7, 7), (0, 0))),
        ("microsoft", (8, 8), ((7, 7), (3, 3))),
        ("fixed", (6, 2), ((7, 7), (3, 3))),
    ],
)
def test_windows_of_small_maps(padding, size, expected):
    assert fit_window(size, (7, 7), (3, 3), padding) == expected


def test_every_second_layer_is_shifted():
    shifts = [[layer.attention.shift for layer in stage.layers] for stage in build(window_size=5).stages]
    assert shifts == [[(0, 0), (2, 2)], [(0, 0), (2, 2), (0, 0)], [(0, 0), (2, 2)]]


def test_stages_that_never_shift():
    network = build(padding="fixed", unshifted_stages=2)
    shifts = [{layer.attention.shift for layer in stage.layers} for stage in network.stages]
    assert shifts == [{(0, 0), (1, 1)}, {(0, 0)}, {(0, 0)}]


def test_torchvisions_patches_leave_out_the_rest():
    network, images = build(patch_size=4), torch.randn(2, 3, 34, 27)
    assert torch.equal(network(images), network(images[:, :, :32, :24]))
    with pytest.raises(ValueError, match="the network has patches of 4 x 4 pixels, got images of 3 x 40"):
        network(torch.zeros(1, 3, 3, 40))


# Row 6: (row, column) of the four in the order of the weights. Each position of this map holds its own number.
def test_order_of_patch_merging():
    merging = PatchMerging(1, 4, 1e-5, norm_first=False)
    merging.reduction.weight.data = torch.eye(4)
    merging.norm = torch.nn.Identity()
    merged = merging(torch.arange(15.0).view(1, 3, 5, 1))
    assert merged.shape == (1, 2, 3, 4)
    assert merged[0, 0, 0].tolist() == [0, 5, 1, 6]
    assert merged[0, 1, 2].tolist() == [14, 0, 0, 0]  # what follows the last row and column is zero


def test_state_holds_nothing_but_parameters(network):
    network(torch.randn(1, 3, *ODD))
    assert network.state_dict().keys() == dict(network.named_parameters()).keys()
    assert not list(network.buffers())


def test_keys_have_no_bias_in_v2():
    attention = build(version=2).stages[1].layers[0].attention
    names = {name for name, _ in attention.named_parameters() if "bias" in name}
    assert names == {"query_bias", "value_bias", "output.bias", "position_mlp.0.bias"}
    assert not attention.projection_bias()[16:32].any()


def test_scales_of_v2_end_at_100():
    attention = CosineWindowAttention(8, 2, (3, 3))
    torch.testing.assert_close(attention.scale_of_cosines(), torch.full((2,), 10.0))
    attention.logit_scale.data = torch.tensor([4.0, 9.0])
    torch.testing.assert_close(attention.scale_of_cosines(), torch.tensor([math.exp(4), 100.0]))


def test_offsets_are_relative_to_the_pretrained_window():
    device = torch.device("cpu")
    # One row or column of a window of five is a quarter of the way, 2 of 8: log2(3) / 3.
    step, two = math.log2(3) / 3, math.log2(5) / 3
    expected = [(row * step, column) for row in (-1, 0, 1) for column in (-two, -step, 0, step, two)]
    torch.testing.assert_close(log_spaced_offsets((2, 3), (5, 5), device), torch.tensor(expected))
    assert torch.equal(log_spaced_offsets((1, 1), (1, 1), device), torch.zeros(1, 2))


def test_position_bias_is_not_rounded_under_autocast():
    attention = CosineWindowAttention(8, 2, (3, 3))
    expected = attention.table((3, 3))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention.table((3, 3)), expected)


def test_initialisation():
    """Normal of deviation 0.02 with no tail cut, zero biases, neutral norms; the branches of V2 start at zero."""
    for version in (1, 2):
        network = SwinTransformer(500, **{**SMALL, "dim": 64, "window_size": 12}, version=version)
        for name, parameter in network.named_parameters():
            if name.startswith("patch_embedding"):
                assert parameter.abs().max().item() == pytest.approx(1 / math.sqrt(3 * 2 * 2), rel=0.1), name
            elif name.endswith("norm.weight"):
                start = 0.0 if version == 2 and name.endswith(("attention_norm.weight", "forward_norm.weight")) else 1.0
                assert torch.equal(parameter, torch.full_like(parameter, start)), name
            elif name.endswith("bias"):
                assert not parameter.any(), name
            elif name.endswith("logit_scale"):
                assert torch.equal(parameter, torch.full_like(parameter, math.log(10))), name
            else:  # relative deviation of a deviation from n draws: 1 / sqrt(2n); five of them
                assert parameter.std().item() == pytest.approx(0.02, rel=5 / math.sqrt(2 * parameter.numel())), name
        assert network.head.weight.abs().max() > 0.075  # a truncation at two or three deviations would show


# Row 5.
def test_norm_epsilon():
    for version in (1, 2):
        epsilons = {module.eps for module in build(version=version).modules() if hasattr(module, "eps")}
        assert epsilons == {1e-5}


# Row 13: linear over the layers of all stages, per sample.
def test_stochastic_depth():
    network = build(drop_path=0.6)
    rates = [layer.drop_path for stage in network.stages for layer in stage.layers]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    layer, stream = network.stages[0].layers[0].train(), torch.randn(64, 3, 4, 8)
    layer.drop_path = 0.5
    branch, residual = layer(None, stream)
    for change in (residual - stream, branch):
        dropped = (change == 0).flatten(1)
        assert torch.equal(dropped.all(1), dropped.any(1))  # a whole sample or nothing of it
        assert 12 < dropped.all(1).sum() < 52


@pytest.mark.parametrize("version", [1, 2])
def test_dropout_kinds(version):
    for kind in ("dropout", "attention_dropout", "drop_path"):
        network, images = build(version=version, **{kind: 0.5}), torch.randn(2, 3, *ODD)
        assert torch.equal(network(images), network(images)), kind
        network.train()
        assert not torch.equal(network(images), network(images)), kind


# Row 9's other half: what is not decayed although it has two dimensions.
def test_no_weight_decay():
    names = {name.split("attention.")[1] for name in build().no_weight_decay()}
    assert names == {"bias_table"}
    names = {name.split("attention.")[1] for name in build(version=2).no_weight_decay()}
    assert names == {"logit_scale", "position_mlp.0.weight", "position_mlp.0.bias", "position_mlp.2.weight"}


def test_depth_of_parameters():
    network = build()
    assert network.num_layers == 7
    depths = {name: network.layer_of(name) for name, _ in network.named_parameters()}
    assert depths["patch_embedding.weight"] == depths["patch_norm.bias"] == 0
    assert depths["stages.0.layers.1.attention.bias_table"] == 2
    assert depths["stages.1.merging.reduction.weight"] == depths["stages.1.layers.0.attention.output.bias"] == 3
    assert depths["stages.2.layers.1.feed_forward.expand.weight"] == depths["norm.weight"] == 7
    assert depths["head.weight"] == 8


def test_maps_of_a_backbone(network):
    images = torch.randn(2, 3, *ODD)
    maps = network.forward_intermediates(images)
    rows = (10, 5, 3) if network.settings["padding"] == "torchvision" else (11, 6, 3)
    shapes = [(2, 8 * 2**stage, rows[stage], (9, 5, 3)[stage]) for stage in range(3)]
    assert [tuple(each.shape) for each in maps] == shapes
    assert network.feature_channels == (8, 16, 32)
    assert network.feature_strides == (2, 4, 8)
    last, first = network.forward_intermediates(images, [-1, 0])
    assert torch.equal(last, maps[2])
    assert torch.equal(first, maps[0])
    normed = network.norm(None, maps[2].permute(0, 2, 3, 1))[0].flatten(1, 2)
    torch.testing.assert_close(normed, network.forward_features(images))
    with pytest.raises(ValueError, match=r"layers \[3\] do not exist: the network has 3 stages, from 0 to 2"):
        network.forward_intermediates(images, [3])


def test_any_image_size():
    network = build(padding="timm")
    assert network.image_size is None
    network.set_input_size((40, 30))
    for size in ((40, 30), (1, 1), (64, 8)):
        assert network(torch.randn(1, 3, *size)).shape == (1, 5)
    with pytest.raises(ValueError, match=r"takes images \(batch, 3, height, width\), got \(1, 1, 8, 8\)"):
        network(torch.randn(1, 1, 8, 8))


def test_reset_classifier():
    network = build().double()
    images = torch.randn(2, 3, *ODD).double()
    network.reset_classifier(7)
    assert network(images).shape == (2, 7)
    assert network.head.weight.std().item() == pytest.approx(0.02, rel=0.3)
    network.reset_classifier(0)
    torch.testing.assert_close(network(images), network.forward_features(images).mean(1))
    with pytest.raises(ValueError, match="no attention maps: a position sees its window alone, and window_size is 3"):
        network.attention_maps(images)


@pytest.mark.parametrize("version", [1, 2])
def test_checkpointed_layers_give_the_same_gradients(version):
    network, images = build(version=version, drop_path=0.3, dropout=0.1).train(), torch.randn(3, 3, *ODD)
    results = []
    for network.grad_checkpointing in (False, True):
        network.zero_grad()
        torch.manual_seed(1)
        network(images).square().sum().backward()
        results.append({name: parameter.grad.clone() for name, parameter in network.named_parameters()})
    torch.testing.assert_close(*results)


def test_training_follows_a_validation_in_inference_mode():
    """Whatever is kept between calls must serve autograd, also if inference mode was the first to ask for it."""
    network, images = build(version=2, window_size=5, padding="timm"), torch.randn(1, 3, 22, 26)
    with torch.inference_mode():
        network(images)
    network(images).sum().backward()


def test_sizes():
    for name in SIZES:
        with torch.device("meta"):
            network = SwinTransformer.of_size(name, 10, drop_path=0.1)
        assert network.num_features == network.settings["dim"] * 2 ** (len(network.settings["depths"]) - 1)
        assert {
            width // heads for width, heads in zip(network.feature_channels, network.settings["num_heads"], strict=True)
        } == {32}
    with pytest.raises(ValueError, match="there is no SwinTransformer of size 'huge'; there are swin_tiny, "):
        SwinTransformer.of_size("huge", 10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"version": 3}, "version must be 1 or 2, got 3"),
        ({"num_heads": (1, 2)}, r"depths \[2, 3, 2\] and num_heads \[1, 2\] must have one number for each stage"),
        ({"depths": (2, 0, 2)}, "depths must be at least 1, got 0"),
        ({"num_heads": (1, 3, 4)}, "num_heads 3 must divide dim 16"),
        ({"window_size": (3, 3)}, r"window_size must be one number, or one for each of 3 stages, got \(3, 3\)"),
        ({"window_size": 0}, "window_size must be 1 or more"),
        ({"window_size": (3, (1, 2, 3), 3)}, r"one number or \(rows, columns\) in each stage"),
        ({"window_size": (3, (2, 4), 3), "padding": "microsoft"}, 'padding="microsoft" has square windows'),
        ({"padding": "mmcv"}, "padding must be one of torchvision, timm, microsoft, fixed, got 'mmcv'"),
        ({"unshifted_stages": 1}, 'unshifted_stages must be from 0 to 3, and padding "fixed"; got 1 and'),
        ({"unshifted_stages": 4, "padding": "fixed"}, "unshifted_stages must be from 0 to 3"),
        ({"pretrained_window_size": 8}, "pretrained_window_size is of version 2"),
        ({"patch_size": 0}, "patch_size must be at least 1, got 0"),
        ({"drop_path": 1.0}, r"drop_path must be in \[0, 1\), got 1.0"),
        ({"attention_dropout": -0.1}, r"attention_dropout must be in \[0, 1\), got -0.1"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        SwinTransformer(5, **{**SMALL, **settings})
