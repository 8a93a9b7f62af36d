"""Window attention in Triton against roll and partition in float64: interpreted on a CPU, compiled on a GPU."""

import pytest
import torch
from kernel_testing import DEVICE, DTYPES, assert_as_close_as, poison_empty
from window_testing import pair, window_formula

from kernels import use_backend, window_attention
from kernels.random import kept_reference
from kernels.window_attention import op, tuning
from kernels.window_attention.geometry import Geometry
from kernels.window_attention.problem import Problem

NAMES = ("qkv", "bias", "qkv_padding", "logit_scale")
# A window of 25 tokens is one tile of 32, or with tiles of at most 16 two by two of them: the two backward variants.
TILES = (64, 16)


@pytest.fixture(autouse=True)
def triton_backend():
    with use_backend("triton"):
        yield


def limit_tiles(monkeypatch, tokens):
    """Let a tile have at most so many tokens, which makes windows of several tiles small enough for the interpreter."""
    monkeypatch.setattr(tuning, "LARGEST_TILE", tokens)


def draw(size, window, *, batch=1, heads=2, head_dim=16, dtype=torch.float32, bias=1.0, padding=True, cosine=False):
    """Return the tensors of a call by name; ``bias`` is the size of the table's entries, 0 for none."""
    rows, columns = pair(window)
    channels = heads * head_dim
    tensors = {
        "qkv": torch.randn(batch, *size, 3 * channels, device=DEVICE).to(dtype),
        "bias": torch.randn((2 * rows - 1) * (2 * columns - 1), heads, device=DEVICE) * bias if bias else None,
        "qkv_padding": torch.randn(3 * channels, device=DEVICE).to(dtype) if padding else None,
        "logit_scale": 1 + 9 * torch.rand(heads, device=DEVICE) if cosine else None,
    }
    return {name: None if tensor is None else tensor.requires_grad_() for name, tensor in tensors.items()}


def run(tensors, upstream, function=window_attention, **settings):
    """Return the output and the gradients of whatever tensors there are, by name."""
    output = function(**tensors, **settings)
    wanted = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    grads = torch.autograd.grad(output, list(wanted.values()), upstream.to(output.dtype), allow_unused=True)
    return {"output": output} | dict(zip(wanted, grads, strict=True))


def cast(tensors, dtype):
    return {
        name: None if tensor is None else tensor.detach().to(dtype).requires_grad_() for name, tensor in tensors.items()
    }


def cancelling(tensors, upstream, settings, head_dim=16):
    """Return the size of what cancels in a gradient: each term of dS = P ∘ (dP - delta), times what it multiplies."""
    qkv = tensors["qkv"].detach().abs().double()
    largest = qkv.max().item()
    grad_weights = upstream.abs().max().item() * largest * head_dim
    rows, columns = pair(settings["window_size"])
    return grad_weights * largest * min(qkv[..., 0].numel(), rows * columns)


