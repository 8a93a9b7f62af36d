"""Google's .npz ViT in our network: the same file through timm's loader is the reference."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from pretrained_testing import assert_same_gradients, assert_same_logits, assert_same_weights, images_of, shake

from lit_models.pretrained import load_pretrained, to_timm

timm = pytest.importorskip("timm")

DIM, HEADS, HIDDEN, PATCH, CLASSES, LAYERS = 96, 3, 160, 8, 7, 2
JAX = ("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3", "Transformer/posembed_input/pos_embedding")
BIG_VISION = ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0", "pos_embedding")


def arrays(layout=JAX, prefix="", stacked=False, rows=17):
    """Return random weights of a ViT under the names and in the axes of flax."""
    draw = np.random.default_rng(0)
    attention, norm, feed_forward, positions = layout

    def normal(*shape):
        return (draw.standard_normal(shape) * 0.2).astype(np.float32)

    def layer():
        values = {}
        for name in ("LayerNorm_0", norm):
            values |= {f"{name}/scale": 1 + normal(DIM), f"{name}/bias": normal(DIM)}
        for part in ("query", "key", "value"):
            values[f"{attention}/{part}/kernel"] = normal(DIM, HEADS, DIM // HEADS)
            values[f"{attention}/{part}/bias"] = normal(HEADS, DIM // HEADS)
        values |= {f"{attention}/out/kernel": normal(HEADS, DIM // HEADS, DIM), f"{attention}/out/bias": normal(DIM)}
        values |= {
            f"{feed_forward}/Dense_0/kernel": normal(DIM, HIDDEN),
            f"{feed_forward}/Dense_0/bias": normal(HIDDEN),
        }
        values |= {f"{feed_forward}/Dense_1/kernel": normal(HIDDEN, DIM), f"{feed_forward}/Dense_1/bias": normal(DIM)}
        return values

    whole = {
        "cls": normal(1, 1, DIM),
        "embedding/kernel": normal(PATCH, PATCH, 3, DIM),
        "embedding/bias": normal(DIM),
        positions: normal(1, rows, DIM),
        "Transformer/encoder_norm/scale": 1 + normal(DIM),
        "Transformer/encoder_norm/bias": normal(DIM),
        "head/kernel": normal(DIM, CLASSES),
        "head/bias": normal(CLASSES),
    }
    layers = [layer() for _ in range(LAYERS)]
    if stacked:
        whole |= {f"Transformer/encoderblock/{name}": np.stack([one[name] for one in layers]) for name in layers[0]}
    else:
        for number, one in enumerate(layers):
            whole |= {f"Transformer/encoderblock_{number}/{name}": array for name, array in one.items()}
    return {f"{prefix}{name}": array for name, array in whole.items()}


LAYOUTS = {
    "vit_jax, AugReg": {},
    "vit_jax, the paper's": {"prefix": "opt/target/"},
    "big_vision": {"layout": BIG_VISION, "prefix": "params/"},
    "big_vision, layers stacked": {"layout": BIG_VISION, "prefix": "params/", "stacked": True},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_as_timm_reads_it(layout, tmp_path):
    np.savez(tmp_path / "vit.npz", **arrays(**LAYOUTS[layout]))
    theirs = timm.models.VisionTransformer(
        img_size=32, patch_size=PATCH, embed_dim=DIM, depth=LAYERS, num_heads=HEADS, mlp_ratio=HIDDEN / DIM,
        num_classes=CLASSES,
    )  # fmt: skip
    theirs.load_pretrained(str(tmp_path / "vit.npz"))
    loaded = load_pretrained(tmp_path / "vit.npz")
    assert loaded.missing == loaded.unused == []
    assert_same_weights(to_timm(loaded.network), theirs.state_dict())
    shake(theirs, 0.0)
    assert_same_logits(theirs, loaded.network, images_of(32))
    assert_same_gradients(theirs, loaded.network, to_timm, images_of(32))


def test_row_14_preprocessing(tmp_path):
    """Google's weights want means of 0.5 and the image squashed, as vit_jax evaluates them."""
    np.savez(tmp_path / "vit.npz", **arrays())
    loaded = load_pretrained(tmp_path / "vit.npz")
    assert loaded.preprocessing == {
        "image_size": 32, "crop": 1.0, "crop_mode": "squash", "interpolation": "bilinear",
        "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5),
    }  # fmt: skip


def test_row_10_positions_resize_as_scipy_zooms(tmp_path):
    """Bilinear with aligned corners, which numpy's interp along each axis computes on its own."""
    weights = arrays()
    np.savez(tmp_path / "vit.npz", **weights)
    ours = load_pretrained(tmp_path / "vit.npz", image_size=56).network
    grid = weights[JAX[3]][0, 1:].reshape(4, 4, DIM).astype(np.float64)
    at = np.linspace(0, 3, 7)
    grid = np.apply_along_axis(lambda column: np.interp(at, np.arange(4), column), 0, grid)
    grid = np.apply_along_axis(lambda row: np.interp(at, np.arange(4), row), 1, grid)
    expected = torch.from_numpy(grid.reshape(49, DIM)).float()
    torch.testing.assert_close(ours.positions[0, 1:], expected, atol=1e-6, rtol=1e-5)


def test_bfloat16_arrays(tmp_path):
    """big_vision's half-precision files hold two bytes that numpy does not know."""
    halves = {
        name: torch.from_numpy(array).bfloat16().view(torch.int16).numpy().view("V2")
        for name, array in arrays().items()
    }
    np.savez(tmp_path / "vit.npz", **halves)
    ours = load_pretrained(tmp_path / "vit.npz").network
    expected = torch.from_numpy(arrays()["head/kernel"]).T.bfloat16().float()
    assert torch.equal(ours.head.weight, expected)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"pre_logits/kernel": np.zeros((DIM, DIM), np.float32), "pre_logits/bias": np.zeros(DIM, np.float32)},
         r"pre_logits\.weight.*give num_classes"),
        ({"MAPHead_0/probe": np.zeros((1, 1, DIM), np.float32)}, r"does not have.*MAPHead_0\.probe"),
        ({"conv_root/kernel": np.zeros((7, 7, 3, 8), np.float32)}, r"does not have.*conv_root"),
    ],
)  # fmt: skip
def test_what_the_network_does_not_have(extra, message, tmp_path):
    np.savez(tmp_path / "vit.npz", **arrays() | extra)
    with pytest.raises(ValueError, match=message):
        load_pretrained(tmp_path / "vit.npz")


def test_a_representation_layer_makes_way(tmp_path):
    extra = {"pre_logits/kernel": np.zeros((DIM, 64), np.float32), "pre_logits/bias": np.zeros(64, np.float32)}
    np.savez(tmp_path / "vit.npz", **arrays() | extra | {"head/kernel": np.zeros((64, CLASSES), np.float32)})
    loaded = load_pretrained(tmp_path / "vit.npz", num_classes=3)
    assert loaded.network.head.weight.shape == (3, DIM)
    assert loaded.missing == ["head.weight", "head.bias"]
