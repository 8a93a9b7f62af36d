"""What image networks add to the layers: patches, resized positions, stochastic depth, LayerScale, norms of q and k."""

import pytest
import torch
from torch.nn import functional

from kernels import flash_attention
from lit_models.layers import (
    MultiHeadAttention,
    PatchEmbedding,
    ResidualLayerNorm,
    drop_path_rates,
    resize_positions,
    scale_branch,
)
from lit_models.layers.drop_path import nearest_number


# Row 13 of the usual mistakes: a whole sample is dropped or kept, not the batch and not single elements.
def test_drop_path_is_per_sample_and_unbiased():
    branch = torch.rand(2000, 3, 2) + 1
    dropped = scale_branch(branch, None, 0.3)
    ratio = dropped / branch
    assert torch.equal(ratio.amin((1, 2)) == 0, ratio.amax((1, 2)) == 0)
    kept = ratio[:, 0, 0] > 0
    torch.testing.assert_close(ratio[kept], torch.full_like(ratio[kept], 1 / 0.7))
    # 2000 draws: a deviation of sqrt(0.21 / 2000) = 0.0102; four of them.
    assert kept.double().mean().item() == pytest.approx(0.7, abs=0.041)


def test_drop_path_and_layer_scale_are_one_product():
    branch, gamma = torch.randn(64, 2, 5, requires_grad=True), torch.rand(5, requires_grad=True)
    assert scale_branch(branch, None, 0.0) is branch
    assert torch.equal(scale_branch(branch, gamma, 0.0), branch * gamma)
    both = scale_branch(branch, gamma, 0.5)
    kept = (both != 0).all(-1, keepdim=True)
    torch.testing.assert_close(both, kept * branch * gamma * 2)
    both.sum().backward()
    torch.testing.assert_close(gamma.grad, (kept * branch * 2).sum((0, 1)))


def test_drop_path_in_bfloat16_is_unbiased():
    """1 / 0.9 is 1.1094 there, 0.16 % too much: the branches are dropped a little more often."""
    scaled = scale_branch(torch.ones(1_000_000, 1, 1, dtype=torch.bfloat16), None, 0.1)
    assert scaled.dtype == torch.bfloat16
    # A million draws of deviation 1/3: 0.00033 of the mean; three of them.
    assert scaled.double().mean().item() == pytest.approx(1.0, abs=0.001)
    assert nearest_number(1 / 0.9, torch.bfloat16) == torch.tensor(1 / 0.9).bfloat16().item()
    assert nearest_number(10 / 3, torch.float16) == torch.tensor(10 / 3).half().item()


def test_drop_path_of_a_map_in_float64():
    branch = torch.rand(50, 2, 3, 4, dtype=torch.float64) + 1
    ratio = scale_branch(branch, None, 0.3) / branch
    assert torch.equal(ratio.amin((1, 2, 3)) == 0, ratio.amax((1, 2, 3)) == 0)
    assert ratio.amax().item() == pytest.approx(1 / 0.7, rel=1e-15)


# Row 13: linear in ViT and DeiT, constant in CaiT and DeiT III.
def test_drop_path_rates():
    assert drop_path_rates(0.3, 4) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 3, "constant") == [0.3, 0.3, 0.3]
    assert drop_path_rates(0.3, 1) == [0.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 4), r"drop_path must be in \[0, 1\), got 1.0"),
        ((0.1, 4, "cubic"), "drop_path_mode must be one of linear, constant, got 'cubic'"),
    ],
)
def test_impossible_drop_path(arguments, message):
    with pytest.raises(ValueError, match=message):
        drop_path_rates(*arguments)


