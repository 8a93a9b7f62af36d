"""Attention in Triton against the formula in float64: interpreted on a CPU, compiled on a GPU."""

import pytest
import torch
from kernel_testing import DEVICE, DTYPES, assert_as_close_as, attention_formula, cancelling_terms, poison_empty

from kernels import flash_attention, flash_attention_varlen, use_backend
from kernels.flash_attention import tuning


@pytest.fixture(autouse=True)
def triton_backend():
    with use_backend("triton"):
        yield


def normal(*shape, dtype=torch.float32):
    return torch.randn(*shape, device=DEVICE).to(dtype).requires_grad_()


def draw(
    batch=2, heads=2, key_heads=None, queries=17, keys=None, head_dim=16, value_dim=None, dtype=torch.float32, bias=None
):
    """Return query, key, value and a bias of the given shape or None."""
    key_heads, keys, value_dim = key_heads or heads, queries if keys is None else keys, value_dim or head_dim
    return (
        normal(batch, heads, queries, head_dim, dtype=dtype),
        normal(batch, key_heads, keys, head_dim, dtype=dtype),
        normal(batch, key_heads, keys, value_dim, dtype=dtype),
        None if bias is None else normal(*bias),
    )


def run(inputs, upstream, function=flash_attention, **settings):
    """Return the output and the gradients of whatever inputs there are."""
    *tensors, bias = inputs
    output = function(*tensors, bias=bias, **settings)
    wanted = [tensor for tensor in inputs if tensor is not None]
    return output, *torch.autograd.grad(output, wanted, upstream.to(output.dtype))


def check(inputs, *, keep=None, seed=0, **settings):
    """Compare output and gradients with the formula: in float64, and in the inputs' dtype for the tolerance."""
    query, key, value, bias = inputs
    upstream = torch.randn(*query.shape[:3], value.shape[3], device=DEVICE).to(query.dtype)
    torch.manual_seed(seed)
    actual = run(inputs, upstream, **settings)
    exact_inputs = [None if tensor is None else tensor.detach().double().requires_grad_() for tensor in inputs]
    exact = run(exact_inputs, upstream, attention_formula, keep=keep, **settings)
    low = run(inputs, upstream, attention_formula, keep=keep, **settings)
    assert actual[0].dtype == query.dtype
    for mine, plain, reference in zip(actual, low, exact, strict=True):
        assert_as_close_as(mine, plain, reference, cancelling_terms(*inputs[:3], upstream))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        # One token: the smallest tile is larger than everything.
        ({"queries": 1}, {}),
        ({"queries": 1}, {"causal": True}),
        # Fewer than the smallest tile, odd.
        ({"queries": 3, "head_dim": 32}, {"causal": True}),
        # One row more than a tile of 16.
        ({"queries": 17, "head_dim": 24}, {}),
        # A Swin window; head_dim of DETR.
        ({"queries": 49, "head_dim": 32}, {}),
        # Exactly a tile, and one more.
        ({"queries": 64, "head_dim": 64}, {"causal": True}),
        ({"queries": 65, "head_dim": 64}, {"causal": True}),
        # DeiT: 196 patches and a class token.
        ({"queries": 197, "batch": 1, "head_dim": 64}, {}),
        ({"queries": 197, "batch": 1, "head_dim": 16}, {"causal": True}),
        # Head dims that fill no power of two, and the largest.
        ({"queries": 33, "head_dim": 80}, {"causal": True}),
        ({"queries": 33, "head_dim": 72, "value_dim": 40}, {}),
        ({"queries": 17, "batch": 1, "head_dim": 256}, {}),
        # Another head_dim for the values: Conditional-DETR, and the other way.
        ({"queries": 20, "keys": 49, "head_dim": 64, "value_dim": 32}, {}),
        ({"queries": 20, "keys": 49, "head_dim": 16, "value_dim": 64}, {}),
        # More keys than queries, as in cached decoding: the queries are the last ones.
        ({"queries": 1, "keys": 65, "head_dim": 32}, {"causal": True}),
        ({"queries": 17, "keys": 130, "head_dim": 32}, {"causal": True}),
        # More queries than keys: the first rows see nothing, give 0 and pass no gradient.
        ({"queries": 97, "keys": 30, "head_dim": 32}, {"causal": True}),
        # Grouped key and value heads, and one for all.
        ({"queries": 33, "heads": 4, "key_heads": 2, "head_dim": 32}, {"causal": True}),
        ({"queries": 33, "heads": 3, "key_heads": 1, "head_dim": 32}, {}),
        # A scale of one's own.
        ({"queries": 17, "head_dim": 32}, {"scale": 0.7}),
    ],
)
def test_output_and_gradients(shape, settings, dtype, monkeypatch):
    inputs = draw(**shape, dtype=dtype)
    poison_empty(monkeypatch)
    check(inputs, **settings)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
