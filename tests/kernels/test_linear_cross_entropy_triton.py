"""The projection and loss in Triton against the formula in float64: interpreted on a CPU, compiled on a GPU."""

import pytest
import torch
from kernel_testing import DEVICE, DTYPES, assert_as_close_as, poison_empty
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from kernels import linear_cross_entropy, use_backend
from kernels.linear_cross_entropy import forward, reference, tuning

IGNORED = 2
# The first logit of a lane meets the lowest float32: the difference may overflow to -inf, whose exponential is the 0
# that is wanted. Numpy, in the interpreter, says so.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in multiply:RuntimeWarning")


@pytest.fixture(autouse=True)
def triton_backend():
    with use_backend("triton"):
        yield


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks to a row and several chunks to a call at the sizes that the interpreter can bear."""
    launches = (tuning.Launch(block=32, num_warps=1), tuning.Launch(block=64, num_warps=2))
    monkeypatch.setattr(tuning, "LAUNCHES", {2: launches, 4: launches})
    monkeypatch.setattr(tuning, "SMALL_VOCABULARY", 100)
    monkeypatch.setitem(tuning.CHUNK_BYTES, DEVICE, 2048)


def draw(tokens=(3, 5), vocabulary=70, width=16, dtype=torch.float32, target_dtype=torch.int64):
    """Return hidden, weight and bias, with logits of a few units, and a target of which some are ignored."""
    hidden = torch.randn(*tokens, width, device=DEVICE).to(dtype).requires_grad_()
    weight = (2 * torch.randn(vocabulary, width, device=DEVICE) / width**0.5).to(dtype).requires_grad_()
    bias = torch.randn(vocabulary, device=DEVICE).to(dtype).requires_grad_()
    target = torch.randint(0, vocabulary, tokens, device=DEVICE, dtype=target_dtype)
    target.view(-1)[1::4] = IGNORED
    return hidden, weight, bias, target


def formula(hidden, weight, target, *, bias=None, label_smoothing=0.0, ignore_index=IGNORED, reduction="sum"):
    """Return the loss from all logits at once, in float32 at least behind the product."""
    logits = functional.linear(hidden, weight, bias).flatten(0, -2)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return functional.cross_entropy(
        logits, target.flatten().long(), ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction
    )


def check(tensors, target, label_smoothing=0.1):
    """Compare loss, count and gradients with the formula: in float64, and in the inputs' dtype for the tolerance."""

    def run(function, tensors, **settings):
        hidden, weight, bias = tensors
        return function(
            hidden, weight, target, bias=bias, label_smoothing=label_smoothing, ignore_index=IGNORED, **settings
        )

    def gradients(loss, tensors):
        return torch.autograd.grad(0.3 * loss, [tensor for tensor in tensors if tensor is not None])

    loss, count = run(linear_cross_entropy, tensors)
    double = [None if tensor is None else tensor.detach().double().requires_grad_() for tensor in tensors]
    low, exact = run(formula, tensors, reduction="none"), run(formula, double, reduction="none")
    assert count.dtype == torch.int64 and count == (target != IGNORED).sum()
    # Errors of rows cancel in a sum by luck, and not in both: the plain path's are summed by size.
    noise = 2 * torch.finfo(torch.float32).eps * exact.sum()
    assert loss.dtype == torch.float32
    assert (loss - exact.sum()).abs() <= 2 * (low - exact).abs().sum() + noise
    wanted = zip(gradients(low.sum(), tensors), gradients(exact.sum(), double), strict=True)
    for gradient, (plain, reference_gradient) in zip(gradients(loss, tensors), wanted, strict=True):
        assert gradient.dtype == plain.dtype
        assert_as_close_as(gradient, plain, reference_gradient)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])  # two programs: without it the logits are not summed up
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    ("tokens", "vocabulary", "width"),
    [
        ((1,), 1, 8),  # one row, one entry: the loss is 0 and so is its gradient
        ((3, 5), 70, 16),  # the small entry, a ragged last block and a row padded to whole cache lines
        ((2, 2, 4), 128, 16),  # the large entry, whole blocks, a row without padding; three leading dimensions
        ((17,), 131, 24),  # an odd vocabulary: no row but the first would be aligned without the padding
    ],
)
def test_loss_count_and_gradients(
    tokens, vocabulary, width, with_bias, label_smoothing, dtype, small_blocks, monkeypatch
):
    *tensors, target = draw(tokens, vocabulary, width, dtype)
    if not with_bias:
        tensors[2] = None
    poison_empty(monkeypatch)
    check(tensors, target, label_smoothing)


