"""Window attention in PyTorch's world: operators, torch.compile, autocast, checkpointing, CUDA graphs, FLOPs."""

import pytest
import torch
from kernel_testing import DEVICE, DTYPES, assert_as_close_as
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from window_testing import window_formula

from kernels import use_backend, window_attention
from kernels.window_attention import tuning

# Compiles graphs around the operators without a C++ compiler on a CPU.
BACKEND = "inductor" if DEVICE == "cuda" else "aot_eager"
SETTINGS = {"window_size": 4, "shift": 2, "num_heads": 2}


@pytest.fixture(autouse=True)
def triton_backend():
    with use_backend("triton"):
        yield


def draw(*shape, dtype=torch.float32):
    return torch.randn(shape, device=DEVICE, dtype=dtype, requires_grad=True)


def operands(cosine=False, dropout_p=0.0, window=4):
    """Return the arguments of heddle::window_attention_forward for a map that is padded."""
    return (
        draw(1, window, 5, 96),
        draw((2 * window - 1) ** 2, 2),
        draw(96),
        draw(2).exp().detach() if cosine else None,
        torch.tensor([7], device=DEVICE) if dropout_p else None,
        [window, window],
        [2, 1],
        True,
        2,
        0.25,
        dropout_p,
    )


@pytest.mark.parametrize(("cosine", "dropout_p", "tiles"), [(True, 0.2, 64), (False, 0.0, 16)])
def test_opcheck(cosine, dropout_p, tiles, monkeypatch):
    """Both backward variants: 25 tokens are one tile, or several of 16."""
    monkeypatch.setattr(tuning, "LARGEST_TILE", tiles)
    arguments = operands(cosine, dropout_p, window=5)
    detached = tuple(item.detach() if isinstance(item, torch.Tensor) else item for item in arguments)
    torch.library.opcheck(torch.ops.heddle.window_attention_forward.default, detached)
    output, lse = torch.ops.heddle.window_attention_forward(*detached)
    kept = (output, lse) if lse.dim() == 3 else (None, None)
    for needed in ([True, True, True, cosine], [False, True, False, False]):
        torch.library.opcheck(
            torch.ops.heddle.window_attention_backward.default, (torch.randn_like(output), *kept, needed, *detached)
        )


@pytest.mark.parametrize("tiles", [64, 16])
def test_compiles_into_one_graph_with_its_gradients(tiles, monkeypatch):
    monkeypatch.setattr(tuning, "LARGEST_TILE", tiles)

    def loss(qkv, bias, padding, logit_scale):
        output = window_attention(
            qkv, bias, window_size=5, num_heads=2, qkv_padding=padding, logit_scale=logit_scale.exp()
        )
        return output.square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend=BACKEND)
    inputs = draw(1, 5, 6, 96), draw(81, 2), draw(96), draw(2)
    expected = torch.autograd.grad(loss(*inputs), inputs)
    for mine, eager in zip(torch.autograd.grad(compiled(*inputs), inputs), expected, strict=True):
        torch.testing.assert_close(mine, eager)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs), loss(*inputs))


def test_compiles_with_dropout():
    dropped = torch.compile(
        lambda qkv: window_attention(qkv, **SETTINGS, dropout_p=0.5), fullgraph=True, backend=BACKEND
    )
    qkv = draw(1, 4, 4, 96)
    first, second = dropped(qkv), dropped(qkv)
    assert not torch.equal(first, second)


def test_maps_that_change_stay_in_one_compiled_graph():
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(
        lambda qkv: window_attention(qkv, **SETTINGS), fullgraph=True, backend=counting, dynamic=True
    )
    for height, width in ((5, 9), (8, 6), (7, 11)):
        qkv = draw(1, height, width, 96)
        torch.testing.assert_close(compiled(qkv), window_attention(qkv, **SETTINGS))
    assert len(graphs) == 1


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != torch.float32])
def test_autocast_casts_the_map_and_keeps_the_table(dtype):
    qkv, bias, padding = draw(1, 4, 5, 96), draw(49, 2), draw(96)
    with torch.autocast(DEVICE, dtype):
        output = window_attention(qkv, bias, qkv_padding=padding, **SETTINGS)
    assert output.dtype == dtype
    expected = window_attention(qkv.to(dtype), bias, qkv_padding=padding.to(dtype), **SETTINGS)
    assert torch.equal(output, expected)
    grads = torch.autograd.grad(output.float().sum(), (qkv, bias, padding))
    assert all(grad.dtype == torch.float32 for grad in grads)


def test_checkpointing_draws_the_same_mask_again():
    qkv, bias = draw(1, 4, 8, 96), draw(49, 2)

    def attend(qkv):
        return window_attention(qkv, bias, **SETTINGS, dropout_p=0.5)

    torch.manual_seed(3)
    (expected,) = torch.autograd.grad(attend(qkv).square().sum(), qkv)
    torch.manual_seed(3)
    (gradient,) = torch.autograd.grad(checkpoint(attend, qkv, use_reentrant=False).square().sum(), qkv)
    assert torch.equal(gradient, expected)


def test_vmap_is_refused():
    with pytest.raises(ValueError, match="window_attention does not go through torch.func"):
        torch.func.vmap(lambda qkv: window_attention(qkv, **SETTINGS))(draw(3, 1, 4, 4, 96))


