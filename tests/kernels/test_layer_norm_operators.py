"""Layer norm's operators among PyTorch's: memory, dropout, autograd, compilation, graphs."""

import itertools

import pytest
import torch
from kernel_testing import DEVICE
from layer_norm_testing import normal, run, upstream_of
from torch.utils.checkpoint import checkpoint

from kernels import add_layer_norm, layer_norm, use_backend
from kernels.layer_norm import op
from kernels.layer_norm.op import rms_norm


@pytest.fixture(autouse=True)
def triton_backend():
    torch.manual_seed(0)
    with use_backend("triton"):
        yield


# Memory: strides, offsets, what is read and what is written


def strided_views():
    """Yield (name, tensor, whether it must be copied) for rows of 96 elements."""
    wide = torch.full((4, 5, 300), float("nan"), device=DEVICE)
    wide[..., 96:192] = torch.randn(4, 5, 96, device=DEVICE)
    yield "a third of a fused projection, NaN left and right", wide[..., 96:192], False
    yield "every second row", torch.randn(20, 96, device=DEVICE)[::2], False
    yield "one token of each sequence", torch.randn(7, 5, 96, device=DEVICE)[:, 2], False
    yield "the same row again and again", torch.randn(96, device=DEVICE).expand(6, 96), False
    yield "an offset that no vector load fits", torch.randn(6 * 96 + 1, device=DEVICE)[1:].view(6, 96), False
    yield "length first", torch.randn(5, 4, 96, device=DEVICE).transpose(0, 1), True
    yield "columns apart", torch.randn(6, 192, device=DEVICE)[:, ::2], True
    yield "one row", torch.randn(96, device=DEVICE), False