def check(tensors, *, keep=None, **settings):
    """Compare output and gradients with the formula: in float64, and in the dtype of qkv for the tolerance."""
    qkv = tensors["qkv"]
    upstream = torch.randn(*qkv.shape[:3], qkv.shape[3] // 3, device=DEVICE).to(qkv.dtype)
    actual = run(tensors, upstream, **settings)
    exact = run(cast(tensors, torch.float64), upstream, window_formula, keep=keep, **settings)
    low = run(tensors, upstream, window_formula, keep=keep, **settings)
    assert actual["output"].dtype == qkv.dtype
    size = cancelling(tensors, upstream, settings)
    for name, reference in exact.items():
        if reference is None:
            assert name == "qkv_padding"
            assert not actual[name].any()
            continue
        assert_as_close_as(actual[name], low[name], reference, 0.0 if name == "output" else size)
    return actual


@pytest.mark.parametrize(
    ("size", "window", "shift", "pad_mode", "options"),
    [
        # Both axes are padded, the columns to a window wider than the map.
        ((9, 5), 7, 3, "pad_then_roll", {}),
        ((9, 5), 7, 3, "roll_then_pad", {"cosine": True}),
        # A map that windows divide; several images; heads that fill no power of two.
        ((8, 16), 8, 4, "pad_then_roll", {"batch": 2, "heads": 1, "head_dim": 24, "cosine": True}),
        # Rows alone are shifted; no table; padded tokens hold 0; a window of 15 tokens.
        ((4, 7), (3, 5), (1, 0), "pad_then_roll", {"bias": 0.0, "padding": False}),
        ((4, 7), (3, 5), (2, 4), "roll_then_pad", {"bias": 0.0, "padding": False, "cosine": True}),
        # A roll by more than the map has rows, which only a padded one can be; 30 tokens fill no tile.
        ((2, 12), (5, 6), (3, 2), "roll_then_pad", {"head_dim": 32}),
        # Masked scores are 100 lower and not absent: with a table this large some of them win.
        ((8, 4), 4, 2, "pad_then_roll", {"bias": 80.0}),
        # Several tiles: padded on both axes; masked and divided; tokens that fill their last tile to a quarter.
        ((10, 8), 9, 4, "pad_then_roll", {"heads": 1}),
        ((10, 8), 9, 4, "roll_then_pad", {"cosine": True, "heads": 1}),
        ((12, 12), 12, 6, "pad_then_roll", {"heads": 1, "head_dim": 24, "padding": False}),
        # No shift: nothing is masked.
        ((9, 14), (9, 14), 0, "pad_then_roll", {"heads": 1, "bias": 0.0, "padding": False, "cosine": True}),
    ],
)
def test_against_the_formula(size, window, shift, pad_mode, options, monkeypatch):
    tensors = draw(size, window, **options)
    poison_empty(monkeypatch)
    check(tensors, window_size=window, shift=shift, num_heads=options.get("heads", 2), pad_mode=pad_mode)


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != torch.float32])
@pytest.mark.parametrize(
    ("size", "window", "cosine"),
    [
        # One tile; several; each with and without norms.
        ((7, 8), 7, False),
        ((7, 8), 7, True),
        ((9, 9), 9, False),
        ((9, 9), 9, True),
    ],
)
def test_in_16_bits(size, window, cosine, dtype, monkeypatch):
    tensors = draw(size, window, heads=1, head_dim=32, dtype=dtype, cosine=cosine)
    poison_empty(monkeypatch)
    check(tensors, window_size=window, shift=3, num_heads=1)


@pytest.mark.parametrize("scale", [0.03, 1.7])
def test_scale_is_the_callers(scale):
    check(draw((4, 4), 4, padding=False), window_size=4, shift=2, num_heads=2, scale=scale)


@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("cosine", [False, True])
def test_dropout_keeps_what_the_reference_keeps(tiles, cosine, monkeypatch):
    limit_tiles(monkeypatch, tiles)
    p, heads, windows, tokens = 0.3, 2, 2, 25
    seed = torch.tensor([123_456_789_012_345], device=DEVICE)
    monkeypatch.setattr(op, "new_seed", lambda device: seed)
    keep = kept_reference(seed.item(), windows * heads, tokens, tokens, p).view(windows, heads, tokens, tokens)
    tensors = draw((6, 5), 5, heads=heads, cosine=cosine)
    check(tensors, keep=keep.to(DEVICE), window_size=5, shift=2, num_heads=heads, dropout_p=p)


