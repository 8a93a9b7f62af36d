"""Swin V1 and V2 in training against timm, torchvision and Hugging Face: logits, every gradient, features, depths."""

import re

import pytest
import torch
from torch.nn import functional

from lit_models.classification.swin import SwinTransformer

# Ours to theirs, in this order; torchvision's stages are the odd entries of ``features``, its mergings the even ones.
COMMON = [
    (r"attention_norm\.", "norm1."),
    (r"feed_forward_norm\.", "norm2."),
    (r"attention\.", "attn."),
    (r"query_key_value\.", "qkv."),
    (r"output\.", "proj."),
    (r"bias_table", "relative_position_bias_table"),
    (r"position_mlp", "cpb_mlp"),
]
TIMM = [
    *COMMON,
    (r"feed_forward\.expand", "mlp.fc1"),
    (r"feed_forward\.contract", "mlp.fc2"),
    (r"query_bias", "q_bias"),
    (r"value_bias", "v_bias"),
    (r"^patch_embedding", "patch_embed.proj"),
    (r"^patch_norm", "patch_embed.norm"),
    (r"^stages\.(\d)\.layers", r"layers.\1.blocks"),
    (r"^stages\.(\d)\.merging", r"layers.\1.downsample"),
    (r"^head", "head.fc"),
]
TORCHVISION = [
    *COMMON,
    (r"feed_forward\.expand", "mlp.0"),
    (r"feed_forward\.contract", "mlp.3"),
    (r"^patch_embedding", "features.0.0"),
    (r"^patch_norm", "features.0.2"),
    (r"^stages\.(\d)\.layers", lambda match: f"features.{2 * int(match[1]) + 1}"),
    (r"^stages\.(\d)\.merging", lambda match: f"features.{2 * int(match[1])}"),
]
TINY = {"dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)}
SMALL = {"dim": 24, "depths": (2, 2, 2, 2), "num_heads": (2, 4, 8, 16)}
# Image and window: maps that the windows divide; then 15 x 11, 8 x 6, 4 x 3 and 2 x 2 positions, which need padding for
# the windows and for merging, fit along one axis only, and are smaller than a window.
SIZES = {"divided": ((64, 64), 4), "padded and small": ((60, 44), 3)}


def renamed(tensors, names):
    """Name tensors as a peer does, and give them its shapes."""
    theirs = {}
    for name, tensor in tensors.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        theirs[name] = tensor[:, None, None] if name.endswith("logit_scale") else tensor
    if names is TORCHVISION:
        for name in [name for name in theirs if name.endswith("query_bias")]:
            query, value = theirs.pop(name), theirs.pop(name.replace("query", "value"))
            theirs[name.replace("query_bias", "qkv.bias")] = torch.cat([query, torch.zeros_like(query), value])
    return theirs


def fitted(tensors, peer):
    """Cut the middle out of tables whose windows the peer has made smaller for its maps."""
    theirs, shapes = {}, dict(peer.named_parameters())
    for name, tensor in tensors.items():
        if name.endswith("bias_table") and len(tensor) != len(shapes[name]):
            side = int(len(tensor) ** 0.5)
            rows, columns = peer.get_submodule(name.rpartition(".")[0]).window_size
            cut = [slice((side + 1) // 2 - length, (side - 1) // 2 + length) for length in (rows, columns)]
            tensor = tensor.view(side, side, -1)[cut[0], cut[1]].flatten(0, 1)
        theirs[name] = tensor
    return theirs


def draw_network(**settings):
    """Return a network with no parameter at its neutral value; one head's scale in each layer is above the largest."""
    network = SwinTransformer(7, **settings)
    for name, parameter in network.named_parameters():
        if name.endswith("logit_scale"):
            parameter.data += 0.5 * torch.randn_like(parameter)
            parameter.data[0] = 5.0
        elif parameter.dim() == 1:  # norms, which start at 1 or (in V2) at 0, and biases
            parameter.data += 0.3 * torch.randn_like(parameter) + 0.2
        elif "bias_table" in name or "position_mlp" in name:
            parameter.data += torch.randn_like(parameter)
        else:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return network


def timm_twin(network, image_size, drop_path=0.0):
    models = pytest.importorskip("timm.models")
    settings = network.settings
    kind = models.swin_transformer.SwinTransformer
    kind = kind if settings["version"] == 1 else models.swin_transformer_v2.SwinTransformerV2
    peer = kind(
        img_size=image_size,
        num_classes=7,
        embed_dim=settings["dim"],
        depths=settings["depths"],
        num_heads=settings["num_heads"],
        window_size=settings["window_size"],
        drop_path_rate=drop_path,
    )
    peer.load_state_dict(fitted(renamed(network.state_dict(), TIMM), peer))
    return peer, TIMM


def torchvision_twin(network, image_size, drop_path=0.0):
    models = pytest.importorskip("torchvision.models.swin_transformer")
    settings = network.settings
    changes = {"block": models.SwinTransformerBlockV2, "downsample_layer": models.PatchMergingV2}
    peer = models.SwinTransformer(
        [4, 4],
        settings["dim"],
        list(settings["depths"]),
        list(settings["num_heads"]),
        [settings["window_size"]] * 2,
        stochastic_depth_prob=drop_path,
        num_classes=7,
        **(changes if settings["version"] == 2 else {}),
    )
    missing, unexpected = peer.load_state_dict(renamed(network.state_dict(), TORCHVISION), strict=False)
    assert not unexpected
    assert all(name.endswith(("relative_position_index", "relative_coords_table")) for name in missing)
    return peer, TORCHVISION


TWINS = {"timm": timm_twin, "torchvision": torchvision_twin}


def assert_same_step(network, peer, names, images, tolerances):
    """Compare the logits and, by their names, the gradients of all parameters of one step."""
    logits = []
    for each in (peer, network):
        torch.manual_seed(7)
        logits.append(each(images))
        functional.cross_entropy(logits[-1], torch.arange(len(images)) % 7).backward()
    assert_close(logits[1], logits[0], tolerances[0], "logits")
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    gradients = fitted(renamed(gradients, names), peer)
    theirs = dict(peer.named_parameters())
    assert gradients.keys() == theirs.keys()
    for name, parameter in theirs.items():
        assert_close(gradients[name], parameter.grad, tolerances[1], name)


def assert_close(mine, theirs, tolerance, name):
    """Compare relative to the size of what is expected."""
    largest = theirs.abs().max().item()
    assert largest > 0 or name.endswith("logit_scale"), f"{name}: nothing is tested"
    torch.testing.assert_close(mine, theirs, atol=tolerance * largest, rtol=0, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("library", TWINS)
def test_a_training_step_with_stochastic_depth(library, version, size):
    """Row 13: every branch draws one number per sample, in the order of the layers.

    In float64, where nothing is rounding; timm holds the rates in float32, and sixteenths are exact there.
    """
    image_size, window = SIZES[size]
    network = draw_network(**SMALL, version=version, window_size=window, padding=library, drop_path=7 / 16).double()
    peer, names = TWINS[library](network, image_size, drop_path=7 / 16)
    assert_same_step(network, peer.double(), names, torch.randn(4, 3, *image_size).double(), (1e-11, 1e-10))


@pytest.mark.parametrize("version", [1, 2])
def test_pixels_that_fill_no_patch_of_torchvision(version):
    """Its convolution leaves out 2 rows and 3 columns of 58 x 47 pixels, as of 226 x 223."""
    network = draw_network(**SMALL, version=version, window_size=3, padding="torchvision").double()
    peer, names = torchvision_twin(network, (58, 47))
    assert_same_step(network, peer.double(), names, torch.randn(2, 3, 58, 47).double(), (1e-11, 1e-10))


# 224 and 256 as published; 100 x 132 makes maps of 25 x 33, 13 x 17, 7 x 9 and 4 x 5.
@pytest.mark.parametrize(("version", "window", "native"), [(1, 7, 224), (2, 8, 256)])
@pytest.mark.parametrize("library", TWINS)
def test_swin_tiny(library, version, window, native):
    network = draw_network(**TINY, version=version, window_size=window, padding=library)
    for image_size in ((native, native), (100, 132)):
        network.zero_grad()
        twin, images = TWINS[library](network, image_size), torch.randn(1, 3, *image_size)
        assert_same_step(network, *twin, images, (1e-5, 1e-4))


@pytest.mark.parametrize("version", [1, 2])
def test_features_of_every_stage(version):
    network = draw_network(**SMALL, version=version, window_size=3, padding="timm").eval()
    peer, images = timm_twin(network, (60, 44))[0].eval(), torch.randn(2, 3, 60, 44)
    with torch.no_grad():
        theirs = peer.forward_intermediates(images, intermediates_only=True)
        for mine, expected in zip(network.forward_intermediates(images), theirs, strict=True):
            assert_close(mine, expected, 1e-5, "features")
        expected = peer.forward_features(images).flatten(1, 2)
        assert_close(network.forward_features(images), expected, 1e-5, "features")
    assert list(network.feature_channels) == [stage["num_chs"] for stage in peer.feature_info]
    assert list(network.feature_strides) == [stage["reduction"] for stage in peer.feature_info]


@pytest.mark.parametrize("version", [1, 2])
def test_depths_and_decay(version):
    models = pytest.importorskip("timm.models")
    network = draw_network(**SMALL, version=version, window_size=4)
    peer, names = timm_twin(network, (64, 64))
    depths = models.group_parameters(peer, peer.group_matcher(coarse=False), reverse=True)
    assert numbers(network, network.layer_of, names) == depths
    assert network.num_layers + 1 == max(depths.values())
    undecayed = network.no_weight_decay()
    excluded = numbers(network, undecayed.__contains__, names)
    assert {name for name, number in excluded.items() if number} == peer.no_weight_decay()


def numbers(network, number_of, names):
    """Return a number of each parameter by the peer's names."""
    mine = {name: torch.tensor([int(number_of(name))]) for name, _ in network.named_parameters()}
    return {name: number.item() for name, number in renamed(mine, names).items()}


@pytest.mark.parametrize("version", [1, 2])
def test_initialisation(version):
    """Mean and deviation of every parameter, to six deviations of their estimate."""
    network = SwinTransformer(7, **SMALL, version=version, window_size=4)
    mine = renamed(dict(network.named_parameters()), TIMM)
    fresh = type(timm_twin(network, (64, 64))[0])(
        img_size=64, num_classes=7, embed_dim=24, depths=(2, 2, 2, 2), num_heads=(2, 4, 8, 16), window_size=4
    )
    for name, theirs in fitted(dict(fresh.named_parameters()), fresh).items():
        count, deviation = theirs.numel(), theirs.std().item() if theirs.numel() > 1 else 0.0
        assert mine[name].mean().item() == pytest.approx(theirs.mean().item(), abs=6 * deviation / count**0.5), name
        assert mine[name].std().item() == pytest.approx(deviation, rel=6 / (2 * count) ** 0.5), name


HUGGING_FACE = [
    (r"^stages\.(\d)\.merging", lambda match: f"encoder.layers.{int(match[1]) - 1}.downsample"),
    (r"^stages\.(\d)\.layers", r"encoder.layers.\1.blocks"),
    (r"attention_norm\.", "layernorm_before."),
    (r"feed_forward_norm\.", "layernorm_after."),
    (r"feed_forward\.expand", "mlp.fc1"),
    (r"feed_forward\.contract", "mlp.fc2"),
    (r"attention\.output", "attention.o_proj"),
    (r"bias_table", "relative_position_bias.relative_position_bias_table"),
    (r"^patch_embedding", "embeddings.patch_embeddings.projection"),
    (r"^patch_norm", "embeddings.norm"),
    (r"^norm", "layernorm"),
]


# Maps of 15 x 11, 8 x 6 and 4 x 3 positions: padded, and neither axis shifted where the shorter one is a window. Then
# 2 x 5: our windows of 4 become squares of 2, theirs are built so, since theirs cannot shrink.
@pytest.mark.parametrize(("image_size", "depths", "window", "theirs"), [((59, 43), 3, 3, 3), ((8, 20), 1, 4, 2)])
def test_small_maps_as_microsofts(image_size, depths, window, theirs):
    transformers = pytest.importorskip("transformers")
    sizes = {"depths": (2,) * depths, "num_heads": (2, 4, 8)[:depths]}
    network = draw_network(dim=24, **sizes, window_size=window, padding="microsoft").eval()
    network.reset_classifier(0)
    config = transformers.SwinConfig(image_size=60, embed_dim=24, window_size=theirs, drop_path_rate=0.0, **sizes)
    peer = transformers.SwinModel(config, add_pooling_layer=False).eval()
    weights = {}
    for name, tensor in renamed(network.state_dict(), HUGGING_FACE).items():
        if "query_key_value" in name:
            for key, part in zip("qkv", tensor.chunk(3), strict=True):
                weights[name.replace("query_key_value", f"{key}_proj")] = part
        elif name.endswith("bias_table"):
            grid, cut = tensor.view(2 * window - 1, 2 * window - 1, -1), slice(window - theirs, window + theirs - 1)
            weights[name] = grid[cut, cut].flatten(0, 1)
        else:
            weights[name] = tensor
    peer.load_state_dict(weights)
    images = torch.randn(2, 3, *image_size)
    with torch.no_grad():
        expected = peer(images).last_hidden_state
        assert_close(network.forward_features(images), expected, 1e-5, "features")
        other = SwinTransformer(0, **{**network.settings, "padding": "timm"}).eval()
        other.load_state_dict(network.state_dict())
        assert (other.forward_features(images) - expected).abs().max() > 0.1 * expected.abs().max()