@pytest.mark.parametrize("shape", [(16, 16), (16, 24)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_patches_equal_a_convolution(shape, memory_format):
    embedding = PatchEmbedding(shape, (4, 8), 5)
    images = torch.randn(2, 3, *shape).to(memory_format=memory_format)
    expected = functional.conv2d(images, embedding.weight, embedding.bias, stride=(4, 8))
    torch.testing.assert_close(embedding(images), expected.flatten(2).transpose(1, 2))
    assert embedding.grid == expected.shape[2:]


def test_patch_embedding_names_sizes():
    with pytest.raises(ValueError, match="image_size 30x32 must be a multiple of patch_size 4x4"):
        PatchEmbedding((30, 32), 4, 8)
    with pytest.raises(ValueError, match="multiple of patch_size 0x0"):
        PatchEmbedding(32, 0, 8)
    with pytest.raises(ValueError, match=r"takes images \(batch, 3, 32, 32\), got \(1, 3, 16, 32\).*set_input_size"):
        PatchEmbedding(32, 4, 8)(torch.zeros(1, 3, 16, 32))
    with pytest.raises(ValueError, match=r"got \(1, 1, 32, 32\)"):
        PatchEmbedding(32, 4, 8)(torch.zeros(1, 1, 32, 32))


# Row 10: the source's own antialias flag, also when the grid grows; prefix tokens pass through.
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("new_grid", [(3, 2), (7, 9)])
def test_resized_positions(antialias, prefix, new_grid):
    table = torch.randn(1, prefix + 4 * 5, 6)
    resized = resize_positions(table, (4, 5), new_grid, prefix=prefix, antialias=antialias)
    assert torch.equal(resized[:, :prefix], table[:, :prefix])
    for column in range(6):
        one = table[:, prefix:, column].reshape(1, 1, 4, 5)
        expected = functional.interpolate(one, new_grid, mode="bicubic", align_corners=False, antialias=antialias)
        torch.testing.assert_close(resized[0, prefix:, column], expected.flatten())
    other = resize_positions(table, (4, 5), new_grid, prefix=prefix, antialias=not antialias)
    assert (other - resized).abs().max() > 0.01


def test_positions_of_the_same_grid_are_untouched_and_dtypes_kept():
    table = torch.randn(1, 1 + 6, 4, dtype=torch.bfloat16)
    assert resize_positions(table, (2, 3), (2, 3), prefix=1) is table
    assert resize_positions(table, (2, 3), (4, 4), prefix=1).dtype == torch.bfloat16
    with pytest.raises(
        ValueError, match=r"2 prefix tokens and 2x3 patches has the shape \(1, 8, dim\), got \(1, 7, 4\)"
    ):
        resize_positions(table, (2, 3), (4, 4), prefix=2)


def test_residual_norm_before_the_first_sublayer():
    norm, stream = ResidualLayerNorm(8, order="pre"), torch.randn(2, 3, 8)
    normed, residual = norm(None, stream)
    assert residual is stream
    torch.testing.assert_close(normed, functional.layer_norm(stream, (8,)))


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_normed_queries_and_keys(qkv_bias):
    attention = MultiHeadAttention(16, 2, qkv_bias=qkv_bias, qk_norm=True, norm_eps=1e-6)
    for norm in (attention.query_norm, attention.key_norm):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    input = torch.randn(3, 5, 16)
    query, key, value = attention.query_key_value(input).view(3, 5, 3, 2, 8).permute(2, 0, 3, 1, 4)
    query = functional.layer_norm(query, (8,), attention.query_norm.weight, attention.query_norm.bias, 1e-6)
    key = functional.layer_norm(key, (8,), attention.key_norm.weight, attention.key_norm.bias, 1e-6)
    weights = (query @ key.transpose(-1, -2) / 8**0.5).softmax(-1)
    expected = attention.output((weights @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(input), expected)
    # Queries of a part of the tokens, as the last layer computes them.
    torch.testing.assert_close(attention(input[:, :2], input), expected[:, :2])
    torch.testing.assert_close(attention.weights(input), weights)
    assert (attention.query_key_value.bias is not None) == qkv_bias


def test_row_15_attention_in_half_precision_does_not_overflow():
    torch.manual_seed(0)
    query, key, value = (60 * torch.randn(1, 1, 9, 64).half() for _ in range(3))
    scores = query.double() @ key.double().transpose(-1, -2)
    assert scores.abs().max() > 65504, "or nothing is tested"
    expected = (scores / 8).softmax(-1) @ value.double()
    # The largest weight is 1 but for rounding: what is left is that of the values.
    torch.testing.assert_close(flash_attention(query, key, value).double(), expected, rtol=2**-10, atol=2**-10)