def test_masked_tails_are_never_read(causal, dtype, monkeypatch):
    query, key, value, bias = draw(batch=4, queries=33, keys=70, head_dim=32, bias=(4, 1, 33, 70), dtype=dtype)
    # None, some, a whole tile, and more than there are.
    lengths = torch.tensor([0, 5, 64, 99], device=DEVICE)
    with torch.no_grad():
        for example, length in enumerate(lengths.tolist()):
            for tensor, axis in ((key, 2), (value, 2), (bias, 3)):
                tensor[example].narrow(axis - 1, min(length, 70), 70 - min(length, 70)).fill_(float("nan"))
    upstream = torch.randn(4, 2, 33, 32, device=DEVICE, dtype=dtype)
    poison_empty(monkeypatch)
    actual = run((query, key, value, bias), upstream, causal=causal, key_lengths=lengths)

    def clean(dtype):
        tensors = [tensor.detach().nan_to_num(0.0).to(dtype).requires_grad_() for tensor in (query, key, value, bias)]
        return run(tensors, upstream, attention_formula, causal=causal, key_lengths=lengths)

    cancelling = cancelling_terms(query, key, value, upstream)
    for mine, plain, exact in zip(actual, clean(dtype), clean(torch.float64), strict=True):
        assert_as_close_as(mine, plain, exact, cancelling)
    for gradient in actual[2:4]:
        assert not gradient[0].any()  # an example without keys
        assert not gradient[1, :, 5:].any()


def test_lengths_outside_the_tensor_are_clamped():
    inputs = draw(batch=3, queries=5, keys=20)
    bounds = torch.tensor([-(2**40), 2**40, 20], device=DEVICE)
    inside = torch.tensor([0, 20, 20], device=DEVICE, dtype=torch.int32)
    assert torch.equal(
        flash_attention(*inputs[:3], key_lengths=bounds), flash_attention(*inputs[:3], key_lengths=inside)
    )


def test_lengths_may_be_a_column_of_a_table():
    inputs = draw(batch=3, queries=5, keys=20)[:3]
    table = torch.tensor([[3, 99], [20, 99], [7, 99]], device=DEVICE)
    column = table[:, 0]
    assert torch.equal(
        flash_attention(*inputs, key_lengths=column), flash_attention(*inputs, key_lengths=column.clone())
    )
    one = torch.tensor([5], device=DEVICE)
    assert torch.equal(
        flash_attention(*inputs, key_lengths=one.expand(3)), flash_attention(*inputs, key_lengths=one.repeat(3))
    )


@pytest.mark.parametrize(
    "shape",
    [
        (2, 4, 33, 40),  # every axis: written tile by tile beside the query's gradient
        (1, 4, 33, 40),  # over the batch: T5, relative positions
        (2, 1, 33, 40),  # over the heads: a mask of each example
        (33, 40),  # over both
        (2, 4, 1, 40),  # over the queries: a weight on keys
        (40,),  # over all but the keys
        (1, 4, 33, 1),  # over the keys: changes no weight, so the gradient is 0
        (1, 1, 1, 1),
    ],
)
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_bias_and_its_gradient(shape, dropout_p, monkeypatch):
    inputs = draw(heads=4, key_heads=2, queries=33, keys=40, head_dim=24, bias=shape)
    lengths = torch.tensor([40, 21], device=DEVICE)
    poison_empty(monkeypatch)
    check(
        inputs,
        causal=True,
        key_lengths=lengths,
        dropout_p=dropout_p,
        keep=kept(2, 4, 33, 40, dropout_p) if dropout_p else None,
    )