@pytest.mark.parametrize(("view", "copied"), [pytest.param(*rest, id=name) for name, *rest in strided_views()])
def test_strided_views(view, copied):
    from kernels.layer_norm.forward import as_rows

    assert (as_rows(view)[0].data_ptr() != view.data_ptr()) == copied
    weight, bias = normal(96), normal(96)
    plain = view.contiguous()
    upstream = upstream_of(plain, 2)
    for function, others in ((layer_norm, ()), (add_layer_norm, (plain.clone(),))):
        count = 2 if others else 1
        expected = run(function, (plain.requires_grad_(), *others, weight, bias), upstream[:count], 1e-5)
        actual = run(function, (view.detach().requires_grad_(), *others, weight, bias), upstream[:count], 1e-5)
        for mine, other in zip(actual, expected, strict=True):
            assert torch.equal(mine, other)
    # Upstream gradients have strides of their own, and so may the residual.
    residual = plain.detach().clone().requires_grad_()
    expected = run(add_layer_norm, (plain, residual, weight, bias), (plain.detach(), plain.detach()), 1e-5)
    residual = view.detach().requires_grad_()
    actual = run(add_layer_norm, (plain, residual, weight, bias), (view.detach(), view.detach()), 1e-5)
    for mine, other in zip(actual, expected, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_gradients_of_only_some_inputs(dropout_p):
    """Each subset of gradients equals those of all, and the operator is not asked for the rest."""
    tensors = [normal(9, 96), normal(9, 96), normal(96), normal(96)]
    upstream = upstream_of(tensors[0], 2)
    torch.manual_seed(1)
    everything = run(add_layer_norm, tensors, upstream, 1e-5, dropout_p=dropout_p)[2:]
    for flags in itertools.product((False, True), repeat=4):
        if not any(flags):
            continue
        inputs = [tensor.detach().requires_grad_(flag) for tensor, flag in zip(tensors, flags, strict=True)]
        torch.manual_seed(1)
        grads = iter(run(add_layer_norm, inputs, upstream, 1e-5, dropout_p=dropout_p)[2:])
        for flag, expected in zip(flags, everything, strict=True):
            if flag:
                torch.testing.assert_close(next(grads), expected)


def test_backward_skips_what_nobody_asks_for():
    input, weight = normal(4, 32, grad=False), normal(32, grad=False)
    _, _, statistics = torch.ops.heddle.layer_norm_forward(
        input, None, weight, None, None, 1e-5, 0.0, False, input.dtype
    )
    for wanted in range(4):
        dtypes = [torch.float32 if i == wanted else None for i in range(4)]
        grads = torch.ops.heddle.layer_norm_backward(input, None, input, weight, statistics, None, 0.0, False, *dtypes)
        assert [grad.numel() > 0 for grad in grads] == [i == wanted for i in range(4)]


def test_no_input_is_written():
    tensors = [normal(9, 96), normal(9, 96), normal(96), normal(96)]
    upstream = upstream_of(tensors[0], 2)
    before = [tensor.detach().clone() for tensor in (*tensors, *upstream)]
    run(add_layer_norm, tensors, upstream, 1e-5, dropout_p=0.2)
    for tensor, copy in zip((*tensors, *upstream), before, strict=True):
        assert torch.equal(tensor, copy)


def test_input_and_residual_share_a_gradient_only_on_the_way():
    input, residual = normal(5, 32), normal(5, 32)
    normed, summed = add_layer_norm(input, residual)
    first, second = torch.autograd.grad(normed.square().sum(), (input, residual), retain_graph=True)
    assert first.data_ptr() == second.data_ptr()  # one write, not two
    (normed.square().sum() + summed.sum()).backward()
    assert input.grad.data_ptr() != residual.grad.data_ptr()  # or an in-place change of one would be one of both
    torch.testing.assert_close(input.grad, first + 1)


def test_nothing_but_the_sum_and_the_statistics_is_kept():
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        add_layer_norm(normal(50, 64), normal(50, 64), normal(64), normal(64), dropout_p=0.1)
    # The sum, the weight, the statistics and the seed of the mask.
    assert sorted(tensor.numel() for tensor in saved) == [1, 64, 2 * 50, 50 * 64]


@pytest.mark.parametrize("shape", [(0, 96), (3, 0, 96)])
def test_no_rows(shape):
    inputs = (normal(*shape), normal(*shape), normal(96), normal(96))
    normed, summed, *grads = run(add_layer_norm, inputs, upstream_of(inputs[0], 2), 1e-5, dropout_p=0.1)
    assert normed.shape == summed.shape == shape
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in inputs]
    assert not grads[2].any()
    assert not grads[3].any()


def test_two_runs_are_equal():
    inputs = (normal(300, 96), normal(300, 96), normal(96), normal(96))
    upstream = upstream_of(inputs[0], 2)
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        runs.append(run(add_layer_norm, inputs, upstream, 1e-5, dropout_p=0.1))
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


# Dropout


def test_dropout_follows_the_generator_of_torch():
    def kept():
        return add_layer_norm(torch.ones(64, 64, device=DEVICE), torch.zeros(64, 64, device=DEVICE), dropout_p=0.25)[1]

    torch.manual_seed(3)
    first, second = kept(), kept()
    torch.manual_seed(3)
    assert torch.equal(kept(), first)
    assert not torch.equal(first, second)
    values = first.unique()
    torch.testing.assert_close(values, torch.tensor([0.0, 1 / 0.75], device=DEVICE))
    # Four standard errors of a fair share.
    assert abs((first == 0).double().mean().item() - 0.25) < 4 * (0.25 * 0.75 / first.numel()) ** 0.5


def test_no_seed_is_drawn_without_dropout(monkeypatch):
    monkeypatch.setattr(op, "new_seed", lambda device: pytest.fail("drew a seed"))
    add_layer_norm(normal(3, 16), normal(3, 16), dropout_p=0.0)


