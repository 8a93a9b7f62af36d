"""Attention on the PyTorch path, against a loop over queries in float64."""

import math

import pytest
import torch

from kernels import attention_weights, flash_attention, flash_attention_varlen


def attend_one_by_one(query, key, value, *, causal=False, key_lengths=None, bias=None, scale=None):
    """Softmax attention as the formula says it, one query at a time; a query without keys gives 0."""
    batch, heads, query_length, head_dim = query.shape
    key_length, group = key.shape[2], heads // key.shape[1]
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    output = query.new_zeros(batch, heads, query_length, value.shape[3])
    for b in range(batch):
        seen_length = key_length if key_lengths is None else min(int(key_lengths[b]), key_length)
        for h in range(heads):
            for i in range(query_length):
                seen = min(seen_length, i + key_length - query_length + 1) if causal else seen_length
                if seen > 0:
                    scores = key[b, h // group, :seen] @ query[b, h, i] * scale
                    if bias is not None:
                        scores = scores + bias.expand(batch, heads, query_length, key_length)[b, h, i, :seen]
                    output[b, h, i] = torch.softmax(scores, 0) @ value[b, h // group, :seen]
    return output


def draw(query_length, key_length, heads=4, key_heads=4, head_dim=8, value_dim=8, dtype=torch.float64):
    def normal(*shape):
        return torch.randn(*shape, dtype=dtype, requires_grad=True)

    return (
        normal(3, heads, query_length, head_dim),
        normal(3, key_heads, key_length, head_dim),
        normal(3, key_heads, key_length, value_dim),
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(
    ("query_length", "key_length"),
    [
        (1, 1),  # a single token
        (5, 5),  # square
        (1, 7),  # a step of cached decoding
        (3, 7),  # a block of queries that sees the past
        (7, 3),  # more queries than keys: the first causal rows see nothing
    ],
)
def test_output_and_gradients(causal, ragged, query_length, key_length):
    tensors = draw(query_length, key_length)
    # 0: an example without a key; more than the keys there are: all of them.
    key_lengths = torch.tensor([0, 2, key_length + 5], dtype=torch.int32) if ragged else None
    expected = attend_one_by_one(*tensors, causal=causal, key_lengths=key_lengths)
    actual = flash_attention(*tensors, causal=causal, key_lengths=key_lengths)
    torch.testing.assert_close(actual, expected)
    upstream = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad(expected, tensors, upstream, allow_unused=True)
    gradients = torch.autograd.grad(actual, tensors, upstream)
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient) if reference is None else reference)


def test_gradients_by_finite_differences():
    query, key, value = draw(3, 4, heads=2, key_heads=1, head_dim=4, value_dim=3)
    bias = torch.randn(2, 1, 4, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([4, 2, 0])
    assert torch.autograd.gradcheck(
        lambda *inputs: flash_attention(*inputs[:3], bias=inputs[3], causal=True, key_lengths=lengths),
        (query, key, value, bias),
    )


def test_grouped_heads_bias_scale_and_another_value_width():
    query, key, value = draw(5, 6, heads=4, key_heads=2, value_dim=3)
    bias = torch.randn(1, 4, 1, 6, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([6, 4, 0])
    expected = attend_one_by_one(query, key, value, key_lengths=lengths, bias=bias, scale=0.3)
    actual = flash_attention(query, key, value, key_lengths=lengths, bias=bias, scale=0.3)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual.sum(), bias)[0], torch.autograd.grad(expected.sum(), bias)[0])


def test_views_of_a_stacked_projection_are_taken_as_they_are():
    stacked = torch.randn(2, 5, 3, 4, 8, dtype=torch.float64)
    query, key, value = stacked.permute(2, 0, 3, 1, 4).unbind()
    torch.testing.assert_close(
        flash_attention(query, key, value, causal=True),
        flash_attention(query.contiguous(), key.contiguous(), value.contiguous(), causal=True),
    )


def test_dropout_drops_weights_and_keeps_the_expectation():
    query = torch.zeros(1, 1, 2, 8)
    key = torch.zeros(1, 1, 20_000, 8)
    # With uniform weights and value 1 the output is the share of kept weights over 1 - p.
    output = flash_attention(query, key, torch.ones(1, 1, 20_000, 8), dropout_p=0.25)
    standard_error = math.sqrt(0.25 / 0.75 / 20_000)
    assert abs(float(output[0, 0, 0, 0]) - 1.0) < 4 * standard_error
    assert float(output[0, 0, 0, 0]) != 1.0
    assert float(output[0, 0, 0, 0]) != float(output[0, 0, 1, 0])


def test_low_precision_error_is_that_of_the_same_algorithm():
    exact = draw(33, 33, head_dim=32, value_dim=32)
    rounded = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    reference = attend_one_by_one(*[tensor.double() for tensor in rounded], causal=True)
    plain = rounded[0] @ rounded[1].transpose(-1, -2) / math.sqrt(32)
    plain = plain.masked_fill(torch.ones(33, 33, dtype=torch.bool).triu(1), -math.inf).softmax(-1) @ rounded[2]
    actual = flash_attention(*rounded, causal=True)
    noise = 2 * (reference + 0.3 - 0.3 - reference).abs().max() + 2**-9 * reference.abs().max()
    assert (actual.double() - reference).abs().max() <= 2 * (plain.double() - reference).abs().max() + noise


def test_attention_weights_are_what_attention_multiplies_with():
    query, key, value = draw(4, 6)
    lengths = torch.tensor([6, 3, 0])
    weights = attention_weights(query, key, causal=True, key_lengths=lengths)
    torch.testing.assert_close(weights @ value, flash_attention(query, key, value, causal=True, key_lengths=lengths))
    sums = torch.ones(3, 4, 4, dtype=torch.float64)
    sums[2] = 0.0  # an example without keys
    torch.testing.assert_close(weights.sum(-1), sums)


def test_no_keys_gives_zero():
    query, key, value = draw(4, 0)
    assert torch.equal(flash_attention(query, key, value), torch.zeros(3, 4, 4, 8, dtype=torch.float64))


# Lengths 3, 2, 3, 0, 2, 5 of queries, of which 4 at most count, and 4, 1, 4, 2, 2, 0 of keys; then tokens of none.
@pytest.mark.parametrize("causal", [False, True])
def test_packed_sequences_are_each_alone(causal):
    offsets_query, offsets_key = torch.tensor([0, 3, 5, 8, 8, 10, 15]), torch.tensor([0, 4, 5, 9, 11, 13, 13])
    query, key, value = (torch.randn(17, heads, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))
    places = {"offsets_query": offsets_query, "offsets_key": offsets_key, "max_length_query": 4, "max_length_key": 4}
    packed = flash_attention_varlen(query, key, value, **places, causal=causal)
    alone = torch.zeros_like(packed)
    for first, end, first_key, end_key in zip(
        offsets_query, offsets_query[1:], offsets_key, offsets_key[1:], strict=False
    ):
        end = min(end, first + 4)
        parts = (query[first:end], key[first_key:end_key], value[first_key:end_key])
        found = flash_attention(*(part.transpose(0, 1)[None] for part in parts), causal=causal)
        alone = alone.slice_scatter(found[0].transpose(0, 1), 0, int(first), int(end))
    torch.testing.assert_close(packed, alone)
    towards = torch.randn_like(packed)
    gradients = (torch.autograd.grad(output, (query, key, value), towards) for output in (packed, alone))
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected)


