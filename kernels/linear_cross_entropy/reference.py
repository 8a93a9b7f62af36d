"""Output projection and cross-entropy over chunks of tokens: the oracle of the tests and the path on a CPU.

The loss and its gradient are computed together while a chunk of logits is at hand, so a chunk is made once, rewritten
in place, and thrown away: no (tokens, vocabulary) tensor ever exists, and the logits are not computed a second time.
"""

from typing import Any

import torch
from torch import Tensor

# Logits of one chunk, in bytes. On a CPU they stay in the last-level cache between the passes over them; elsewhere a
# chunk is large enough to fill the device.
CHUNK_BYTES = {"cpu": 8 * 2**20}
CHUNK_BYTES_ELSEWHERE = 256 * 2**20


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, label_smoothing: float, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Compute what :func:`kernels.linear_cross_entropy` computes."""
    hidden = hidden.reshape(-1, hidden.shape[-1])
    target = target.reshape(-1)
    kept = target != ignore_index
    count = kept.sum()
    # Inside the function gradients are always off, so whether they are wanted is asked here.
    trains = torch.is_grad_enabled()
    loss = _LinearCrossEntropy.apply(
        hidden, weight, bias, target, kept, label_smoothing, _autocast_dtype(hidden), trains
    )
    return loss, count


def _autocast_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype in which a linear layer would multiply here: autocast's if it is on."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        kept: Tensor,
        label_smoothing: float,
        compute_dtype: torch.dtype,
        trains: bool,
    ) -> Tensor:
        rows = kept.nonzero().squeeze(1)
        # Padding is dropped before the product, not after it.
        kept_hidden, kept_target = hidden[rows].to(compute_dtype), target[rows]
        matrix = weight.to(compute_dtype)
        needs = [trains and needed for needed in context.needs_input_grad[:3]]
        grad_kept = torch.empty_like(kept_hidden) if needs[0] else None
        grad_weight = (
            torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32)) if needs[1] else None
        )
        grad_bias = (
            torch.zeros_like(weight[:, 0], dtype=torch.promote_types(weight.dtype, torch.float32)) if needs[2] else None
        )
        loss = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        chunk_bytes = CHUNK_BYTES.get(hidden.device.type, CHUNK_BYTES_ELSEWHERE)
        chunk_rows = max(1, chunk_bytes // (weight.shape[0] * loss.element_size()))
        for start in range(0, rows.shape[0], chunk_rows):
            chunk = slice(start, start + chunk_rows)
            logits = (kept_hidden[chunk] @ matrix.T).to(loss.dtype)
            if bias is not None:
                logits += bias
            log_probs = torch.log_softmax(logits, dim=-1)
            loss += _smoothed_loss(log_probs, kept_target[chunk], label_smoothing)
            if not any(needs):
                continue
            grad_logits = _grad_logits(log_probs, kept_target[chunk], label_smoothing)
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
            grad_logits = grad_logits.to(compute_dtype)
            if grad_kept is not None:
                torch.mm(grad_logits, matrix, out=grad_kept[chunk])
            if grad_weight is not None:
                _add_product(grad_weight, grad_logits, kept_hidden[chunk])
        grad_hidden = None
        if grad_kept is not None:
            grad_hidden = torch.zeros_like(hidden).index_copy_(0, rows, grad_kept.to(hidden.dtype))
        context.save_for_backward(grad_hidden, grad_weight, grad_bias)
        context.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = context.saved_tensors
        weight_dtype, bias_dtype = context.dtypes
        return (
            None if grad_hidden is None else grad_hidden * grad_loss.to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * grad_loss).to(weight_dtype),
            None if grad_bias is None else (grad_bias * grad_loss).to(bias_dtype),
            *(None,) * 5,
        )


def _smoothed_loss(log_probs: Tensor, target: Tensor, label_smoothing: float) -> Tensor:
    """Return the summed cross-entropy of a chunk against the smoothed labels."""
    loss = -(1.0 - label_smoothing) * log_probs.gather(1, target[:, None]).sum()
    if label_smoothing:
        loss -= label_smoothing / log_probs.shape[1] * log_probs.sum()
    return loss


def _grad_logits(log_probs: Tensor, target: Tensor, label_smoothing: float) -> Tensor:
    """Return the gradient with respect to the logits; overwrites ``log_probs``."""
    grad = log_probs.exp_()
    if label_smoothing:
        grad -= label_smoothing / grad.shape[1]
    grad[torch.arange(grad.shape[0], device=grad.device), target] -= 1.0 - label_smoothing
    return grad


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``leftᵀ right`` to ``total``, which may have a wider dtype."""
    if left.dtype == total.dtype:
        total.addmm_(left.T, right)
    else:
        total += left.T @ right