@pytest.mark.parametrize("rows", [1, 4, 1000])  # a row at a time, equal chunks with a shorter last one, all in one
def test_chunks(rows, small_blocks, monkeypatch):
    monkeypatch.setitem(tuning.CHUNK_BYTES, DEVICE, rows * tuning.row_stride(70, 4) * 4)
    *tensors, target = draw()
    check(tensors, target)


def test_strided_views_and_short_integers(small_blocks):
    hidden, weight, bias, target = draw((4, 12), 70, 32, target_dtype=torch.int32)
    hidden = hidden.detach()[:, 1::2, 3:19].requires_grad_()
    weight = weight.detach().repeat(1, 2).T[5:21].T.requires_grad_()
    bias = bias.detach().repeat_interleave(2)[::2].requires_grad_()
    assert not any(tensor.is_contiguous() for tensor in (hidden, weight, bias))
    check((hidden, weight, bias), target[:, ::2])


@pytest.mark.parametrize("asked", [(0,), (1,), (2,), (0, 2)])  # each alone, and two that skip the one between
def test_gradients_of_only_some_inputs(asked, small_blocks, monkeypatch):
    *tensors, target = draw()
    wanted = torch.autograd.grad(formula(*tensors[:2], target, bias=tensors[2]), [tensors[index] for index in asked])
    for index, tensor in enumerate(tensors):
        tensor.requires_grad_(index in asked)
    if 1 not in asked:
        monkeypatch.setattr(reference, "add_product", None)
    loss, _ = linear_cross_entropy(*tensors[:2], target, bias=tensors[2], ignore_index=IGNORED)
    loss.backward()
    assert [tensor.grad is not None for tensor in tensors] == [index in asked for index in range(3)]
    for index, gradient in zip(asked, wanted, strict=True):
        torch.testing.assert_close(tensors[index].grad, gradient)


def test_no_gradient_is_made_where_none_is_wanted(small_blocks, monkeypatch):
    hidden, weight, bias, target = draw()
    gradients = []
    launch = forward.loss_and_gradient
    monkeypatch.setattr(forward, "loss_and_gradient", lambda *args: (gradients.append(args[-1]), launch(*args)))
    monkeypatch.setattr(reference, "add_product", None)
    with torch.no_grad():
        loss, _ = linear_cross_entropy(hidden, weight, target, bias=bias, ignore_index=IGNORED)
    assert gradients and not any(gradients)
    torch.testing.assert_close(loss, formula(hidden, weight, target, bias=bias).detach())


def test_what_stands_in_ignored_positions_goes_nowhere(small_blocks):
    hidden, weight, bias, target = draw()
    poisoned = hidden.detach().masked_fill((target == IGNORED)[..., None], float("nan")).requires_grad_()
    losses = [linear_cross_entropy(h, weight, target, bias=bias, ignore_index=IGNORED)[0] for h in (hidden, poisoned)]
    assert torch.equal(*losses)
    clean = torch.autograd.grad(losses[0], (hidden, weight, bias))
    for mine, wanted in zip(torch.autograd.grad(losses[1], (poisoned, weight, bias)), clean, strict=True):
        assert torch.equal(mine, wanted)


@pytest.mark.parametrize("tokens", [(0,), (3, 0), (3, 2)])  # nothing at all, an empty dimension, padding alone
def test_nothing_to_count(tokens, small_blocks):
    hidden, weight, bias, target = draw(tokens)
    loss, count = linear_cross_entropy(hidden, weight, target.fill_(IGNORED), bias=bias, ignore_index=IGNORED)
    assert (loss.item(), count.item()) == (0.0, 0)
    for gradient, tensor in zip(torch.autograd.grad(loss, (hidden, weight, bias)), (hidden, weight, bias), strict=True):
        assert torch.equal(gradient, torch.zeros_like(tensor))