def test_checkpointed_block_drops_the_same():
    inputs = (normal(9, 32), normal(9, 32), normal(32), normal(32))

    def block(*tensors):
        normed, summed = add_layer_norm(*tensors, dropout_p=0.5)
        return normed * summed

    torch.manual_seed(2)
    expected = torch.autograd.grad(block(*inputs).sum(), inputs)
    torch.manual_seed(2)
    actual = torch.autograd.grad(checkpoint(block, *inputs, use_reentrant=False).sum(), inputs)
    for mine, other in zip(actual, expected, strict=True):
        assert torch.equal(mine, other)


# In PyTorch's world


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_compiles_without_graph_breaks(dropout_p):
    inputs = (normal(9, 32), normal(9, 32), normal(32), normal(32))
    upstream = upstream_of(inputs[0], 2)

    def block(*tensors):
        normed, summed = add_layer_norm(*tensors, dropout_p=dropout_p)
        return layer_norm(normed, tensors[2]) + rms_norm(normed), summed

    compiled = torch.compile(block, fullgraph=True, backend="inductor" if DEVICE == "cuda" else "aot_eager")
    torch.manual_seed(4)
    expected = run(block, inputs, upstream)
    torch.manual_seed(4)
    actual = run(compiled, inputs, upstream)
    if DEVICE == "cuda" and dropout_p:  # inductor draws its own random numbers
        assert all(torch.isfinite(tensor).all() for tensor in actual)
        return
    for mine, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize(("residual", "rms"), [(True, False), (False, False), (False, True)])
def test_operators_keep_their_promises(residual, rms):
    input, weight = normal(5, 32, grad=False), normal(32, grad=False)
    bias = None if rms else weight
    seed = torch.tensor([7], device=DEVICE) if residual else None
    dropout_p = 0.3 if residual else 0.0
    forward = (input, input + 1 if residual else None, weight, bias, seed, 1e-5, dropout_p, rms, torch.float32)
    torch.library.opcheck(torch.ops.heddle.layer_norm_forward, forward)
    normed, summed, statistics = torch.ops.heddle.layer_norm_forward(*forward)
    dtypes = (torch.float32, torch.float32 if residual else None, torch.float32, None if rms else torch.float32)
    backward = (
        normed,
        summed if residual else None,
        summed if residual else input,
        weight,
        statistics,
        seed,
        dropout_p,
        rms,
        *dtypes,
    )
    torch.library.opcheck(torch.ops.heddle.layer_norm_backward, backward)


def test_vmap_is_refused():
    with pytest.raises(ValueError, match="layer_norm does not go through torch.func"):
        torch.func.vmap(layer_norm)(torch.zeros(2, 3, 16, device=DEVICE))


def test_double_backward_is_refused():
    input = normal(3, 16)
    # The gradient that arrives is a constant: the case that torch's once_differentiable lets pass.
    (grad,) = torch.autograd.grad(layer_norm(input).sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="layer_norm cannot be differentiated twice"):
        grad.sum().backward()


def test_what_the_kernels_do_not_take_is_named():
    with pytest.raises(ValueError, match=r"input \(2, 16385\) is too wide .* 1 to 16384"):
        layer_norm(torch.zeros(2, 16385, device=DEVICE))
    input = torch.zeros(2, 16, device=DEVICE)
    with pytest.raises(ValueError, match="weight must be in .* got torch.float64"):
        layer_norm(input, torch.ones(16, dtype=torch.float64, device=DEVICE))
    with pytest.raises(ValueError, match="residual must be in .* got torch.float64"):
        add_layer_norm(input, input.double())


@pytest.mark.gpu
def test_cuda_graph_draws_a_new_mask_at_each_replay():
    inputs = (normal(64, 96), normal(64, 96), normal(96), normal(96))
    upstream = upstream_of(inputs[0], 2)

    def step():
        return run(add_layer_norm, inputs, upstream, 1e-5, dropout_p=0.5)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _, summed, grad_input, *_ = step()
    masks = []
    for _ in range(2):
        graph.replay()
        dropped = grad_input == 0
        assert torch.equal(summed[dropped], inputs[1][dropped])
        masks.append(dropped.clone())
    assert not torch.equal(*masks)
