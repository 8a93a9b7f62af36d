"""Where kernel tests run: on a GPU if there is one, otherwise in Triton's interpreter on the CPU."""

import os

import torch

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
if not CUDA:
    # Read when a kernel's module is imported, so it must stand before any of them is.
    os.environ["TRITON_INTERPRET"] = "1"
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


def assert_as_close_as(actual, low, exact):
    """Assert that a kernel's result is at most twice as far from the float64 result as plain PyTorch's in its dtype.

    Args:
        actual: The kernel's result.
        low: The same formula in plain PyTorch in the dtype of ``actual``.
        exact: The formula in float64.
    """
    assert actual.shape == exact.shape
    assert torch.isfinite(actual).all()
    largest = exact.abs().max().item() if exact.numel() else 0.0
    noise = 2 * torch.finfo(actual.dtype).eps * max(largest, torch.finfo(torch.float32).tiny)
    error = (actual.double() - exact).abs().max().item() if exact.numel() else 0.0
    allowed = 2 * (low.double() - exact).abs().max().item() + noise if exact.numel() else 0.0
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g} (largest value {largest:.3g})"