@pytest.mark.parametrize("constant_upstream", [True, False])
@pytest.mark.parametrize("tiles", [64, 16])
def test_a_second_backward_is_refused(constant_upstream, tiles, monkeypatch):
    monkeypatch.setattr(tuning, "LARGEST_TILE", tiles)
    qkv = draw(1, 5, 5, 96)
    output = window_attention(qkv, window_size=5, num_heads=2)
    loss = output.sum() if constant_upstream else output.square().sum()
    (gradient,) = torch.autograd.grad(loss, qkv, create_graph=True)
    with pytest.raises(RuntimeError, match="window_attention cannot be differentiated twice"):
        torch.autograd.grad((gradient.sum() + qkv.square().sum()), qkv)


def test_counters_see_the_products():
    qkv = draw(2, 7, 9, 96)
    with FlopCounterMode(display=False) as mine:
        window_attention(qkv, **SETTINGS).sum().backward()
    with FlopCounterMode(display=False) as plain:
        window_formula(qkv, **SETTINGS).sum().backward()
    # A plain backward has two products for each of the forward's; a fused one makes the scores again.
    windows, tokens, channels = 2 * 2 * 3, 16, 32
    assert mine.get_total_flops() == plain.get_total_flops() + 2 * windows * tokens**2 * channels


# On a GPU alone


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("head_dim", [16, 32, 64])
@pytest.mark.parametrize("window", [4, 5, 7, 8, 12, 16, 24])
@pytest.mark.parametrize("cosine", [False, True])
def test_every_shape_of_the_table(window, head_dim, cosine, dtype):
    """Each entry of the launch table runs, with a map that is padded and shifted and with many windows."""
    size = 3 * window - 2
    qkv = draw(4, size, size, 3 * 2 * head_dim, dtype=dtype)
    inputs = [qkv, draw((2 * window - 1) ** 2, 2), draw(3 * 2 * head_dim, dtype=dtype)]
    if cosine:
        inputs.append((torch.rand(2, device=DEVICE) * 9 + 1).requires_grad_())
    upstream = torch.randn(4, size, size, 2 * head_dim, device=DEVICE, dtype=dtype)

    def results(function, dtype):
        tensors = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
        logit_scale = tensors[3].float() if cosine and dtype != torch.float64 else tensors[3] if cosine else None
        output = function(
            *tensors[:2],
            window_size=window,
            shift=window // 2,
            num_heads=2,
            qkv_padding=tensors[2],
            logit_scale=logit_scale,
        )
        return output, *torch.autograd.grad(output, tensors, upstream.to(dtype))

    actual, low, exact = (
        results(function, kind)
        for function, kind in ((window_attention, dtype), (window_formula, dtype), (window_formula, torch.float64))
    )
    # dS = P ∘ (dP - delta) cancels; what it multiplies has its largest element in the map.
    largest = qkv.detach().abs().max().double()
    terms = (upstream.abs().max() * head_dim * largest * largest * window * window).item()
    for mine, plain, reference in zip(actual, low, exact, strict=True):
        assert_as_close_as(mine, plain, reference, terms)


@pytest.mark.gpu
def test_a_cuda_graph_draws_a_new_mask_at_each_replay():
    qkv, bias = draw(2, 14, 14, 192, dtype=torch.float16), draw(169, 2)

    def step():
        output = window_attention(qkv, bias, window_size=7, shift=3, num_heads=2, dropout_p=0.5)
        return output, *torch.autograd.grad(output.float().square().sum(), (qkv, bias))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    graph.replay()
    first = [result.clone() for result in results]
    graph.replay()
    assert not any(torch.equal(before, after) for before, after in zip(first, results, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("window", [7, 12])
def test_nothing_waits_for_the_device(window):
    qkv, bias, padding = draw(2, 15, 13, 192, dtype=torch.float16), draw((2 * window - 1) ** 2, 2), draw(192)

    def step():
        output = window_attention(
            qkv, bias, window_size=window, shift=3, num_heads=2, qkv_padding=padding, dropout_p=0.1
        )
        torch.autograd.grad(output, (qkv, bias, padding), torch.ones_like(output))

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("window", [7, 16])
def test_memory_is_the_maps_and_not_the_scores(window):
    """Above what is there: output, its gradient, the map's gradient, statistics, partial sums; no copy of a window."""
    qkv, bias = draw(32, 112, 112, 288, dtype=torch.float16), draw((2 * window - 1) ** 2, 3)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    output = window_attention(qkv, bias, window_size=window, shift=window // 2, num_heads=3)
    output.backward(torch.ones_like(output))
    assert torch.cuda.max_memory_allocated() - before < 1.2 * (2 * output.nbytes + qkv.nbytes)


@pytest.mark.gpu
def test_new_maps_compile_nothing():
    from kernels.window_attention import forward

    def attend(batch, height, width):
        window_attention(draw(batch, height, width, 192, dtype=torch.float16), window_size=7, num_heads=2)
        return len(forward.window_attention_forward.device_caches[torch.cuda.current_device()][0])

    compiled = attend(2, 15, 20)
    assert all(attend(*shape) == compiled for shape in ((3, 16, 20), (16, 13, 13), (1, 29, 50)))
