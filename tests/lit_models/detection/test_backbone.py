"""Backbones: frozen norms folded into convolutions, what is trained, where weights come from, and the project's own."""

import json

import pytest
import torch
from torchvision import models
from torchvision.ops import FrozenBatchNorm2d

from lit_models.classification.resnet import ResNet
from lit_models.classification.swin import SwinTransformer
from lit_models.classification.vit import VisionTransformer
from lit_models.detection.backbone import ClassifierBackbone, ResNetBackbone, build_backbone
from lit_models.pretrained import to_timm


def meta(**arguments):
    with torch.device("meta"):
        return ResNetBackbone(**arguments)


def small_resnet(norm_layer=FrozenBatchNorm2d, block=models.resnet.Bottleneck):
    """Build torchvision's ResNet of one block a stage, with norms that do something."""
    network = models.ResNet(block, [1, 1, 1, 1], norm_layer=norm_layer)
    for name, tensor in network.state_dict().items():
        if "running_var" in name:
            tensor.uniform_(0.5, 1.5)
        elif tensor.dim() == 1 and tensor.is_floating_point():
            tensor += 0.2 * torch.randn_like(tensor)
    return network


@pytest.fixture
def short(monkeypatch):
    """Make torchvision build its ResNets with one block a stage."""

    def get_model(name, weights=None, **arguments):
        block = models.resnet.BasicBlock if name in ("resnet18", "resnet34") else models.resnet.Bottleneck
        return models.ResNet(block, [1, 1, 1, 1], **arguments)

    monkeypatch.setattr(models, "get_model", get_model)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("frozen", [True, False])
def test_features_and_gradients_are_torchvisions(short, name, frozen):
    block = models.resnet.BasicBlock if name == "resnet18" else models.resnet.Bottleneck
    peer = small_resnet(FrozenBatchNorm2d if frozen else torch.nn.BatchNorm2d, block)
    mine = ResNetBackbone(name, frozen_norm=frozen)
    mine.load_state_dict({key: value for key, value in peer.state_dict().items() if not key.startswith("fc.")})
    # In float64: batch norm over the last stage's few cells makes much of a rounding error.
    images, results = torch.randn(2, 3, 64, 64).double(), []
    for network in (peer.double(), mine.double()):
        hidden = images
        for stage in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            hidden = getattr(network, stage)(hidden) if network is peer else hidden
        features = hidden if network is peer else network(images)
        features.square().mean().backward()
        results.append((features, network.layer2[0].conv1.weight.grad, network.layer4[0].conv2.weight.grad))
    torch.testing.assert_close(*results, atol=1e-10, rtol=1e-8)


def test_what_is_trained():
    network = meta(name="resnet50")
    frozen = sum(p.numel() for p in network.parameters() if not p.requires_grad)
    assert frozen == 222_400  # conv1 and layer1; frozen norms have buffers
    assert {n.split(".")[0] for n, p in network.named_parameters() if p.requires_grad} == {"layer2", "layer3", "layer4"}
    assert all(p.requires_grad for p in meta(name="resnet18", trainable_from="conv1", frozen_norm=False).parameters())
    assert not any(p.requires_grad for p in meta(name="resnet18", trainable_from=None).parameters())
    trained = {n for n, p in meta(name="resnet18", frozen_norm=False).named_parameters() if not p.requires_grad}
    assert "bn1.weight" in trained and "layer1.0.bn1.weight" in trained and "layer2.0.bn1.weight" not in trained


def test_state_is_parameters_and_frozen_norms():
    network = meta(name="resnet50")
    assert len(network.state_dict()) == 265  # as in the official file
    buffers = {name.rsplit(".", 1)[1] for name, _ in network.named_buffers()}
    assert buffers == {"weight", "bias", "running_mean", "running_var"}
    assert {module.eps for module in network.modules() if isinstance(module, FrozenBatchNorm2d)} == {1e-5}


# Row 8: DC5 dilates the second and third block of the last stage, not the first one's 3x3 convolution.
def test_dilation():
    blocks = meta(name="resnet50", dilation=True).layer4
    assert [block.conv2.dilation[0] for block in blocks] == [1, 2, 2]
    assert [block.conv2.stride[0] for block in blocks] == [1, 1, 1]
    assert blocks[0].downsample[0].stride == (1, 1)
    with torch.device("meta"):
        features = ResNetBackbone("resnet101", dilation=True)(torch.empty(1, 3, 128, 160))
        assert features.shape == (1, 2048, 8, 10)
        assert ResNetBackbone("resnet34")(torch.empty(1, 3, 128, 161)).shape == (1, 512, 4, 6)