def kept(batch, heads, queries, keys, p, seed=0):
    """Return the mask that attention draws after torch.manual_seed(seed)."""
    from kernels import random
    from kernels.dropout import new_seed

    torch.manual_seed(seed)
    drawn = int(new_seed(torch.device(DEVICE)))
    return random.kept_reference(drawn, batch * heads, queries, keys, p).view(batch, heads, queries, keys).to(DEVICE)


def test_a_bias_splits_its_sum_over_programs(monkeypatch):
    """With few tiles and many examples, parts of the sum are added up in a second pass."""
    from kernels.flash_attention import backward

    splits = []
    empty = torch.empty
    monkeypatch.setattr(backward.torch, "empty", lambda shape, **kw: splits.append(shape[0]) or empty(shape, **kw))
    check(draw(batch=7, heads=2, queries=5, bias=(5, 5)))
    assert splits[-1] == 14
    monkeypatch.setattr(backward, "BIAS_PROGRAMS", 4)
    check(draw(batch=7, heads=2, queries=5, bias=(5, 5)))
    assert splits[-1] == 4  # of 4, 4, 4 and 2


def test_minus_infinity_in_a_bias_hides_keys():
    query, key, value, _ = draw(queries=20, keys=70, head_dim=32)
    hidden = torch.zeros(2, 1, 20, 70, device=DEVICE)
    hidden[0, :, :, 7:] = float("-inf")
    hidden[1, :, 3] = float("-inf")  # a query without any key
    hidden[1, :, 5, :66] = float("-inf")  # one whose first tile is hidden
    check((query, key, value, hidden.requires_grad_()))
    assert not flash_attention(query, key, value, bias=hidden)[1, :, 3].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
def test_dropout_has_one_mask_in_both_directions(causal, dtype):
    inputs = draw(heads=2, queries=40, keys=70, head_dim=32, dtype=dtype)
    check(inputs, causal=causal, dropout_p=0.1, keep=kept(2, 2, 40, 70, 0.1))


def test_dropout_masks_differ_and_follow_torchs_seed():
    inputs = draw(queries=33, head_dim=32)[:3]
    first, second = flash_attention(*inputs, dropout_p=0.5), flash_attention(*inputs, dropout_p=0.5)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    first = flash_attention(*inputs, dropout_p=0.5)
    torch.manual_seed(5)
    assert torch.equal(first, flash_attention(*inputs, dropout_p=0.5))


@pytest.mark.parametrize(
    ("queries", "keys"),
    [(16, 16), (16, 64), (64, 16), (32, 128)],  # square, wide, tall, wider than the keys
)
@pytest.mark.parametrize("shift", [-23, 0, 23])
def test_every_tile_gives_the_same(queries, keys, shift):
    """Tiles whose borders fall elsewhere: the diagonal, the tail and the dropout mask do not move."""
    inputs = draw(batch=2, queries=60, keys=60 + shift, head_dim=16, bias=(1, 2, 60, 60 + shift))
    tile = tuning.Tile(queries, keys, 4, 1)
    lengths = torch.tensor([50, 20], device=DEVICE)
    with (
        tuning.forced("forward", tile),
        tuning.forced("backward_query", tile),
        tuning.forced("backward_key_value", tile),
        tuning.forced("backward_bias", tile),
    ):
        check(inputs, causal=True, key_lengths=lengths, dropout_p=0.2, keep=kept(2, 2, 60, 60 + shift, 0.2))


def test_views_are_read_in_place(monkeypatch):
    """A fused projection, a slice with an offset, and a layout with the batch inside."""
    fused = torch.randn(2, 33, 3, 2, 32, device=DEVICE, requires_grad=True)
    views = fused.permute(2, 0, 3, 1, 4).unbind()
    copies = [view.detach().contiguous().requires_grad_() for view in views]
    expected = flash_attention(*copies, causal=True)
    monkeypatch.setattr(torch.Tensor, "contiguous", None)  # a copy would call it
    output = flash_attention(*views, causal=True)
    monkeypatch.undo()
    assert torch.equal(output, expected)
    upstream = torch.randn_like(output)
    (gradient,) = torch.autograd.grad(output, fused, upstream)
    for mine, other in zip(
        gradient.permute(2, 0, 3, 1, 4).unbind(), torch.autograd.grad(expected, copies, upstream), strict=True
    ):
        assert torch.equal(mine, other)
    # Heads merge into the width of the output projection without a copy.
    assert output.transpose(1, 2).flatten(2).data_ptr() == output.data_ptr()

    wide = torch.randn(40, 2, 2, 48, device=DEVICE)
    sliced = wide[3:36, :, :, 8:40].permute(1, 2, 0, 3)
    assert torch.equal(flash_attention(sliced, sliced, sliced), flash_attention(*[sliced.contiguous()] * 3))


