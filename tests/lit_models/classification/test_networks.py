"""Networks as they are run: compiled, in bfloat16, channels last, on the Triton kernels, from the registry."""

import pytest
import torch
from torch.nn import functional

from kernels import use_backend
from lit_models.classification.cait import CaiT
from lit_models.classification.registry import NETWORKS, build
from lit_models.classification.resnet import ResNet
from lit_models.classification.swin import SwinTransformer
from lit_models.classification.vit import VisionTransformer

SMALL = {"image_size": 16, "patch_size": 4, "dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


def vit(**changes):
    return VisionTransformer(5, **{**SMALL, "distilled": True, "layer_scale": 0.5, **changes}).to(DEVICE)


def cait(**changes):
    return CaiT(5, **{**SMALL, "layer_scale": 0.5, **changes}).to(DEVICE)


def swin(version=1, **changes):
    # Maps of 8 x 8, where windows are shifted, and 4 x 4, one axis of which is padded.
    settings = {"dim": 16, "depths": (2, 1), "num_heads": (1, 2), "window_size": (4, (3, 4)), "patch_size": 2}
    network = SwinTransformer(5, **settings, version=version, **changes).to(DEVICE)
    for name, parameter in network.named_parameters():  # the branches of V2 start at zero
        if name.endswith("norm.weight"):
            torch.nn.init.ones_(parameter)
    return network


def swinv2(**changes):
    return swin(2, **changes)


def draw(batch=3):
    return torch.randn(batch, 3, 16, 16, device=DEVICE), torch.arange(batch, device=DEVICE) % 5


def step(network, images, labels):
    """Return the loss and the gradients of one step."""
    network.zero_grad()
    heads = network.forward_heads(images)
    loss = functional.cross_entropy(heads.classes.float(), labels)
    if heads.distillation is not None:
        loss = loss + functional.cross_entropy(heads.distillation.float(), labels)
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in network.parameters()]


@pytest.mark.parametrize("make", [vit, cait, swin, swinv2])
def test_compiled_in_one_graph(make):
    network, batch = make(drop_path=0.5, qkv_bias=True), draw()
    torch.manual_seed(1)
    expected = step(network, *batch)
    forward = network.forward_heads
    network.forward_heads = torch.compile(forward, fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    torch.testing.assert_close(step(network, *batch), expected)


@pytest.mark.parametrize("make", [vit, cait, swin, swinv2])
def test_bfloat16_autocast(make):
    network, batch = make(), draw()
    loss, gradients = step(network, *batch)
    with torch.autocast(DEVICE, torch.bfloat16):
        low_loss, low = step(network, *batch)
    # A few layers of products rounded to 8 bits.
    torch.testing.assert_close(low_loss, loss, rtol=0.03, atol=0)
    for parameter, mine, expected in zip(network.parameters(), low, gradients, strict=True):
        assert mine.dtype == parameter.dtype
        assert (mine - expected).norm() <= 0.1 * expected.norm() + 1e-4 * parameter.numel() ** 0.5


@pytest.mark.parametrize("make", [vit, cait, swin, swinv2])
def test_channels_last(make):
    network, (images, labels) = make(), draw()
    expected = step(network, images, labels)
    last = network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(step(last, images.to(memory_format=torch.channels_last), labels), expected)


@pytest.mark.parametrize("make", [vit, cait, swin, swinv2])
def test_a_training_step_on_the_kernels(make):
    network, batch = make(drop_path=0.3), draw(2)
    results = []
    for backend in ("torch", "triton"):
        torch.manual_seed(1)
        with use_backend(backend):
            results.append(step(network, *batch))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("VisionTransformer", {**SMALL, "image_size": (16, 24), "registers": 2, "pool": "average", "pool_norm": True}),
        ("CaiT", {**SMALL, "class_depth": 1}),
        ("ResNet", {"depth": 8, "width": 4}),
        (
            "SwinTransformer",
            {"dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": [3, [2, 4]], "version": 2},
        ),
    ],
)
def test_settings_rebuild_a_network(name, settings):
    network = build(name, 5, settings)
    assert type(network).__name__ == name
    assert settings.items() <= network.settings.items()
    twin = build(name, 5, network.settings)
    twin.load_state_dict(network.state_dict())
    assert twin.settings == network.settings
    images = torch.randn(2, 3, 16, 24 if name == "VisionTransformer" else 16)
    assert torch.equal(network.eval()(images), twin.eval()(images))


def test_registry_messages():
    with pytest.raises(ValueError, match=f"no network 'AlexNet'; there are {', '.join(NETWORKS)}"):
        build("AlexNet", 5, {})
    with pytest.raises(ValueError, match="CaiT has no settings registers; it has image_size, patch_size"):
        build("CaiT", 5, {**SMALL, "registers": 2})


def test_a_network_of_one_size_says_so():
    """The default of the protocol; a network without a size takes any."""
    network = ResNet(3, depth=8, width=4)
    network.set_input_size(48)
    assert network.image_size is None
    network.image_size = (32, 32)
    with pytest.raises(ValueError, match=r"ResNet takes images of \(32, 32\) alone, not of 48"):
        network.set_input_size(48)