@pytest.mark.parametrize("wrong", [70, -1, 2**31 - 1, -(2**31)])  # one past the end, torch's last, far outside
def test_a_wrong_target_is_never_silent(wrong, small_blocks):
    hidden, weight, bias, target = draw(target_dtype=torch.int32)
    target[1, 2] = wrong
    loss, _ = linear_cross_entropy(hidden, weight, target, bias=bias, ignore_index=IGNORED)
    assert loss.isnan()
    grad_hidden, grad_weight = torch.autograd.grad(loss, (hidden, weight))
    assert grad_hidden[1, 2].isnan().all() and grad_weight.isnan().all()
    assert grad_hidden[0].isfinite().all()


def test_forbidden_words_and_extreme_logits(small_blocks):
    # A whole block of -inf, and logits whose exponentials overflow float32.
    hidden, weight, bias, target = draw()
    bias = bias.detach()
    bias[:40] = float("-inf")
    target = target.clamp(min=40)
    loss, _ = linear_cross_entropy(hidden, 1000 * weight, target, bias=bias)
    expected = formula(hidden, 1000 * weight, target, bias=bias, ignore_index=-100)
    torch.testing.assert_close(loss, expected)
    for mine, wanted in zip(
        torch.autograd.grad(loss, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-3 * float(wanted.abs().max()))


def test_nan_stays_nan(small_blocks):
    hidden, weight, _, target = draw()
    with torch.no_grad():
        weight[50, 3] = float("nan")
    assert linear_cross_entropy(hidden, weight, target)[0].isnan()


def test_two_runs_are_bitwise_equal(small_blocks):
    hidden, weight, bias, target = draw((5, 13), dtype=torch.float16)
    runs = []
    for _ in range(2):
        loss, _ = linear_cross_entropy(hidden, weight, target, bias=bias, label_smoothing=0.1)
        runs.append((loss, *torch.autograd.grad(loss, (hidden, weight, bias))))
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_a_weight_that_is_also_the_embedding(small_blocks):
    _, weight, _, target = draw()
    ids = torch.randint(0, 70, target.shape, device=DEVICE)
    loss, _ = linear_cross_entropy(functional.embedding(ids, weight), weight, target, ignore_index=IGNORED)
    expected = formula(functional.embedding(ids, weight), weight, target)
    torch.testing.assert_close(torch.autograd.grad(loss, weight), torch.autograd.grad(expected, weight))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_loss_scale_that_float16_cannot_hold(backend, small_blocks):
    # A gradient scaler begins at 65,536, which is inf in float16; the scaled gradients are not.
    hidden, weight, bias, target = draw(dtype=torch.float16)
    with use_backend(backend):
        loss, _ = linear_cross_entropy(hidden, weight, target, bias=bias, ignore_index=IGNORED)
        unscaled = torch.autograd.grad(loss, hidden, retain_graph=True)[0]
        scaled = torch.autograd.grad(2.0**16 * loss, hidden)[0]
    small = unscaled.abs() < 0.9
    assert small.any() and torch.equal(scaled[small], (unscaled[small].float() * 2**16).half())


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_operator_registration(backend, small_blocks):
    hidden, weight, bias, target = (tensor.detach() for tensor in draw())
    for wanted in ([True, True, True], [False, False, True], [False, False, False]):
        settings = (0.1, IGNORED, torch.float32, wanted, backend == "triton")
        torch.library.opcheck(torch.ops.heddle.linear_cross_entropy, (hidden, weight, bias, target, *settings))
        torch.library.opcheck(torch.ops.heddle.linear_cross_entropy, (hidden, weight, None, target, *settings))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_compiles_into_one_graph(backend, small_blocks):
    hidden, weight, bias, target = draw()

    def step(hidden, weight, bias, target):
        loss, count = linear_cross_entropy(
            2 * hidden, weight, target, bias=bias, label_smoothing=0.1, ignore_index=IGNORED
        )
        return loss / count

    compiled_step = torch.compile(step, fullgraph=True, backend="aot_eager")
    with use_backend(backend):
        compiled = compiled_step(hidden, weight, bias, target)
        eager = step(hidden, weight, bias, target)
        with torch.no_grad():
            assert torch.equal(compiled_step(hidden, weight, bias, target), eager)
    assert torch.equal(compiled, eager)
    tensors = (hidden, weight, bias)
    for mine, wanted in zip(torch.autograd.grad(compiled, tensors), torch.autograd.grad(eager, tensors), strict=True):
        assert torch.equal(mine, wanted)


def test_autocast(small_blocks):
    hidden, weight, bias, target = draw()
    low = [tensor.detach().half().requires_grad_() for tensor in (hidden, weight)]
    with torch.autocast(DEVICE, torch.float16):
        loss, _ = linear_cross_entropy(hidden, weight, target, bias=bias, ignore_index=IGNORED)
    with torch.no_grad():
        wanted, _ = linear_cross_entropy(*low, target, bias=bias.half(), ignore_index=IGNORED)
    # The bias keeps its float32 digits under autocast, so that it alone differs.
    torch.testing.assert_close(loss, wanted, rtol=2**-11, atol=0.0)
    gradients = torch.autograd.grad(loss, (hidden, weight, bias))
    assert all(gradient.dtype == torch.float32 for gradient in gradients)


def test_autocast_to_bfloat16_is_refused_by_the_interpreter():
    if DEVICE == "cuda":
        pytest.skip("a GPU multiplies bfloat16")
    hidden, weight, _, target = draw()
    with torch.autocast(DEVICE, torch.bfloat16), pytest.raises(ValueError, match="interpreter computes wrongly"):
        linear_cross_entropy(hidden, weight, target)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(use_reentrant, small_blocks):
    hidden, weight, _, target = draw()

    def block(hidden):
        return linear_cross_entropy(hidden, weight, target, ignore_index=IGNORED)[0]

    plain = torch.autograd.grad(block(hidden), hidden)[0]
    torch.utils.checkpoint.checkpoint(block, hidden, use_reentrant=use_reentrant).backward()
    assert torch.equal(hidden.grad, plain)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_what_is_refused(backend):
    hidden, weight, _, target = draw()
    with use_backend(backend):
        with pytest.raises(ValueError, match=r"linear_cross_entropy does not go through torch\.func"):
            torch.func.vmap(lambda h, t: linear_cross_entropy(h, weight, t)[0])(hidden, target)
        with torch.no_grad(), pytest.raises(ValueError, match=r"does not go through torch\.func"):
            torch.func.vmap(lambda h, t: linear_cross_entropy(h, weight, t)[0])(hidden, target)
        loss, _ = linear_cross_entropy(hidden, weight, target)
        # The gradient that arrives is the constant 1: torch's once_differentiable would say nothing.
        gradient = torch.autograd.grad(loss, hidden, create_graph=True)[0]
        with pytest.raises(RuntimeError, match="linear_cross_entropy cannot be differentiated twice"):
            (hidden.sum() + gradient.sum()).backward()


def test_flops_are_counted(small_blocks):
    hidden, weight, bias, target = draw((3, 5), 70, 16)
    for trained, products in (((), 1), ((weight,), 2), ((hidden, weight, bias), 3)):
        for tensor in (hidden, weight, bias):
            tensor.requires_grad_(any(tensor is wanted for wanted in trained))
        with FlopCounterMode(display=False) as counter:
            linear_cross_entropy(hidden, weight, target, bias=bias)
        assert counter.get_total_flops() == products * 2 * 15 * 70 * 16


# What needs a GPU.


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "vocabulary", [4096, 4095, 9712, 32000, 37000, 32769]
)  # both entries of an itemsize, whole blocks or not, aligned or not
def test_every_entry_natively(vocabulary, dtype):
    *tensors, target = draw((3, 50), vocabulary, 64, dtype)
    check(tensors, target)


@pytest.mark.gpu
def test_cuda_graph_and_no_sync():
    hidden, weight, bias, target = draw((64,), 9712, 64, torch.bfloat16)

    def step():
        loss, count = linear_cross_entropy(hidden, weight, target, bias=bias, label_smoothing=0.1, ignore_index=IGNORED)
        return loss, count, *torch.autograd.grad(loss, (hidden, weight, bias))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        hidden.copy_(torch.randn_like(hidden))
        target.copy_(target.roll(1))
    graph.replay()
    assert all(torch.equal(mine, wanted) for mine, wanted in zip(captured, step(), strict=True))


@pytest.mark.gpu
def test_the_number_of_tokens_compiles_nothing(monkeypatch):
    import triton

    hidden, weight, bias, target = (tensor.detach() for tensor in draw((100,), 5000, 64, torch.bfloat16))
    compiled = []
    linear_cross_entropy(hidden, weight, target, bias=bias)
    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", lambda **_: compiled.append(1))
    for tokens in (1, 16, 33, 99):
        linear_cross_entropy(hidden[:tokens], weight, target[100 - tokens :], bias=bias)
    assert not compiled