def test_a_last_dimension_with_a_stride_is_copied():
    query, key, value, _ = draw(queries=16, head_dim=16)
    turned = [tensor.detach().transpose(2, 3).contiguous().transpose(2, 3) for tensor in (query, key, value)]
    assert torch.equal(flash_attention(*turned), flash_attention(query, key, value))


def test_offsets_beyond_32_bits():
    """Two examples 2³¹ elements apart: 4 GB of address space, of which three pages are touched."""
    far = torch.empty(2**31 + 3 * 16, dtype=torch.float16, device=DEVICE)
    tensor = far.as_strided((2, 1, 3, 16), (2**31, 48, 16, 1))
    tensor.copy_(torch.randn(2, 1, 3, 16))
    near = tensor.contiguous()
    assert torch.equal(flash_attention(tensor, tensor, tensor), flash_attention(near, near, near))


@pytest.mark.parametrize("wanted", ["query", "key", "value", "bias", "key value"])
@pytest.mark.parametrize("whole_bias", [False, True])
def test_gradients_of_only_some_inputs(wanted, whole_bias):
    names = ("query", "key", "value", "bias")
    inputs = draw(queries=20, keys=33, bias=(2, 2, 20, 33) if whole_bias else (20, 33))
    upstream = torch.randn(2, 2, 20, 16, device=DEVICE)
    expected = dict(zip(names, run(inputs, upstream)[1:], strict=True))
    some = [tensor.detach().requires_grad_(name in wanted.split()) for name, tensor in zip(names, inputs, strict=True)]
    output = flash_attention(*some[:3], bias=some[3])
    output.backward(upstream)
    for name, tensor in zip(names, some, strict=True):
        if name in wanted.split():
            assert torch.equal(tensor.grad, expected[name])
        else:
            assert tensor.grad is None


def test_an_expanded_gradient_from_a_sum():
    inputs = draw(queries=9)
    (expected,) = torch.autograd.grad(flash_attention(*inputs[:3]), inputs[:1], torch.ones(2, 2, 9, 16, device=DEVICE))
    (gradient,) = torch.autograd.grad(flash_attention(*inputs[:3]).sum(), inputs[:1])
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize(("batch", "queries", "keys"), [(0, 5, 5), (2, 0, 5), (2, 5, 0)])
def test_nothing_in_gives_zero_out(batch, queries, keys):
    inputs = draw(batch=batch, queries=queries, keys=keys, bias=(batch, 2, queries, keys))
    output, *gradients = run(inputs, torch.randn(batch, 2, queries, 16, device=DEVICE))
    assert output.shape == (batch, 2, queries, 16)
    for tensor in (output, *gradients):
        assert not tensor.any()


def test_two_runs_agree_bit_for_bit():
    inputs = draw(heads=4, key_heads=2, queries=70, head_dim=32, bias=(1, 4, 70, 70), dtype=DTYPES[-1])
    upstream = torch.randn(2, 4, 70, 32, device=DEVICE)
    results = []
    for _ in range(2):
        torch.manual_seed(1)
        results.append(run(inputs, upstream, causal=True, dropout_p=0.1))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


# Packed sequences


