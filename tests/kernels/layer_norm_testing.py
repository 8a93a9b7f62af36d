"""What the tests of layer norm share: calls with their gradients, and torch's own functions to compare with."""

import torch
from kernel_testing import DEVICE, assert_as_close_as
from torch.nn import functional

from kernels.layer_norm import op


def normal(*shape, dtype=torch.float32, grad=True):
    return torch.randn(*shape, device=DEVICE).to(dtype).requires_grad_(grad)


def run(function, inputs, upstream, *settings, **options):
    """Return the results and the gradients of whatever inputs there are; no upstream for a result of None."""
    results = function(*inputs, *settings, **options)
    results = results if isinstance(results, tuple) else (results,)
    used = [(result, grad) for result, grad in zip(results, upstream, strict=True) if grad is not None]
    wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    grads = torch.autograd.grad(
        [result for result, _ in used], wanted, [grad.to(result.dtype) for result, grad in used], allow_unused=True
    )
    return *results, *grads


def torch_layer_norm(input, weight, bias, eps):
    return functional.layer_norm(input, input.shape[-1:], weight, bias, eps)


def torch_add_layer_norm(input, residual, weight, bias, eps, *, keep=None, dropout_p=0.0):
    summed = (input if keep is None else torch.where(keep, input / (1.0 - dropout_p), 0.0)) + residual
    return torch_layer_norm(summed, weight, bias, eps), summed


def torch_rms_norm(input, weight, eps):
    return functional.rms_norm(input, input.shape[-1:], weight, eps)


def check(function, plain, inputs, upstream, *settings, keep=None, **options):
    """Compare results and gradients with torch's in float64, and in the inputs' dtype for the tolerance."""
    plain_options = options if keep is None else {**options, "keep": keep}
    doubles = [None if tensor is None else tensor.detach().double().requires_grad_() for tensor in inputs]
    actual = run(function, inputs, upstream, *settings, **options)
    low = run(plain, inputs, upstream, *settings, **plain_options)
    exact = run(plain, doubles, upstream, *settings, **plain_options)
    # What adds up to a gradient of rows, and to one of a parameter, is larger than the result where it cancels.
    terms = exact[0].abs().max().item() * max(grad.abs().max().item() for grad in upstream if grad is not None)
    for mine, other, reference in zip(actual, low, exact, strict=True):
        assert mine.dtype == other.dtype
        assert_as_close_as(mine, other, reference, terms)
    return actual


def upstream_of(input, count=1):
    return [normal(*input.shape, dtype=input.dtype, grad=False) for _ in range(count)]


def fixed_mask(monkeypatch, rows, width, p, seed=2**61 + 12345):
    """Let the next dropout draw a seed that is known, above 32 bits, and return what it keeps."""
    from kernels.random import kept_reference

    monkeypatch.setattr(op, "new_seed", lambda device: torch.tensor([seed], device=device))
    return kept_reference(seed, 1, rows, width, p)[0].to(DEVICE)
