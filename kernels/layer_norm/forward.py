"""Layer norm forward in Triton: residual addition with dropout, statistics and normalisation in one pass.

A program holds a tile of whole rows in registers: x = dropout(input) + residual, mean = Σx / n,
rstd = 1 / √(Σ(x − mean)² / n + eps), normed = (x − mean) · rstd · weight + bias, everything in float32. The variance
comes from the centred values, so a large mean costs no digits. RMS norm (Zhang and Sennrich 2019) is the same with a
mean of 0.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import random
from kernels.layer_norm import tuning
from kernels.layer_norm.allocation import forward_outputs


@triton.jit
def load_rows(pointer, rows, columns, mask, stride, WIDTH: tl.constexpr):
    """Load a tile of a (rows, WIDTH) matrix in float32; a ``stride`` of None says that its rows lie back to back."""
    if stride is None:
        offsets = rows[:, None] * WIDTH + columns[None, :]
    else:
        offsets = rows[:, None] * stride + columns[None, :]
    return tl.load(pointer + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_parameter(pointer, columns, WIDTH: tl.constexpr):
    """Load a (WIDTH,) vector in float32 as a row of a tile."""
    return tl.load(pointer + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)[None, :]


@triton.jit
def dropped(x, key, rows, columns, threshold, scale):
    """Zero elements of a tile and scale the others: the same elements in forward and backward."""
    row_keys = random.row_keys(key, rows)[:, None]
    column_keys = random.column_keys(columns)[None, :]
    return tl.where(random.kept(row_keys, column_keys, threshold), x * scale, 0.0)


@triton.jit(do_not_specialize=["count", "threshold"])
def layer_norm_kernel(
    input_pointer,
    residual_pointer,
    weight_pointer,
    bias_pointer,
    seed_pointer,
    normed_pointer,
    summed_pointer,
    statistics_pointer,
    count,
    input_stride,
    residual_stride,
    eps,
    threshold,
    scale,
    WIDTH: tl.constexpr,
    RMS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Normalise ROWS rows per program.

    Args:
        input_pointer: (count, WIDTH), rows ``input_stride`` elements apart.
        residual_pointer: (count, WIDTH), rows ``residual_stride`` elements apart, or None: nothing is added.
        weight_pointer: (WIDTH,) or None.
        bias_pointer: (WIDTH,) or None.
        seed_pointer: (1,) int64 or None: no dropout.
        normed_pointer: (count, WIDTH), written.
        summed_pointer: (count, WIDTH), written, or None without a residual.
        statistics_pointer: (2, count) float32, written: 1 / standard deviation, mean; (1, count) without the mean if
            RMS.
        count: Number of rows.
        input_stride: None if rows lie back to back.
        residual_stride: Likewise.
        eps: Added to the variance.
        threshold: Of :func:`kernels.random.threshold`.
        scale: Of the elements that dropout keeps.
        WIDTH: Elements of a row.
        RMS: Whether the mean is taken as 0.
        ROWS: Rows of a tile, a power of two.
        COLUMNS: WIDTH or the next power of two.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    in_row = columns < WIDTH
    mask = (rows < count)[:, None] & in_row[None, :]
    x = load_rows(input_pointer, rows, columns, mask, input_stride, WIDTH)
    # Everything is asked for before the first reduction waits.
    if weight_pointer is not None:
        weight = load_parameter(weight_pointer, columns, WIDTH)
    if bias_pointer is not None:
        bias = load_parameter(bias_pointer, columns, WIDTH)
    if residual_pointer is not None:
        residual = load_rows(residual_pointer, rows, columns, mask, residual_stride, WIDTH)
        if seed_pointer is not None:
            key = random.stream_key(seed_pointer, tl.zeros([], tl.uint32))
            x = dropped(x, key, rows, columns, threshold, scale)
        x += residual
        summed = x.to(summed_pointer.dtype.element_ty)
        tl.store(summed_pointer + rows[:, None] * WIDTH + columns[None, :], summed, mask=mask)
        # What is normalised is what the caller gets, and what the backward reads.
        x = summed.to(tl.float32)
    if not RMS:
        mean = tl.sum(x, axis=1) / WIDTH
        tl.store(statistics_pointer + count + rows, mean, mask=rows < count)
        x = tl.where(in_row[None, :], x - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(x * x, axis=1) / WIDTH + eps)
    tl.store(statistics_pointer + rows, rstd, mask=rows < count)
    x *= rstd[:, None]
    if weight_pointer is not None:
        x *= weight
    if bias_pointer is not None:
        x += bias
    normed = x.to(normed_pointer.dtype.element_ty)
    tl.store(normed_pointer + rows[:, None] * WIDTH + columns[None, :], normed, mask=mask)


def as_rows(tensor: Tensor) -> tuple[Tensor, int | None]:
    """Return a tensor as (rows, width) with its row stride, None if rows lie back to back; copies only where it must.

    The stride of back-to-back rows is a constant of the kernel, so that every width is loaded as wide as it allows.
    """
    width = tensor.shape[-1]
    rows = tensor.reshape(-1, width)
    if rows.stride(1) != 1 and width > 1:
        rows = rows.contiguous()
    return rows, None if rows.stride(0) == width else rows.stride(0)


def forward(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    eps: float,
    dropout_p: float,
    rms: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the forward.

    Args:
        input: (..., width).
        residual: Shaped like ``input``, or None.
        weight: (width,) or None.
        bias: (width,) or None.
        seed: (1,) int64, or None without dropout.
        eps: Added to the variance.
        dropout_p: Probability of dropping an element of ``input``.
        rms: Whether the mean is taken as 0.
        dtype: Of the normed tensor.

    Returns:
        ``(normed, summed, statistics)``: the first two shaped like ``input``, ``summed`` empty without a residual;
        statistics (2, rows) float32, 1 / standard deviation and mean, the mean missing for RMS norm.
    """
    width = input.shape[-1]
    normed, summed, statistics = forward_outputs(input, residual, rms, dtype)
    count = statistics.shape[1]
    if count == 0:
        return normed, summed, statistics
    input_rows, input_stride = as_rows(input)
    residual_rows, residual_stride = (None, None) if residual is None else as_rows(residual)
    entry = tuning.forward_entry(width, summed.dtype.itemsize)
    layer_norm_kernel[(triton.cdiv(count, entry.rows),)](
        input_rows,
        residual_rows,
        None if weight is None else weight.contiguous(),
        None if bias is None else bias.contiguous(),
        seed,
        normed,
        None if residual is None else summed,
        statistics,
        count,
        input_stride,
        residual_stride,
        eps,
        random.threshold(dropout_p),
        1.0 / (1.0 - dropout_p),
        WIDTH=width,
        RMS=rms,
        ROWS=entry.rows,
        COLUMNS=tuning.block_width(width),
        num_warps=entry.num_warps,
    )
    return normed, summed, statistics