def packed(query_lengths, key_lengths, heads=2, key_heads=1, head_dim=16, value_dim=24, dtype=torch.float32):
    tensors = (
        normal(sum(query_lengths), heads, head_dim, dtype=dtype),
        normal(sum(key_lengths), key_heads, head_dim, dtype=dtype),
        normal(sum(key_lengths), key_heads, value_dim, dtype=dtype),
    )
    offsets = [
        torch.tensor([0, *lengths], device=DEVICE, dtype=torch.int32).cumsum(0, dtype=torch.int32)
        for lengths in (query_lengths, key_lengths)
    ]
    return tensors, {
        "offsets_query": offsets[0],
        "offsets_key": offsets[1],
        "max_length_query": max(query_lengths),
        "max_length_key": max(key_lengths),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
def test_packed_sequences_equal_a_loop(causal, dtype, monkeypatch):
    # Of one token, without queries, without keys, longer than a tile, with more queries than keys and with fewer.
    tensors, lengths = packed([1, 0, 5, 70, 33, 2], [1, 7, 0, 70, 20, 65], dtype=dtype)
    upstream = torch.randn(111, 2, 24, device=DEVICE, dtype=dtype)
    poison_empty(monkeypatch)
    output = flash_attention_varlen(*tensors, **lengths, causal=causal)
    gradients = torch.autograd.grad(output, tensors, upstream)

    def loop(dtype):
        query, key, value = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]
        parts = []
        for sequence in range(6):
            rows = slice(*lengths["offsets_query"][sequence : sequence + 2].tolist())
            columns = slice(*lengths["offsets_key"][sequence : sequence + 2].tolist())
            one = [tensor.transpose(0, 1)[None] for tensor in (query[rows], key[columns], value[columns])]
            if one[0].shape[2]:
                parts.append(
                    attention_formula(*one, causal=causal)[0].transpose(0, 1)
                    if one[1].shape[2]
                    else 0 * value.sum() + query.new_zeros(one[0].shape[2], 2, 24)
                )
        whole = torch.cat(parts)
        return whole, *torch.autograd.grad(whole, (query, key, value), upstream.to(dtype))

    cancelling = cancelling_terms(*tensors, upstream)
    for mine, plain, exact in zip((output, *gradients), loop(dtype), loop(torch.float64), strict=True):
        assert_as_close_as(mine, plain, exact, cancelling)


def test_packed_dropout_and_backends_agree_on_what_is_packed():
    tensors, lengths = packed([3, 40], [3, 40])
    torch.manual_seed(2)
    first = flash_attention_varlen(*tensors, **lengths, dropout_p=0.4)
    torch.manual_seed(2)
    assert torch.equal(first, flash_attention_varlen(*tensors, **lengths, dropout_p=0.4))
    with use_backend("torch"):
        plain = flash_attention_varlen(*tensors, **lengths, causal=True)
    torch.testing.assert_close(flash_attention_varlen(*tensors, **lengths, causal=True), plain)


def test_wrong_offsets_read_nothing_outside(monkeypatch):
    """Offsets lie on the device, so they are not looked at: what is outside or falling is clamped."""
    tensors, lengths = packed([4, 6], [4, 6])
    poison_empty(monkeypatch)
    wrong = torch.tensor([-5, 4, 2, 2**31 - 1], device=DEVICE, dtype=torch.int32)
    output = flash_attention_varlen(
        *tensors,
        **{**lengths, "offsets_query": wrong, "offsets_key": wrong, "max_length_query": 8, "max_length_key": 8},
    )
    assert torch.isfinite(output).all()
    for gradient in torch.autograd.grad(output.sum(), tensors):
        assert torch.isfinite(gradient).all()


def test_tokens_outside_every_sequence_give_zero():
    tensors, lengths = packed([4, 6], [4, 6])
    inner = {**lengths, "offsets_query": lengths["offsets_query"][1:], "offsets_key": lengths["offsets_key"][1:]}
    output = flash_attention_varlen(*tensors, **inner)
    assert not output[:4].any() and output[4:].all()
    for gradient in torch.autograd.grad(output.sum(), tensors):
        assert not gradient[:4].any()
    with use_backend("torch"):
        torch.testing.assert_close(output, flash_attention_varlen(*tensors, **inner))


# Wrong arguments


@pytest.mark.parametrize("head_dim", [8, 20, 264])
def test_head_dims_that_the_kernels_do_not_take_are_named(head_dim):
    query, key, value, _ = draw(queries=2, head_dim=head_dim)
    with pytest.raises(ValueError, match=f"query has head_dim {head_dim}; .*multiples of 8 from 16 to 256"):
        flash_attention(query, key, value)
    good = draw(queries=2, head_dim=16)[:2]
    with pytest.raises(ValueError, match=f"value has head_dim {head_dim}"):
        flash_attention(*good, value)