def test_dropout_draws_a_new_mask_at_each_call():
    tensors = draw((4, 4), 4)
    settings = {"window_size": 4, "num_heads": 2, "dropout_p": 0.5}
    first, second = (window_attention(**tensors, **settings) for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    third = window_attention(**tensors, **settings)
    torch.manual_seed(5)
    assert torch.equal(window_attention(**tensors, **settings), third)


@pytest.mark.parametrize("tiles", TILES)
def test_views_are_read_in_place(tiles, monkeypatch):
    """The map lies in a larger one, of which nothing else is read: it is NaN."""
    limit_tiles(monkeypatch, tiles)
    tensors = draw((5, 4), 5, heads=1)
    around = torch.full((2, 7, 8, 3 * 16 + 5), float("nan"), device=DEVICE)
    place = around[1:, 1:-1, ::2, 5:]
    place.copy_(tensors["qkv"].detach())
    view = tensors | {"qkv": around.requires_grad_()[1:, 1:-1, ::2, 5:]}
    settings = {"window_size": 5, "shift": 1, "num_heads": 1}
    upstream = torch.randn(1, 5, 4, 16, device=DEVICE)
    plain, viewed = (run(inputs, upstream, **settings) for inputs in (tensors, view))
    for name, expected in plain.items():
        assert torch.equal(viewed[name], expected), name


@pytest.mark.parametrize("tiles", TILES)
def test_gradients_that_nobody_asks_for_are_not_made(tiles, monkeypatch):
    limit_tiles(monkeypatch, tiles)
    tensors = draw((5, 6), 5, heads=1, cosine=True)
    settings = {"window_size": 5, "shift": 3, "num_heads": 1}
    upstream = torch.randn(1, 5, 6, 16, device=DEVICE)
    whole = run(tensors, upstream, **settings)
    results = []
    backward = torch.ops.heddle.window_attention_backward
    monkeypatch.setattr(
        torch.ops.heddle, "window_attention_backward", lambda *inputs: results.append(backward(*inputs)) or results[-1]
    )
    for wanted in NAMES:
        alone = {
            name: tensor if name == wanted or tensor is None else tensor.detach() for name, tensor in tensors.items()
        }
        output = window_attention(**alone, **settings)
        assert torch.equal(torch.autograd.grad(output, alone[wanted], upstream)[0], whole[wanted]), wanted
        assert [result.numel() > 0 for result in results[-1]] == [name == wanted for name in NAMES]


@pytest.mark.parametrize("tiles", TILES)
def test_two_runs_agree_bit_for_bit(tiles, monkeypatch):
    limit_tiles(monkeypatch, tiles)
    tensors = draw((5, 9), 5, heads=1, cosine=True)
    settings = {"window_size": 5, "shift": 3, "num_heads": 1}
    upstream = torch.randn(1, 5, 9, 16, device=DEVICE)
    first, second = (run(tensors, upstream, **settings) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("tiles", TILES)
def test_windows_are_shared_out_among_programs(tiles, monkeypatch):
    """Whoever computes a window computes the same; only the sums over windows are rounded in another order."""
    limit_tiles(monkeypatch, tiles)
    tensors = draw((5, 24), 5, heads=1, cosine=True)
    settings = {"window_size": 5, "shift": 2, "num_heads": 1}
    upstream = torch.randn(1, 5, 24, 16, device=DEVICE)
    results = []
    # One program goes over all five windows, two or three have unequal shares, each window has its own.
    for programs in (1, 6, 1000):
        monkeypatch.setattr(tuning, "programs", lambda device, entry, programs=programs: programs)
        results.append(run(tensors, upstream, **settings))
    for name in ("output", "qkv"):
        assert all(torch.equal(result[name], results[0][name]) for result in results)
    for name in ("bias", "qkv_padding", "logit_scale"):
        for result in results[1:]:
            torch.testing.assert_close(result[name], results[0][name], rtol=1e-5, atol=1e-4)


def test_an_empty_batch_gives_empty_results():
    tensors = draw((8, 8), 4, batch=0)
    output = window_attention(**tensors, window_size=4, num_heads=2)
    assert output.shape == (0, 8, 8, 32)
    grads = torch.autograd.grad(output.sum(), [tensors["qkv"], tensors["bias"], tensors["qkv_padding"]])
    assert all(not grad.any() for grad in grads)


def test_an_expanded_upstream_gradient():
    """A sum passes back one number for all elements, with strides of 0."""
    tensors = draw((4, 4), 4, padding=False)
    settings = {"window_size": 4, "shift": 2, "num_heads": 2}
    summed = torch.autograd.grad(window_attention(**tensors, **settings).sum(), tensors["qkv"])[0]
    ones = torch.ones(1, 4, 4, 32, device=DEVICE)
    assert torch.equal(summed, run(tensors, ones, **settings)["qkv"])


@pytest.mark.parametrize("head_dim", [8, 20, 72])
def test_head_dims_that_the_kernels_do_not_take_are_named(head_dim):
    with pytest.raises(ValueError, match=f"qkv has head_dim {head_dim}.*multiples of 8 from 16 to 64"):
        window_attention(**draw((4, 4), 4, head_dim=head_dim), window_size=4, num_heads=2)


@pytest.mark.parametrize("window", [7, 12, 24])
def test_partial_sums_do_not_grow_with_the_batch(window):
    """The backward holds a tile per program, as many as the GPU runs at once, and none per window."""

    def launch(batch, kind):
        qkv = torch.empty(1, 1, 1, 3 * 96, device=DEVICE).expand(batch, 56, 56, -1)
        geometry = Geometry(56, 56, (window, window), (0, 0), roll_first=False)
        return Problem(qkv, None, None, None, None, geometry, 3, 1.0, 0.0).launch(kind)

    kind = "backward_window" if window == 7 else "backward_bias"
    assert launch(4096, kind).splits == launch(1024, kind).splits
    assert launch(4096, kind).options["windows_each"] == 4 * launch(1024, kind).options["windows_each"]
