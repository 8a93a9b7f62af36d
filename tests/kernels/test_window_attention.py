"""Window attention on the PyTorch path: against roll and partition, public networks, and float64."""

import math

import pytest
import torch
from kernel_testing import DEVICE, assert_as_close_as
from torch.utils.checkpoint import checkpoint
from window_testing import MAPS, PAD_MODES, expand_table, pair, region_mask, roll_partition, window_formula

from kernels import dropout, use_backend, window_attention
from kernels.window_attention import layout
from kernels.window_attention.geometry import Geometry

NAMES = ("qkv", "bias", "qkv_padding", "logit_scale")


@pytest.fixture(autouse=True)
def torch_path():
    with use_backend("torch"):
        yield


@pytest.fixture
def few_scores(monkeypatch):
    """Let the path work on few windows or examples at a time."""

    def limit(scores):
        layout.layout.cache_clear()
        monkeypatch.setattr(layout, "_CPU_SCORES", scores)
        monkeypatch.setattr(layout, "_DEVICE_SCORES", scores)

    yield limit
    layout.layout.cache_clear()


def normal(*shape, dtype=torch.float64):
    return torch.randn(*shape, device=DEVICE).to(dtype).requires_grad_()


def draw(height, width, window, *, batch=2, heads=3, head_dim=4, cosine=False, dtype=torch.float64):
    """Return all the tensors that a map and a window can have, by name."""
    window = pair(window)
    stacked = 3 * heads * head_dim
    return {
        "qkv": normal(batch, height, width, stacked, dtype=dtype),
        "bias": normal((2 * window[0] - 1) * (2 * window[1] - 1), heads, dtype=dtype),
        "qkv_padding": normal(stacked, dtype=dtype),
        "logit_scale": (torch.rand(heads, device=DEVICE) * 9 + 1).to(dtype).requires_grad_() if cosine else None,
    }


def outcome(function, tensors, upstream, **settings):
    """Return the output and the gradients of whatever inputs there are."""
    output = function(**tensors, num_heads=tensors["bias"].shape[1], **settings)
    inputs = [tensors[name] for name in NAMES if tensors[name] is not None]
    grads = torch.autograd.grad(output, inputs, upstream.to(output.dtype), materialize_grads=True)
    return output, *grads


