"""Attention in PyTorch's world: operators, torch.compile, autocast, checkpointing, CUDA graphs, FLOP counters."""

import pytest
import torch
from kernel_testing import DEVICE, DTYPES, assert_as_close_as, attention_formula, cancelling_terms
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from kernels import flash_attention, flash_attention_varlen, use_backend
from kernels.flash_attention import tuning

# Compiles graphs around the operators without a C++ compiler on a CPU.
BACKEND = "inductor" if DEVICE == "cuda" else "aot_eager"


@pytest.fixture(autouse=True)
def triton_backend():
    with use_backend("triton"):
        yield


def draw(*shapes, dtype=torch.float32):
    return [torch.randn(shape, device=DEVICE, dtype=dtype, requires_grad=True) for shape in shapes]


def operands(dropout_p=0.0, packed=False, bias=True):
    """Return the arguments of heddle::attention_forward."""
    query, key, value = draw((2, 2, 5, 16), (2, 1, 7, 16), (2, 1, 7, 24))
    offsets = torch.tensor([0, 2, 5], device=DEVICE), torch.tensor([0, 3, 7], device=DEVICE)
    if packed:
        query, key, value = query[:1], key[:1], value[:1]
    return (
        query,
        key,
        value,
        draw((1, 2, 5, 7))[0] if bias and not packed else None,
        None if packed else torch.tensor([7, 3], device=DEVICE),
        *(offsets if packed else (None, None)),
        torch.tensor([7], device=DEVICE) if dropout_p else None,
        3 if packed else 5,
        4 if packed else 7,
        True,
        dropout_p,
        0.25,
    )


@pytest.mark.parametrize(("dropout_p", "packed", "bias"), [(0.0, False, True), (0.2, False, False), (0.0, True, False)])
def test_opcheck(dropout_p, packed, bias):
    arguments = operands(dropout_p, packed, bias)
    detached = tuple(item.detach() if isinstance(item, torch.Tensor) else item for item in arguments)
    torch.library.opcheck(torch.ops.heddle.attention_forward.default, detached)
    output, lse = torch.ops.heddle.attention_forward(*detached)
    upstream = torch.randn_like(output)
    for needed in ([True, True, True, bias], [False, True, False, False]):
        torch.library.opcheck(torch.ops.heddle.attention_backward.default, (upstream, output, lse, needed, *detached))


def test_compiles_into_one_graph_with_its_gradients():
    def loss(query, key, value, bias, lengths):
        return flash_attention(query, key, value, bias=bias, key_lengths=lengths, causal=True).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend=BACKEND)
    inputs = draw((2, 2, 5, 16), (2, 1, 7, 16), (2, 1, 7, 24), (2, 1, 7))
    lengths = torch.tensor([7, 3], device=DEVICE)
    expected = torch.autograd.grad(loss(*inputs, lengths), inputs)
    for mine, eager in zip(torch.autograd.grad(compiled(*inputs, lengths), inputs), expected, strict=True):
        torch.testing.assert_close(mine, eager)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs, lengths), loss(*inputs, lengths))


def test_compiles_with_dropout_and_packed_sequences():
    query, key, value = draw((2, 2, 5, 16), (2, 2, 5, 16), (2, 2, 5, 16))
    dropped = torch.compile(lambda q, k, v: flash_attention(q, k, v, dropout_p=0.5), fullgraph=True, backend=BACKEND)
    first, second = dropped(query, key, value), dropped(query, key, value)
    assert not torch.equal(first, second)

    tokens = draw((8, 2, 16), (8, 2, 16), (8, 2, 16))
    offsets = torch.tensor([0, 3, 8], device=DEVICE)
    lengths = {"offsets_query": offsets, "offsets_key": offsets, "max_length_query": 5, "max_length_key": 5}
    compiled = torch.compile(
        lambda q, k, v: flash_attention_varlen(q, k, v, **lengths), fullgraph=True, backend=BACKEND
    )
    torch.testing.assert_close(compiled(*tokens), flash_attention_varlen(*tokens, **lengths))
    same = torch.compile(lambda x: flash_attention(x, x, x), fullgraph=True, backend=BACKEND)
    torch.testing.assert_close(same(query), flash_attention(query, query, query))


def test_lengths_that_change_stay_in_one_compiled_graph():
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda q, k, v: flash_attention(q, k, v), fullgraph=True, backend=counting, dynamic=True)
    for length in (9, 12, 20):
        tensors = draw(*[(2, 2, length, 16)] * 3)
        torch.testing.assert_close(compiled(*tensors), flash_attention(*tensors))
    assert len(graphs) == 1


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != torch.float32])
def test_autocast_casts_as_torchs_own_attention_does(dtype):
    query, key, value = draw(*[(2, 2, 9, 16)] * 3)
    with torch.autocast(DEVICE, dtype):
        output = flash_attention(query, key, value)
        assert output.dtype == torch.nn.functional.scaled_dot_product_attention(query, key, value).dtype == dtype
    expected = flash_attention(query.to(dtype), key.to(dtype), value.to(dtype))
    assert torch.equal(output, expected)
    assert torch.autograd.grad(output.float().sum(), query)[0].dtype == torch.float32


