"""Output projection and cross-entropy over chunks of tokens: the oracle of the tests and the path on a CPU.

The loss and its gradient are computed together while a chunk of logits is at hand, so a chunk is made once, rewritten
in place, and thrown away: no (tokens, vocabulary) tensor ever exists, and the logits are not computed a second time.
"""

import torch
from torch import Tensor

from kernels.linear_cross_entropy import tuning


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    label_smoothing: float,
    ignore_index: int,
    compute_dtype: torch.dtype,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the loss, the count and the gradients of the loss.

    Args:
        hidden: (..., width).
        weight: (vocabulary, width).
        bias: (vocabulary,) or None.
        target: (...) integers.
        label_smoothing: In [0, 1).
        ignore_index: The target that counts for nothing.
        compute_dtype: In which the matrix products multiply.
        wanted: Whether the gradients of ``hidden``, ``weight`` and ``bias`` are; one that is not is an empty tensor.

    Raises:
        ValueError: If a target is neither in the vocabulary nor ``ignore_index``.
    """
    flat = (target.numel(), weight.shape[1])
    rows = (target.reshape(-1) != ignore_index).nonzero().squeeze(1)
    # Padding is dropped before the product, not after it.
    kept_target, kept_hidden = target.reshape(-1)[rows].long(), hidden.reshape(flat)[rows].to(compute_dtype)
    _check_targets(kept_target, weight.shape[0], ignore_index)
    matrix = weight.to(compute_dtype)
    loss = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
    grad_kept = torch.empty_like(kept_hidden)
    grad_weight, grad_bias = parameter_gradients(weight, bias, wanted)
    chunk_rows = tuning.chunk_rows(rows.shape[0], weight.shape[0] * loss.element_size(), hidden.device.type)
    for start in range(0, rows.shape[0], chunk_rows):
        chunk = slice(start, start + chunk_rows)
        logits = (kept_hidden[chunk] @ matrix.T).to(loss.dtype)
        if bias is not None:
            logits += bias
        log_probs = torch.log_softmax(logits, dim=-1)
        loss += _smoothed_loss(log_probs, kept_target[chunk], label_smoothing)
        if not any(wanted):
            continue
        grad_logits = _grad_logits(log_probs, kept_target[chunk], label_smoothing)
        if wanted[2]:
            grad_bias += grad_logits.sum(0)
        grad_logits = grad_logits.to(compute_dtype)
        if wanted[0]:
            torch.mm(grad_logits, matrix, out=grad_kept[chunk])
        if wanted[1]:
            add_product(grad_weight, grad_logits, kept_hidden[chunk])
    grad_hidden = hidden.new_zeros(hidden.shape if wanted[0] else 0)
    if wanted[0]:
        grad_hidden.view(flat).index_copy_(0, rows, grad_kept.to(hidden.dtype))
    return loss, loss.new_tensor(rows.shape[0], dtype=torch.int64), grad_hidden, grad_weight, grad_bias


def parameter_gradients(weight: Tensor, bias: Tensor | None, wanted: list[bool]) -> tuple[Tensor, Tensor]:
    """Return zeros to which the gradients of weight and bias are added, in float32 at least; (0,) if not wanted."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return (
        weight.new_zeros(weight.shape if wanted[1] else 0, dtype=dtype),
        weight.new_zeros(weight.shape[0] if wanted[2] else 0, dtype=dtype),
    )


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``leftᵀ right`` to ``total``, which may have a wider dtype."""
    if left.dtype == total.dtype:
        total.addmm_(left.T, right)
    elif total.device.type == "cpu":  # where no product has a wider result
        total += left.T @ right
    else:
        torch.addmm(total, left.T, right, out_dtype=total.dtype, out=total)


def _check_targets(target: Tensor, vocabulary: int, ignore_index: int) -> None:
    wrong = target[(target < 0) | (target >= vocabulary)]
    if wrong.numel():
        raise ValueError(f"target must be in [0, {vocabulary}) or ignore_index {ignore_index}, got {int(wrong[0])}")


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
