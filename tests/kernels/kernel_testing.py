"""Where kernel tests run: on a GPU if there is one, otherwise in Triton's interpreter on the CPU."""

import torch

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
# The interpreter multiplies the raw bits of bfloat16, so that dtype is for GPUs.
DTYPES = (torch.float32, torch.float16, torch.bfloat16) if CUDA else (torch.float32, torch.float16)


def poison_empty(monkeypatch):
    """Fill every tensor that torch.empty and its relatives make with NaN, so that what a kernel leaves out shows."""

    def poisoned(make):
        def call(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return call

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))


def assert_as_close_as(actual, low, exact, terms=0.0):
    """Assert that a kernel's result is at most twice as far from the float64 result as plain PyTorch's in its dtype.

    Args:
        actual: The kernel's result.
        low: The same formula in plain PyTorch in the dtype of ``actual``.
        exact: The formula in float64.
        terms: Size of the terms in a sum that may cancel; they are added in float32.
    """
    assert actual.shape == exact.shape
    assert torch.isfinite(actual).all()
    largest = exact.abs().max().item() if exact.numel() else 0.0
    noise = 2 * torch.finfo(actual.dtype).eps * largest + 2 * torch.finfo(torch.float32).eps * terms
    error = (actual.double() - exact).abs().max().item() if exact.numel() else 0.0
    allowed = 2 * (low.double() - exact).abs().max().item() + noise if exact.numel() else 0.0
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g} (largest value {largest:.3g})"


def attention_formula(
    query, key, value, *, causal=False, key_lengths=None, bias=None, keep=None, dropout_p=0.0, scale=None
):
    """Attention as the formula says it, differentiable, in the dtype of ``query``; a query without keys gives 0.

    ``keep`` is a dropout mask, boolean (batch, heads, query_length, key_length).
    """
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    query_length, key_length = scores.shape[-2:]
    columns = torch.arange(key_length, device=query.device)
    seen = torch.ones_like(scores, dtype=torch.bool)
    if causal:
        seen &= columns <= torch.arange(query_length, device=query.device)[:, None] + key_length - query_length
    if key_lengths is not None:
        seen &= columns < key_lengths[:, None, None, None]
    seen &= scores > float("-inf")
    blind = ~seen.any(-1, keepdim=True)
    weights = scores.masked_fill(~seen, float("-inf")).masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)
    if keep is not None:
        weights = weights * keep / (1 - dropout_p)
    return weights @ value


def cancelling_terms(query, key, value, upstream):
    """Return the size of what cancels in dS = P ∘ (dP - delta), times that of the keys or queries; NaNs count as 0."""
    query, key, value = (tensor.detach().nan_to_num(0.0).abs().double() for tensor in (query, key, value))
    if not query.numel() or not key.numel():
        return 0.0
    grad_weights = upstream.abs().double().flatten(0, -2) @ value.flatten(0, -2).T
    return (grad_weights.max() * torch.maximum(query.max(), key.max())).item()
