"""Loss and gradient of a chunk of logits in one Triton kernel, and the loop over the chunks.

With the logits x of a row, the target t, the label smoothing ε and V entries in the vocabulary:

    loss = logsumexp(x) - (1 - ε) x[t] - ε / V · sum(x)
    gradient[v] = exp(x[v] - logsumexp(x)) - ε / V - (1 - ε) [v = t]

A program has one row. It reads the row once for the running maximum and the sums, and once more to write the gradient
where the logits were. Everything but the logits, their gradient and the matrix products is float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.linear_cross_entropy import reference, tuning

_LOG2_E = tl.constexpr(1.4426950408889634)
_LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def _load(
    row_pointer,  # (STRIDE,) of which VOCABULARY are logits
    bias_pointer,  # (VOCABULARY,) or None
    columns,  # (BLOCK,)
    VOCABULARY: tl.constexpr,
    STRIDE: tl.constexpr,
):
    """Return a block of a row of logits in float32, -inf beyond the vocabulary."""
    # Masked at the aligned end of the row, which keeps the loads 16 bytes wide whatever the vocabulary.
    logits = tl.load(row_pointer + columns, mask=columns < STRIDE, other=0.0).to(tl.float32)
    logits = tl.where(columns < VOCABULARY, logits, -float("inf"))
    if bias_pointer is not None:
        logits += tl.load(bias_pointer + columns, mask=columns < VOCABULARY, other=0.0).to(tl.float32)
    return logits


@triton.jit(do_not_specialize_on_alignment=["target_pointer", "losses_pointer"])
def _loss_and_gradient_kernel(
    logits_pointer,  # (rows, STRIDE): logits, then their gradient
    target_pointer,  # (rows,)
    bias_pointer,  # (VOCABULARY,) or None
    losses_pointer,  # (rows,) float32
    VOCABULARY: tl.constexpr,
    STRIDE: tl.constexpr,
    IGNORE_INDEX: tl.constexpr,
    LABEL_SMOOTHING: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the loss of a row and, if asked for, the gradient in place of its logits."""
    row = tl.program_id(0).to(tl.int64)
    row_pointer = logits_pointer + row * STRIDE
    target = tl.load(target_pointer + row)
    if target == IGNORE_INDEX:
        # Its logits are 0 already, as their gradient shall be.
        tl.store(losses_pointer + row, 0.0)
    else:
        # A wrong target cannot raise from here: it reads nothing and makes the loss and the gradient NaN. The logit at
        # the target is read now, because the reductions below are barriers between this and overwriting it.
        inside = (target >= 0) & (target < VOCABULARY)
        at_target = tl.load(row_pointer + target, mask=inside, other=0.0).to(tl.float32)
        if bias_pointer is not None:
            at_target += tl.load(bias_pointer + target, mask=inside, other=0.0).to(tl.float32)
        # Every lane keeps its own maximum and sum, so that nothing in the loop waits for other warps. The maxima begin
        # finite: -inf (a bias that forbids words) must add 0, not NaN.
        maxima = tl.full([BLOCK], _LOWEST, tl.float32)
        exponentials = tl.zeros([BLOCK], tl.float32)
        totals = tl.zeros([BLOCK], tl.float32)
        for start in range(0, VOCABULARY, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            logits = _load(row_pointer, bias_pointer, columns, VOCABULARY, STRIDE)
            # Of the old maximum and the new logit one has the exponential 1 and the other this one.
            smaller = tl.exp2(-tl.abs(logits - maxima) * _LOG2_E)
            exponentials = tl.where(logits > maxima, exponentials * smaller + 1.0, exponentials + smaller)
            maxima = tl.maximum(maxima, logits)
            if LABEL_SMOOTHING > 0.0:
                totals += tl.where(columns < VOCABULARY, logits, 0.0)
        maximum = tl.max(maxima, 0)
        exponentials *= tl.exp2((maxima - maximum) * _LOG2_E)
        log2_sum = tl.log2(tl.sum(exponentials, 0))
        log2_sum = tl.where(inside, log2_sum, float("nan"))
        # Differences to the maximum, never their sum: large logits would lose the digits of the logarithm.
        loss = log2_sum / _LOG2_E + (1.0 - LABEL_SMOOTHING) * (maximum - at_target)
        if LABEL_SMOOTHING > 0.0:
            loss += LABEL_SMOOTHING * (maximum - tl.sum(totals, 0) / VOCABULARY)
        tl.store(losses_pointer + row, loss)
        if GRADIENT:
            for start in range(0, VOCABULARY, BLOCK):
                columns = start + tl.arange(0, BLOCK)
                logits = _load(row_pointer, bias_pointer, columns, VOCABULARY, STRIDE)
                gradient = tl.exp2((logits - maximum) * _LOG2_E - log2_sum) - LABEL_SMOOTHING / VOCABULARY
                gradient -= tl.where(columns == target, 1.0 - LABEL_SMOOTHING, 0.0)
                tl.store(row_pointer + columns, gradient.to(logits_pointer.dtype.element_ty), mask=columns < STRIDE)


def loss_and_gradient(
    logits: Tensor,
    target: Tensor,
    bias: Tensor | None,
    losses: Tensor,
    label_smoothing: float,
    ignore_index: int,
    gradient: bool,
) -> None:
    """Write the loss of every row and, if ``gradient``, overwrite the logits with their gradient.

    Args:
        logits: (rows, vocabulary) without the bias, in rows of ``tuning.row_stride`` entries. Rows to be ignored are 0.
        target: (rows,) int32 or int64, contiguous. One outside the vocabulary that is not ``ignore_index`` makes the
            row's loss and gradient NaN.
        bias: (vocabulary,), contiguous, or None.
        losses: (rows,) float32, written.
        label_smoothing: In [0, 1).
        ignore_index: Rows with this target get 0 loss and are left alone.
        gradient: Whether the gradient is wanted.
    """
    rows, vocabulary = logits.shape
    entry = tuning.launch(vocabulary, logits.element_size())
    _loss_and_gradient_kernel[(rows,)](
        logits,
        target,
        bias,
        losses,
        VOCABULARY=vocabulary,
        STRIDE=logits.stride(0),
        IGNORE_INDEX=ignore_index,
        LABEL_SMOOTHING=label_smoothing,
        GRADIENT=gradient,
        BLOCK=entry.block,
        num_warps=entry.num_warps,
    )


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
    """Compute what :func:`kernels.linear_cross_entropy.reference.linear_cross_entropy` does, without a device sync.

    Padding stays in the matrix products, where the reference drops it: how much there is, only the device knows.
    """
    (vocabulary, width), tokens = weight.shape, target.numel()
    states, target = hidden.reshape(tokens, width), target.reshape(-1).contiguous()
    ignored = target == ignore_index
    matrix = weight.to(compute_dtype)
    bias = None if bias is None else bias.contiguous()
    losses = torch.empty(tokens, dtype=torch.float32, device=hidden.device)
    grad_hidden = hidden.new_empty((tokens, width) if wanted[0] else 0)
    grad_weight, grad_bias = reference.parameter_gradients(weight, bias, wanted)
    stride = tuning.row_stride(vocabulary, compute_dtype.itemsize)
    rows = tuning.chunk_rows(tokens, stride * compute_dtype.itemsize, hidden.device.type)
    buffer = torch.empty(rows, stride, dtype=compute_dtype, device=hidden.device)[:, :vocabulary]
    with torch.cuda.device_of(hidden):
        for start in range(0, tokens, rows):
            chunk = slice(start, start + rows)
            # What stands in a padded position, were it NaN, meets no gradient; and its logits are the gradient, 0.
            chunk_states = states[chunk].to(compute_dtype).masked_fill(ignored[chunk, None], 0.0)
            logits = torch.mm(chunk_states, matrix.T, out=buffer[: chunk_states.shape[0]])
            loss_and_gradient(logits, target[chunk], bias, losses[chunk], label_smoothing, ignore_index, any(wanted))
            if wanted[0]:
                grad_hidden[chunk] = torch.mm(logits, matrix)
            if wanted[1]:
                reference.add_product(grad_weight, logits, chunk_states)
            if wanted[2]:
                grad_bias += logits.sum(0, dtype=torch.float32)
    grad_hidden = grad_hidden.view(hidden.shape) if wanted[0] else grad_hidden
    return losses.sum(), tokens - ignored.sum(), grad_hidden, grad_weight, grad_bias