def test_checkpointing_draws_the_same_mask_again():
    query, key, value = draw(*[(2, 2, 20, 16)] * 3)

    def attend(query):
        return flash_attention(query, key, value, dropout_p=0.5)

    torch.manual_seed(3)
    (expected,) = torch.autograd.grad(attend(query).square().sum(), query)
    torch.manual_seed(3)
    (gradient,) = torch.autograd.grad(checkpoint(attend, query, use_reentrant=False).square().sum(), query)
    assert torch.equal(gradient, expected)


def test_vmap_is_refused():
    tensors = draw(*[(3, 1, 2, 5, 16)] * 3)
    with pytest.raises(ValueError, match="flash_attention does not go through torch.func"):
        torch.func.vmap(flash_attention)(*tensors)


@pytest.mark.parametrize("constant_upstream", [True, False])
def test_a_second_backward_is_refused(constant_upstream):
    query, key, value = draw(*[(1, 1, 5, 16)] * 3)
    output = flash_attention(query, key, value)
    loss = output.sum() if constant_upstream else output.square().sum()
    (gradient,) = torch.autograd.grad(loss, query, create_graph=True)
    with pytest.raises(RuntimeError, match="flash_attention cannot be differentiated twice"):
        torch.autograd.grad((gradient.sum() + query.square().sum()), query)


def test_counters_see_the_products():
    query, key, value = draw((2, 4, 10, 16), (2, 2, 20, 16), (2, 2, 20, 24))
    with FlopCounterMode(display=False) as mine:
        flash_attention(query, key, value).sum().backward()
    wide = [tensor.repeat_interleave(2, 1) for tensor in (key, value)]
    with FlopCounterMode(display=False) as plain:
        attention_formula(query, *wide).sum().backward()
    # A plain backward has two products for each of the forward's; a fused one makes the scores again.
    scores = 2 * 2 * 4 * 10 * 20 * 16
    assert mine.get_total_flops() == plain.get_total_flops() + scores


# On a GPU alone


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("kind", ["forward", "backward_query", "backward_key_value", "backward_bias"])
def test_every_tile_of_the_table(kind, head_dim, dtype):
    """A wrong tile that loses the race is still a bug: each runs, whatever shape it is for."""
    from triton.runtime.errors import OutOfResources

    block = 1 << (head_dim - 1).bit_length()
    query, key, value, bias = draw(
        (2, 4, 333, head_dim), (2, 2, 300, head_dim), (2, 2, 300, head_dim), (1, 4, 333, 300), dtype=dtype
    )
    lengths = torch.tensor([300, 123], device=DEVICE)
    upstream = torch.randn(2, 4, 333, head_dim, device=DEVICE, dtype=dtype)
    inputs = (query, key, value, bias)

    def results(function, dtype):
        tensors = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
        output = function(*tensors[:3], bias=tensors[3], causal=True, key_lengths=lengths)
        return output, *torch.autograd.grad(output, tensors, upstream.to(dtype))

    exact, low = results(attention_formula, torch.float64), results(attention_formula, dtype)
    for_this = {
        tile
        for kind_of, shape, tile in tuning.entries()
        if kind_of == kind and shape.itemsize == query.element_size() and shape.block_head_dim >= block
    }
    cancelling = cancelling_terms(query, key, value, upstream)
    ran = 0
    for tile in for_this:
        try:
            with tuning.forced(kind, tile):
                actual = results(flash_attention, dtype)
        except OutOfResources:
            continue  # a tile of a smaller head_dim, or of a GPU with more shared memory
        ran += 1
        for mine, plain, reference in zip(actual, low, exact, strict=True):
            assert_as_close_as(mine, plain, reference, cancelling)
    assert ran


@pytest.mark.gpu
def test_a_cuda_graph_draws_a_new_mask_at_each_replay():
    query, key, value = draw(*[(2, 2, 64, 64)] * 3, dtype=torch.float16)

    def step():
        output = flash_attention(query, key, value, dropout_p=0.5)
        return output, torch.autograd.grad(output.float().square().sum(), query)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output, gradient = step()
    graph.replay()
    first = output.clone(), gradient.clone()
    graph.replay()
    assert not torch.equal(first[0], output)
    assert not torch.equal(first[1], gradient)


@pytest.mark.gpu
def test_nothing_waits_for_the_device():
    query, key, value = draw(*[(2, 2, 64, 64)] * 3, dtype=torch.float16)
    lengths = torch.tensor([3, 64], device=DEVICE)

    def step():
        output = flash_attention(query, key, value, key_lengths=lengths, dropout_p=0.1)
        torch.autograd.grad(output, query, torch.ones_like(output))

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_memory_grows_with_the_length_and_not_with_its_square():
    def peak(length):
        query, key, value = draw(*[(1, 2, length, 64)] * 3, dtype=torch.float16)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        flash_attention(query, key, value, dropout_p=0.1).sum().backward()
        return torch.cuda.max_memory_allocated() - before

    assert peak(65_536) < 4.5 * peak(16_384)


@pytest.mark.gpu
def test_new_lengths_compile_nothing():
    from kernels.flash_attention import forward

    def attend(length):
        query, key, value = draw(*[(2, 2, length, 64)] * 3, dtype=torch.float16)
        flash_attention(query, key, value)
        cache = forward._attention_forward.device_caches[torch.cuda.current_device()][0]
        return len(cache)

    compiled = attend(100)
    assert all(attend(length) == compiled for length in (101, 112, 128, 199))