def compare(tensors, **settings):
    upstream = torch.randn_like(tensors["qkv"][..., : tensors["qkv"].shape[3] // 3])
    actual = outcome(window_attention, tensors, upstream, **settings)
    expected = outcome(window_formula, tensors, upstream, **settings)
    for mine, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("pad_mode", PAD_MODES)
@pytest.mark.parametrize(("height", "width", "window", "shift"), MAPS)
def test_output_and_gradients(height, width, window, shift, pad_mode, cosine):
    compare(draw(height, width, window, cosine=cosine), window_size=window, shift=shift, pad_mode=pad_mode)


@pytest.mark.parametrize(
    ("height", "width", "window", "shift", "head_dim", "cosine"),
    [
        (7, 9, (3, 5), (1, 2), 16, True),  # not square
        (6, 10, (2, 5), (1, 0), 24, False),  # shifted along one axis
        (6, 10, (3, 5), (0, 4), 40, False),  # the other one, by almost a window
        (13, 24, 12, 6, 32, True),
        (16, 17, 16, 8, 64, False),
        (24, 24, 24, 0, 16, True),
        (2, 3, 7, 3, 16, False),  # a map smaller than the window that the caller shifts all the same
        (1, 5, (1, 5), 0, 16, False),  # a single row
        (3, 4, 1, 0, 16, True),  # windows of one token
    ],
)
def test_windows_and_head_dims(height, width, window, shift, head_dim, cosine):
    tensors = draw(height, width, window, batch=1, heads=2, head_dim=head_dim, cosine=cosine)
    compare(tensors, window_size=window, shift=shift)


@pytest.mark.parametrize("scores", [1, 2000, 6000])  # a window at a time; some of an example's; several examples
@pytest.mark.parametrize("cosine", [False, True])
def test_the_parts_it_works_on_make_no_difference(scores, cosine, few_scores):
    few_scores(scores)
    tensors = draw(8, 10, 3, batch=5, cosine=cosine)
    parts = layout.layout(Geometry(8, 10, (3, 3), (1, 1), False), 3, 5, tensors["qkv"].device)
    assert (parts.examples, parts.windows) == {1: (1, 1), 2000: (1, 8), 6000: (2, 12)}[scores]
    compare(tensors, window_size=3, shift=1)


@pytest.mark.parametrize("pad_mode", PAD_MODES)
@pytest.mark.parametrize(("height", "width", "window", "shift"), MAPS)
def test_indices_gather_what_roll_and_partition_do(height, width, window, shift, pad_mode):
    geometry = Geometry(height, width, (window, window), (shift, shift), pad_mode == "roll_then_pad")
    cut = layout.layout(geometry, 1, 1, torch.device("cpu"))
    tokens = torch.arange(height * width).view(1, height, width, 1)
    expected = roll_partition(tokens, (window, window), (shift, shift), pad_mode, torch.tensor([height * width]))
    # The layout has an order of its own.
    assert sorted((cut.qkv_rows[0, :, 0] // 3).tolist()) == sorted(expected[..., 0].tolist())
    # What comes back was read from where it goes.
    assert cut.output_rows.flatten()[cut.output_places.flatten()].tolist() == list(range(height * width))
    places = cut.qkv_places.view(-1, 3)
    windows = cut.qkv_rows.numel()
    for part in range(3):
        assert (cut.qkv_rows.flatten()[places[:, part] - part * windows] // 3).tolist() == list(range(height * width))
    padded = expected[..., 0] == height * width
    assert len(cut.padding[0]) == int(padded.sum())
    assert (cut.qkv_rows[0, cut.padding[0], 0, cut.padding[1]] == 3 * height * width).all()


@pytest.mark.parametrize("pad_mode", PAD_MODES)
@pytest.mark.parametrize(("height", "width", "window", "shift"), MAPS)
def test_bitwise_as_of_windows_cut_before_and_masked_in_the_last_ones_alone(height, width, window, shift, pad_mode):
    tensors = draw(height, width, window, batch=1, head_dim=16, dtype=torch.float32)
    qkv, bias, padding = (tensors[name].detach() for name in NAMES[:3])
    cut = ((window, window), (shift, shift), pad_mode)
    output = window_attention(
        qkv, bias, window_size=window, shift=shift, num_heads=3, pad_mode=pad_mode, qkv_padding=padding
    )
    windows = roll_partition(qkv, *cut, padding).view(-1, window, window, qkv.shape[3])
    alone = window_attention(windows, bias, window_size=window, num_heads=3).flatten(1, 2)
    actual = roll_partition(output, *cut, output.new_full(output.shape[3:], float("nan")))
    rows, columns = -(-height // window), -(-width // window)
    for number, (mine, other) in enumerate(zip(actual, alone, strict=True)):
        real = ~mine.isnan().any(-1)
        last = number // columns == rows - 1 or number % columns == columns - 1
        if not (shift and last):
            assert torch.equal(mine[real], other[real])
        elif real.any():
            assert not torch.equal(mine[real], other[real])


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize(("height", "width"), [(14, 21), (15, 20)])  # the window divides; it does not
def test_equals_torchvision(height, width, cosine):
    swin = pytest.importorskip("torchvision.models.swin_transformer")
    dim, heads, window = 24, 3, 7
    weight, bias, table = normal(3 * dim, dim), normal(3 * dim), normal(169, heads)
    logit = torch.rand(heads, 1, 1, dtype=torch.float64, device=DEVICE) * 6 if cosine else None  # some above ln(100)
    image = normal(2, height, width, dim)
    identity = torch.eye(dim, dtype=torch.float64, device=DEVICE)
    for shift in (0, 3):
        expected = swin.shifted_window_attention(
            image,
            weight,
            identity,
            expand_table(table, (window, window))[None],
            [window, window],
            heads,
            [shift, shift],
            qkv_bias=bias,
            logit_scale=logit,
        )
        padding = torch.cat([bias[:dim], bias[dim : 2 * dim] * (0 if cosine else 1), bias[2 * dim :]])
        actual = window_attention(
            torch.nn.functional.linear(image, weight, padding),
            table,
            window_size=window,
            shift=shift,
            num_heads=heads,
            qkv_padding=padding,
            logit_scale=logit.clamp(max=math.log(100.0)).exp().flatten() if cosine else None,
        )
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize(("height", "width"), [(14, 21), (15, 20)])
def test_equals_timm(height, width, cosine):
    timm = pytest.importorskip("timm")
    module = timm.models.swin_transformer_v2 if cosine else timm.models.swin_transformer
    name = "SwinTransformerV2Block" if cosine else "SwinTransformerBlock"
    image = normal(2, height, width, 24)
    for shift in (0, 3):
        block = getattr(module, name)(24, (height, width), num_heads=3, window_size=7, shift_size=shift)
        block = block.double().to(DEVICE)
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter)
        attention = block.attn
        attention.proj = torch.nn.Identity()
        if cosine:
            padding = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
            table = 16 * torch.sigmoid(attention.cpb_mlp(attention.relative_coords_table).view(-1, 3))
            logit_scale = attention.logit_scale.clamp(max=math.log(100.0)).exp().flatten()
        else:
            padding, table, logit_scale = attention.qkv.bias, attention.relative_position_bias_table, None
        actual = window_attention(
            torch.nn.functional.linear(image, attention.qkv.weight, padding),
            table,
            window_size=7,
            shift=shift,
            num_heads=3,
            pad_mode="roll_then_pad",
            qkv_padding=padding,
            logit_scale=logit_scale,
        )
        torch.testing.assert_close(actual, block._attn(image))


def test_gradients_by_finite_differences():
    tensors = draw(2, 4, (2, 3), batch=1, heads=2, head_dim=2, cosine=True)
    for cosine in (False, True):
        inputs = [tensors[name] for name in NAMES[: 3 + cosine]]
        assert torch.autograd.gradcheck(
            lambda *given: window_attention(
                **dict(zip(NAMES, given, strict=False)), window_size=(2, 3), shift=1, num_heads=2
            ),
            inputs,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cosine", [False, True])
def test_error_is_at_most_that_of_the_formula_in_the_same_dtype(dtype, cosine):
    tensors = draw(8, 10, 7, head_dim=16, cosine=cosine, dtype=dtype)
    exact = {name: None if t is None else t.detach().double().requires_grad_() for name, t in tensors.items()}
    upstream = torch.randn(2, 8, 10, 48, device=DEVICE, dtype=torch.float64)
    settings = {"window_size": 7, "shift": 3}
    actual = outcome(window_attention, tensors, upstream, **settings)
    low = outcome(window_formula, tensors, upstream, **settings)
    for mine, other, reference in zip(actual, low, outcome(window_formula, exact, upstream, **settings), strict=True):
        assert mine.dtype == other.dtype == dtype
        assert_as_close_as(mine, other, reference)


def test_a_table_in_float32_under_autocast():
    tensors = draw(7, 7, 7, head_dim=16, cosine=True, dtype=torch.float32)
    tensors["qkv"] = tensors["qkv"].detach().bfloat16().requires_grad_()
    upstream = torch.randn(2, 7, 7, 48, device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        output, *grads = outcome(window_attention, tensors, upstream, window_size=7, shift=3)
    plain_output, *plain_grads = outcome(window_attention, tensors, upstream, window_size=7, shift=3)
    assert [tensor.dtype for tensor in (output, *grads)] == [torch.bfloat16] * 2 + [torch.float32] * 3
    assert torch.equal(output, plain_output)
    assert all(torch.equal(one, other) for one, other in zip(grads, plain_grads, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_on_the_torch_path(dtype):
    """As in the Triton path: what is not float64 is cast, and the table keeps its digits."""
    tensors = draw(7, 7, 7, head_dim=16, dtype=dtype)
    settings = {"window_size": 7, "shift": 3, "num_heads": 3}
    with torch.autocast(DEVICE, torch.bfloat16):
        output = window_attention(**tensors, **settings)
    cast = torch.bfloat16 if dtype == torch.float32 else dtype
    expected = window_attention(**tensors | {"qkv": tensors["qkv"].to(cast)}, **settings)
    assert output.dtype == cast
    assert torch.equal(output, expected)


def test_mask_is_100_and_not_infinite():
    # The key of the first token after the seam is the query's, the others are opposite to it: 100 - 100 against -100.
    qkv = torch.zeros(1, 4, 1, 6, dtype=torch.float64, device=DEVICE)
    qkv[..., 0], qkv[..., 2], qkv[..., 4] = 1.0, -1.0, torch.arange(4.0)[:, None]
    qkv[0, 0, 0, 2] = 1.0
    logit_scale = qkv.new_tensor([100.0])
    settings = {"window_size": (2, 1), "shift": (1, 0), "num_heads": 1, "logit_scale": logit_scale}
    output = window_attention(qkv, **settings)
    torch.testing.assert_close(output, window_formula(qkv, **settings))
    assert output[0, 3, 0, 0] < 1e-40  # token 0's value; its own is 3
    mask = region_mask(4, 1, (2, 1), (1, 0), qkv)
    assert mask[0].eq(0).all() and mask[1].flatten().tolist() == [0, -100, -100, 0]


def test_masked_weights_are_no_subnormal_numbers():
    qkv = torch.zeros(1, 14, 14, 48, device=DEVICE)
    qkv[:, :3, :3, 32:] = 1.0
    output = window_attention(qkv, window_size=7, shift=3, num_heads=1)
    # Those who share a window with these tokens across the seam would get some exp(-100) of them.
    assert ((output == 0) | (output > 1e-3)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_whose_scores_lie_far_apart(dtype):
    tensors = draw(6, 6, 3, dtype=dtype)
    with torch.no_grad():  # the scores of one query in ten lie around a thousand times higher
        tensors["qkv"].view(-1, 36)[::10, :12] *= 1e3
        tensors["bias"][0] = -1e30
    exact = {name: None if t is None else t.detach().double().requires_grad_() for name, t in tensors.items()}
    upstream = torch.randn(2, 6, 6, 12, device=DEVICE, dtype=torch.float64)
    results = [
        outcome(function, given, upstream, window_size=3, shift=1)
        for function, given in ((window_attention, tensors), (window_formula, tensors), (window_formula, exact))
    ]
    for mine, other, reference in zip(*results, strict=True):
        assert_as_close_as(mine, other, reference, terms=reference.abs().max().item())


def test_dropout_drops_weights_here_and_in_the_gradients(monkeypatch):
    tensors = draw(6, 6, 3)
    upstream = torch.randn(2, 6, 6, 12, dtype=torch.float64, device=DEVICE)
    torch.manual_seed(3)
    keep = dropout(torch.ones(2, 4, 3, 9, 9, dtype=torch.float64, device=DEVICE), 0.25).flatten(0, 1) != 0
    torch.manual_seed(3)
    # Without a shift the windows are in the order of the map.
    actual = outcome(window_attention, tensors, upstream, window_size=3, dropout_p=0.25)
    expected = outcome(window_formula, tensors, upstream, window_size=3, dropout_p=0.25, keep=keep)
    for mine, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, other)
    again = outcome(window_attention, tensors, upstream, window_size=3, dropout_p=0.25)
    assert not torch.equal(actual[0], again[0])


def test_dropout_keeps_the_expectation():
    qkv = torch.zeros(8, 16, 16, 12, device=DEVICE)
    qkv[..., 8:] = 1.0
    output = window_attention(qkv, window_size=8, shift=4, num_heads=4, dropout_p=0.25)
    # The mean over 8 · 256 queries of 4 heads of the share kept of at least 16 weights, over 1 - p.
    standard_error = (0.25 / 0.75 / (8 * 256 * 4 * 16)) ** 0.5
    assert 0 < abs(output.double().mean().item() - 1.0) < 4 * standard_error


def test_gradients_of_some_inputs():
    tensors = draw(5, 5, 3, cosine=True)
    settings = {"window_size": 3, "shift": 1, "num_heads": 3}
    upstream = torch.randn(2, 5, 5, 12, dtype=torch.float64, device=DEVICE)
    everything = outcome(window_attention, tensors, upstream, window_size=3, shift=1)[1:]
    for name, expected in zip(NAMES, everything, strict=True):
        one = {other: tensor.detach().requires_grad_(other == name) for other, tensor in tensors.items()}
        window_attention(**one, **settings).backward(upstream)
        assert [other for other in NAMES if one[other].grad is not None] == [name]
        assert torch.equal(one[name].grad, expected)


def test_same_bits_every_time_and_whatever_the_strides():
    tensors = draw(9, 8, 7, dtype=torch.float32)
    upstream = torch.ones(1, device=DEVICE).expand(2, 9, 8, 12)
    first = outcome(window_attention, tensors, upstream, window_size=7, shift=3)
    wide = torch.randn(2, 8, 9, 40, device=DEVICE)
    wide[..., :36] = tensors["qkv"].detach().transpose(1, 2)
    tensors["qkv"] = wide.transpose(1, 2)[..., :36].requires_grad_()
    assert not tensors["qkv"].is_contiguous()
    second = outcome(window_attention, tensors, upstream.contiguous(), window_size=7, shift=3)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_empty_batch():
    tensors = draw(5, 5, 3, batch=0)
    output, *grads = outcome(window_attention, tensors, torch.zeros(0, 5, 5, 12, device=DEVICE), window_size=3)
    assert output.shape == (0, 5, 5, 12) and all(not grad.any() for grad in grads)


def test_checkpointing_and_compile_give_the_same():
    tensors = draw(6, 8, 3, cosine=True, dtype=torch.float32)
    upstream = torch.randn(2, 6, 8, 12, device=DEVICE)

    def call(**given):
        return window_attention(**given, window_size=3, shift=1)

    def checkpointed(**given):
        return checkpoint(call, use_reentrant=False, **given)

    expected = outcome(call, tensors, upstream)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for function in (checkpointed, compiled):
        actual = outcome(function, tensors, upstream)
        assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


def test_operators_keep_their_promises():
    for cosine in (False, True):
        tensors = draw(5, 4, (3, 2), cosine=cosine, dtype=torch.float32)
        arguments = (*tensors.values(), None, [3, 2, 1, 1], False, 3, 0.5)
        operators = torch.ops.heddle
        torch.library.opcheck(
            operators.window_attention_torch, arguments, test_utils=("test_schema", "test_faketensor")
        )
        torch.library.opcheck(
            operators.window_attention_torch_backward,
            (torch.randn(2, 5, 4, 12, device=DEVICE), *arguments),
            test_utils=("test_schema", "test_faketensor"),
        )


def test_second_derivatives_and_transforms_are_refused():
    tensors = draw(3, 3, 3)
    output = window_attention(**tensors, window_size=3, num_heads=3)
    (grad,) = torch.autograd.grad(output.sum(), tensors["qkv"], create_graph=True)
    with pytest.raises(RuntimeError, match="window_attention cannot be differentiated twice"):
        grad.sum().backward()
    with pytest.raises(ValueError, match="window_attention does not go through torch.func"):
        torch.func.vmap(lambda qkv: window_attention(qkv, window_size=3, num_heads=3))(torch.randn(2, 1, 3, 3, 36))


def test_indices_made_in_inference_mode_serve_training():
    layout.layout.cache_clear()
    layout.relative.cache_clear()
    tensors = draw(5, 5, 3)
    with torch.inference_mode():
        window_attention(**tensors, window_size=3, shift=1, num_heads=3)
    assert not layout.relative((3, 3), tensors["qkv"].device).is_inference()
    compare(tensors, window_size=3, shift=1)


def test_indices_are_kept_but_not_without_end():
    layout.layout.cache_clear()
    for _ in range(2):
        window_attention(torch.randn(1, 4, 4, 12, device=DEVICE), window_size=2, num_heads=1)
    assert layout.layout.cache_info().misses == 1
    for width in range(1, layout.layout.cache_info().maxsize + 5):
        window_attention(torch.randn(1, 4, width, 12, device=DEVICE), window_size=2, num_heads=1)
    assert layout.layout.cache_info().currsize == layout.layout.cache_info().maxsize


MAP = torch.zeros(2, 6, 8, 36)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, "qkv has 36 channels, which num_heads=5 must divide"),
        ({"num_heads": 2.0}, "num_heads must be an integer, got 2.0"),
        ({"num_heads": 0}, "qkv has 36 channels, which num_heads=0 must divide"),
        ({"qkv": MAP[0]}, r"qkv must be \(batch, height, width, 3 · channels\) .* got \(6, 8, 36\)"),
        ({"qkv": MAP[:, :0]}, r"qkv must be .* height, width and channels of 1 or more, got \(2, 0, 8, 36\)"),
        ({"qkv": MAP[:, :, :0]}, r"qkv must be .* got \(2, 6, 0, 36\)"),
        ({"qkv": MAP.long()}, "qkv must be .* floating point .* torch.int64"),
        ({"qkv": MAP.transpose(2, 3).contiguous().transpose(2, 3)}, "qkv must be contiguous in its last dimension"),
        ({"shift": 3}, r"shift must be in \[0, window_size\) = .* got \(3, 3\)"),
        ({"shift": (0, -1)}, r"shift must be in \[0, window_size\) = .* got \(0, -1\)"),
        ({"window_size": 0}, r"window_size must be 1 or more, got \(0, 0\)"),
        ({"window_size": (3, 3, 3)}, "window_size must be an integer or two of them"),
        ({"pad_mode": "pad"}, "pad_mode must be one of pad_then_roll, roll_then_pad, got 'pad'"),
        ({"bias": torch.zeros(49, 3)}, r"bias must be \(25, 3\) .* for window_size \(3, 3\) .* got \(49, 3\)"),
        ({"bias": torch.zeros(25, 4)}, r"bias must be \(25, 3\) .* num_heads 3, got \(25, 4\)"),
        ({"bias": torch.zeros(25, 3).half()}, r"bias must be \(25, 3\) torch.float32 .* got .* torch.float16"),
        ({"qkv_padding": torch.zeros(12)}, r"qkv_padding must be \(36,\) .* got \(12,\)"),
        ({"qkv_padding": torch.zeros(36).double()}, "qkv_padding must be .* got .* torch.float64"),
        ({"logit_scale": torch.zeros(3, 1, 1)}, r"logit_scale must be \(3,\) .* got \(3, 1, 1\)"),
        ({"bias": torch.zeros(25, 3, device="meta")}, "bias must be .* on cpu .* on meta"),
        ({"scale": 0.0}, "scale must be positive and finite, got 0.0"),
        ({"scale": float("inf")}, "scale must be positive and finite, got inf"),
        ({"scale": 1.0, "logit_scale": torch.ones(3)}, "give scale or logit_scale, not both"),
        ({"shift": 1.0}, "shift must be an integer or two of them"),
        ({"dropout_p": 1.0}, r"dropout_p must be in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        window_attention(**{"qkv": MAP, "window_size": 3, "num_heads": 3, **change})