OFFSETS = torch.tensor([0, 2, 5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(1, 5, 4, 8)}, r"query must be \(tokens, heads, head_dim\), got shape \(1, 5, 4, 8\)"),
        ({"value": torch.zeros(4, 4, 8)}, "must agree in heads and length"),
        ({"offsets_query": OFFSETS[None]}, r"offsets_query must be \(sequences \+ 1,\), got \(1, 3\)"),
        ({"offsets_key": OFFSETS[:2]}, r"offsets_key must be \(3,\) int32 or int64, got \(2,\)"),
        ({"offsets_key": OFFSETS.float()}, "offsets_key must be .* got .* torch.float32"),
        ({"max_length_query": 6}, "max_length_query must be from 0 to the 5 packed tokens, got 6"),
        ({"max_length_key": -1}, "max_length_key must be from 0 to the 5 packed tokens, got -1"),
        ({"scale": 0.0}, "scale must be a positive number, got 0.0"),
        ({"dropout_p": -0.1}, r"dropout_p must be in \[0, 1\), got -0.1"),
    ],
)
def test_wrong_packed_arguments_are_named(change, message):
    tensor = torch.zeros(5, 4, 8)
    arguments = {"query": tensor, "key": tensor, "value": tensor, "offsets_query": OFFSETS, "offsets_key": OFFSETS}
    lengths = {"max_length_query": 3, "max_length_key": 3}
    assert flash_attention_varlen(**arguments, **lengths).shape == (5, 4, 8)
    with pytest.raises(ValueError, match=message):
        flash_attention_varlen(**{**arguments, **lengths, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(2, 4, 8)}, r"query must be \(batch, heads, length, head_dim\), got shape \(2, 4, 8\)"),
        ({"query": torch.zeros(2, 4, 5, 8, dtype=torch.int64)}, "query must be floating point"),
        ({"key": torch.zeros(2, 4, 6, 8, dtype=torch.float64)}, "key is torch.float64"),
        ({"key": torch.zeros(3, 4, 6, 8)}, "key has batch 3"),
        ({"key": torch.zeros(2, 4, 6, 4)}, "key has head_dim 4"),
        ({"value": torch.zeros(2, 4, 5, 8)}, "must agree in heads and length"),
        ({"key": torch.zeros(2, 3, 6, 8), "value": torch.zeros(2, 3, 6, 8)}, "3 heads of key must divide the 4"),
        ({"key_lengths": torch.zeros(3, dtype=torch.int64)}, r"key_lengths must be \(2,\)"),
        ({"key_lengths": torch.zeros(2)}, "int32 or int64"),
        ({"bias": torch.zeros(3, 1, 5, 6)}, "bias of shape .* does not broadcast"),
        (
            {"bias": torch.zeros(5, 6, dtype=torch.bool)},
            "bias must be floating point, added to the scores, got torch.bool",
        ),
        ({"scale": -1.0}, "scale must be a positive number, got -1.0"),
        ({"dropout_p": 1.0}, r"dropout_p must be in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {"query": torch.zeros(2, 4, 5, 8), "key": torch.zeros(2, 4, 6, 8), "value": torch.zeros(2, 4, 6, 8)}
    with pytest.raises(ValueError, match=message):
        flash_attention(**{**arguments, **change})