# Row 8: V1, never torchvision's default.
def test_weights_by_name_are_the_first_ones(monkeypatch):
    asked = []

    def fetch(url, *_, **__):
        asked.append(url)
        raise OSError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    with pytest.raises(FileNotFoundError, match="IMAGENET1K_V1 of resnet50 cannot be downloaded from .*no route.*path"):
        ResNetBackbone("resnet50", weights="IMAGENET1K_V1")
    assert asked == ["https://download.pytorch.org/models/resnet50-0676ba61.pth"]
    for name in ("DEFAULT", "IMAGENET1K_V2"):
        with pytest.raises(FileNotFoundError, match=f"'{name}' is no file; weights are IMAGENET1K_V1"):
            ResNetBackbone("resnet50", weights=name)


def test_weights_from_a_file(short, tmp_path):
    source = small_resnet(torch.nn.BatchNorm2d)
    torch.save(source.state_dict(), tmp_path / "resnet.pth")
    network = ResNetBackbone("resnet50", weights=str(tmp_path / "resnet.pth"))
    assert torch.equal(network.layer4[0].conv3.weight, source.layer4[0].conv3.weight)
    assert torch.equal(network.bn1.running_var, source.bn1.running_var)
    # A checkpoint of ours is rebuilt from these, and must not ask for the file again.
    assert "weights" not in network.settings
    with pytest.raises(ValueError, match="does not fit resnet18: .* missing or of another shape"):
        ResNetBackbone("resnet18", weights=str(tmp_path / "resnet.pth"))


def test_group_norm():
    network = meta(name="resnet18", frozen_norm=False, group_norm=32, trainable_from="conv1")
    assert not list(network.buffers())
    assert network.bn1.num_groups == 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet152"}, "resnet18, resnet34, resnet50, resnet101"),
        ({"name": "resnet18", "dilation": True}, "resnet50 or resnet101"),
        ({"trainable_from": "layer5"}, "conv1, layer1"),
        ({"group_norm": 32}, "frozen_norm=False"),
        ({"group_norm": 5, "frozen_norm": False}, "divide the 64"),
    ],
)
def test_resnet_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResNetBackbone(**arguments)


@pytest.mark.parametrize(
    ("network", "channels", "grid"),
    [
        (ResNet(3, depth=8, width=4), 16, (8, 8)),
        (VisionTransformer(3, image_size=32, patch_size=8, dim=16, depth=2, num_heads=2), 16, (4, 4)),
        (SwinTransformer(3, dim=16, depths=(1, 1), num_heads=(1, 2), window_size=4), 32, (4, 4)),
    ],
    ids=["ResNet", "VisionTransformer", "SwinTransformer"],
)
def test_classifiers(network, channels, grid):
    backbone = ClassifierBackbone(network)
    features = backbone(torch.randn(2, 3, 32, 32))
    assert backbone.channels == channels and features.shape == (2, channels, *grid)
    features.sum().backward()
    # DistributedDataParallel wants a gradient of every parameter that is trained.
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert "head" not in {name.split(".")[1] for name, _ in backbone.named_parameters()}
    again = build_backbone(json.loads(json.dumps(backbone.settings)))
    again.load_state_dict(backbone.state_dict())
    assert again.channels == channels


def test_an_earlier_stage():
    backbone = ClassifierBackbone(ResNet(3, depth=8, width=4), stage=1)
    assert backbone.channels == 8 and backbone(torch.zeros(1, 3, 32, 32)).shape == (1, 8, 16, 16)
    assert not any(p.requires_grad for p in backbone.network.stages[2].parameters())


def test_building():
    with torch.device("meta"):
        assert build_backbone("resnet18").settings["name"] == "resnet18"
        network = ResNetBackbone("resnet50", dilation=True, trainable_from="layer3")
        assert build_backbone(json.loads(json.dumps(network.settings))).settings == network.settings
    for wrong in ({"type": "VGG"}, {"nmae": "resnet18"}, {"type": "ClassifierBackbone"}):
        with pytest.raises(ValueError, match="backbone"):
            build_backbone(wrong)


def test_public_weights_of_a_swin(tmp_path):
    network = SwinTransformer(5, dim=16, depths=(2, 2, 2), num_heads=(1, 2, 4), padding="timm")
    torch.save(to_timm(network), tmp_path / "swin.pth")
    backbone = build_backbone({"type": "ClassifierBackbone", "weights": str(tmp_path / "swin.pth"), "stage": 1})
    images = torch.rand(2, 3, 50, 70)
    torch.testing.assert_close(backbone(images), network.forward_intermediates(images, [1])[0], rtol=0, atol=0)
    # What a checkpoint holds builds it without the file.
    again = build_backbone(json.loads(json.dumps(backbone.settings)))
    again.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(again(images), backbone(images), rtol=0, atol=0)
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        build_backbone({"type": "ClassifierBackbone", "weights": str(tmp_path / "nothing.pth")})
