"""Layer norm backward in Triton: the gradient of the rows in one pass, of weight and bias in two.

With n = (x − mean) · rstd and g = grad_normed · weight, the gradient of x is
rstd · (g − n · Σ(g · n) / width − Σg / width), without the last term for RMS norm, plus the gradient of the sum's other
users. A fixed number of programs stride over the rows. Each adds grad_normed · n and grad_normed of its rows in
registers and writes one row of partial sums; a second kernel adds these rows in a fixed order. Nothing is atomic, so
the same inputs give the same bits.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import random
from kernels.layer_norm import tuning
from kernels.layer_norm.allocation import backward_outputs
from kernels.layer_norm.forward import as_rows, dropped, load_parameter, load_rows


@triton.jit
def backward_of_tile(
    grad_normed_pointer,
    grad_summed_pointer,
    summed_pointer,
    statistics_pointer,
    grad_input_pointer,
    grad_residual_pointer,
    rows,
    columns,
    weight,
    key,
    count,
    grad_normed_stride,
    grad_summed_stride,
    summed_stride,
    threshold,
    scale,
    WIDTH: tl.constexpr,
    RMS: tl.constexpr,
):
    """Write the gradients of a tile of rows; return its normalised values and its gradient of the normed tensor.

    ``rows`` are (ROWS,) int64, ``columns`` (COLUMNS,), ``weight`` is (1, COLUMNS) float32 or 1, ``key`` that of the
    dropout mask or None. The others are those of :func:`layer_norm_backward_kernel`.
    """
    mask = (rows < count)[:, None] & (columns < WIDTH)[None, :]
    normalized = load_rows(summed_pointer, rows, columns, mask, summed_stride, WIDTH)
    grad_normed = load_rows(grad_normed_pointer, rows, columns, mask, grad_normed_stride, WIDTH)
    rstd = tl.load(statistics_pointer + rows, mask=rows < count, other=0.0)[:, None]
    if not RMS:
        normalized -= tl.load(statistics_pointer + count + rows, mask=rows < count, other=0.0)[:, None]
    normalized *= rstd
    if grad_input_pointer is not None or grad_residual_pointer is not None:
        # Masked elements of ``grad`` are 0, so what ``normalized`` holds there does not count.
        grad = grad_normed * weight
        projection = tl.sum(grad * normalized, axis=1)[:, None] / WIDTH
        if not RMS:
            grad -= tl.sum(grad, axis=1)[:, None] / WIDTH
        grad = (grad - normalized * projection) * rstd
        if grad_summed_pointer is not None:
            grad += load_rows(grad_summed_pointer, rows, columns, mask, grad_summed_stride, WIDTH)
        offsets = rows[:, None] * WIDTH + columns[None, :]
        if grad_residual_pointer is not None:
            tl.store(grad_residual_pointer + offsets, grad.to(grad_residual_pointer.dtype.element_ty), mask=mask)
        if grad_input_pointer is not None:
            if key is not None:
                grad = dropped(grad, key, rows, columns, threshold, scale)
            tl.store(grad_input_pointer + offsets, grad.to(grad_input_pointer.dtype.element_ty), mask=mask)
    return normalized, grad_normed


@triton.jit(do_not_specialize=["count", "threshold"])
def layer_norm_backward_kernel(
    grad_normed_pointer,
    grad_summed_pointer,
    summed_pointer,
    weight_pointer,
    statistics_pointer,
    seed_pointer,
    grad_input_pointer,
    grad_residual_pointer,
    sums_pointer,
    count,
    grad_normed_stride,
    grad_summed_stride,
    summed_stride,
    threshold,
    scale,
    WIDTH: tl.constexpr,
    RMS: tl.constexpr,
    SUMS_WEIGHT: tl.constexpr,
    SUMS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Go over tiles of ROWS rows, as many tiles apart as there are programs; one tile each without partial sums.

    With SPLITS > 1 the programs share out the columns as well, and only the partial sums are asked for.

    Args:
        grad_normed_pointer: (count, WIDTH), rows ``grad_normed_stride`` elements apart.
        grad_summed_pointer: (count, WIDTH), rows ``grad_summed_stride`` elements apart, or None.
        summed_pointer: (count, WIDTH), rows ``summed_stride`` elements apart: what was normalised.
        weight_pointer: (WIDTH,) or None.
        statistics_pointer: (2, count) or (1, count) float32, of the forward.
        seed_pointer: (1,) int64 or None: no dropout.
        grad_input_pointer: (count, WIDTH), written, or None.
        grad_residual_pointer: (count, WIDTH), written, or None.
        sums_pointer: (programs, SUMS_WEIGHT + SUMS_BIAS, WIDTH) float32, written.
        count: Number of rows.
        grad_normed_stride: None if rows lie back to back.
        grad_summed_stride: Likewise.
        summed_stride: Likewise.
        threshold: Of :func:`kernels.random.threshold`.
        scale: Of the elements that dropout keeps.
        WIDTH: Elements of a row.
        RMS: Whether the mean is taken as 0.
        SUMS_WEIGHT: Whether the weight's gradient is asked for.
        SUMS_BIAS: Likewise, the bias's.
        ROWS: Rows of a tile, a power of two.
        COLUMNS: WIDTH or the next power of two, or less with SPLITS.
        SPLITS: Programs side by side over the columns.
        STAGES: Tiles in flight, the one at work included.
    """
    program = tl.program_id(0) // SPLITS
    programs = tl.num_programs(0) // SPLITS
    columns = tl.program_id(0) % SPLITS * COLUMNS + tl.arange(0, COLUMNS)
    in_row = columns < WIDTH
    weight = 1.0 if weight_pointer is None else load_parameter(weight_pointer, columns, WIDTH)
    key = None if seed_pointer is None else random.stream_key(seed_pointer, tl.zeros([], tl.uint32))
    start = program.to(tl.int64) * ROWS
    if not SUMS_WEIGHT and not SUMS_BIAS:
        backward_of_tile(
            grad_normed_pointer,
            grad_summed_pointer,
            summed_pointer,
            statistics_pointer,
            grad_input_pointer,
            grad_residual_pointer,
            start + tl.arange(0, ROWS),
            columns,
            weight,
            key,
            count,
            grad_normed_stride,
            grad_summed_stride,
            summed_stride,
            threshold,
            scale,
            WIDTH,
            RMS,
        )
    else:
        weight_sums = tl.zeros([ROWS, COLUMNS], tl.float32)
        bias_sums = tl.zeros([ROWS, COLUMNS], tl.float32)
        for first in tl.range(start, count, programs * ROWS, num_stages=STAGES):
            normalized, grad_normed = backward_of_tile(
                grad_normed_pointer,
                grad_summed_pointer,
                summed_pointer,
                statistics_pointer,
                grad_input_pointer,
                grad_residual_pointer,
                first + tl.arange(0, ROWS),
                columns,
                weight,
                key,
                count,
                grad_normed_stride,
                grad_summed_stride,
                summed_stride,
                threshold,
                scale,
                WIDTH,
                RMS,
            )
            weight_sums += grad_normed * normalized
            bias_sums += grad_normed
        offsets = program * (SUMS_WEIGHT + SUMS_BIAS) * WIDTH + columns
        if SUMS_WEIGHT:
            tl.store(sums_pointer + offsets, tl.sum(weight_sums, axis=0), mask=in_row)
        if SUMS_BIAS:
            tl.store(sums_pointer + offsets + SUMS_WEIGHT * WIDTH, tl.sum(bias_sums, axis=0), mask=in_row)


@triton.jit(do_not_specialize=["count"])
def add_partial_sums_kernel(
    sums_pointer,
    first_pointer,
    second_pointer,
    count,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add the rows of one or two matrices of partial sums; a program does COLUMNS columns of one of them.

    Args:
        sums_pointer: (count, 1 or 2, WIDTH) float32.
        first_pointer: (WIDTH,), written: the sum of ``[:, 0]``.
        second_pointer: (WIDTH,), written: the sum of ``[:, 1]``, or None.
        count: Number of rows.
        WIDTH: Columns of each matrix.
        ROWS: Rows of a tile, a power of two.
        COLUMNS: Columns of a tile, a power of two.
    """
    blocks: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    stride: tl.constexpr = WIDTH if second_pointer is None else 2 * WIDTH
    which = tl.program_id(0) // blocks
    columns = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, count, ROWS):
        rows = first + tl.arange(0, ROWS)
        offsets = rows[:, None] * stride + which * WIDTH + columns[None, :]
        total += tl.load(sums_pointer + offsets, mask=(rows < count)[:, None] & (columns < WIDTH)[None, :], other=0.0)
    total = tl.sum(total, axis=0)
    if which == 0:
        tl.store(first_pointer + columns, total.to(first_pointer.dtype.element_ty), mask=columns < WIDTH)
    elif second_pointer is not None:
        tl.store(second_pointer + columns, total.to(second_pointer.dtype.element_ty), mask=columns < WIDTH)


def backward(
    grad_normed: Tensor,
    grad_summed: Tensor | None,
    summed: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    seed: Tensor | None,
    dropout_p: float,
    rms: bool,
    input_dtype: torch.dtype | None,
    residual_dtype: torch.dtype | None,
    weight_dtype: torch.dtype | None,
    bias_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the backward and the sum of its partial sums.

    Args:
        grad_normed: (..., width).
        grad_summed: Shaped like ``grad_normed``, or None.
        summed: Shaped like ``grad_normed``: what was normalised.
        weight: (width,) or None.
        statistics: Of the forward.
        seed: Of the forward.
        dropout_p: Of the forward.
        rms: Of the forward.
        input_dtype: Of the gradient of the input, None if nobody asks for it.
        residual_dtype: Likewise, of the residual. Without dropout it is the input's gradient but for the dtype.
        weight_dtype: Likewise, of the weight.
        bias_dtype: Likewise, of the bias.

    Returns:
        The gradients of input, residual, weight and bias, empty where nobody asks for them.
    """
    dtypes = (input_dtype, residual_dtype, weight_dtype, bias_dtype)
    gradients = backward_outputs(summed, *dtypes)
    grad_input, grad_residual, grad_weight, grad_bias = (
        None if dtype is None else gradient for gradient, dtype in zip(gradients, dtypes, strict=True)
    )
    if summed.numel():
        launch = functools.partial(
            _launch, grad_normed, grad_summed, summed, weight, statistics, seed, dropout_p=dropout_p, rms=rms
        )
        wanted = (grad_weight is not None, grad_bias is not None)
        if summed.shape[-1] > tuning.WIDEST_WITH_SUMS and any(wanted):
            if grad_input is not None or grad_residual is not None:
                launch(grad_input, grad_residual, False, False)
            grad_input = grad_residual = None
        sums = launch(grad_input, grad_residual, *wanted)
        _add_partial_sums(sums, [gradient for gradient in (grad_weight, grad_bias) if gradient is not None])
    return gradients


def _launch(
    grad_normed: Tensor,
    grad_summed: Tensor | None,
    summed: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    seed: Tensor | None,
    grad_input: Tensor | None,
    grad_residual: Tensor | None,
    sums_weight: bool,
    sums_bias: bool,
    dropout_p: float,
    rms: bool,
) -> Tensor:
    """Launch :func:`layer_norm_backward_kernel`; return the partial sums (programs, sums_weight + sums_bias, width)."""
    width = summed.shape[-1]
    count = summed.numel() // width
    columns = tuning.block_width(width)
    if grad_input is None and grad_residual is None:
        # Nothing is summed along a row, so the columns need not stay together.
        columns = min(columns, tuning.COLUMNS_OF_SPLIT)
    splits = triton.cdiv(width, columns)
    entry = tuning.backward_entry(columns, max(summed.dtype.itemsize, grad_normed.dtype.itemsize))
    programs = triton.cdiv(count, entry.rows)
    kinds = sums_weight + sums_bias
    if kinds:
        programs = min(programs, max(1, _multiprocessors(summed.device) * entry.programs // splits))
    sums = torch.empty((programs if kinds else 0, kinds, width), dtype=torch.float32, device=summed.device)
    grad_normed_rows, grad_normed_stride = as_rows(grad_normed)
    grad_summed_rows, grad_summed_stride = (None, None) if grad_summed is None else as_rows(grad_summed)
    summed_rows, summed_stride = as_rows(summed)
    layer_norm_backward_kernel[(programs * splits,)](
        grad_normed_rows,
        grad_summed_rows,
        summed_rows,
        None if weight is None else weight.contiguous(),
        statistics,
        seed,
        grad_input,
        grad_residual,
        sums,
        count,
        grad_normed_stride,
        grad_summed_stride,
        summed_stride,
        random.threshold(dropout_p),
        1.0 / (1.0 - dropout_p),
        WIDTH=width,
        RMS=rms,
        SUMS_WEIGHT=sums_weight,
        SUMS_BIAS=sums_bias,
        ROWS=entry.rows,
        COLUMNS=columns,
        SPLITS=splits,
        STAGES=entry.num_stages,
        num_warps=entry.num_warps,
        maxnreg=entry.registers,
    )
    return sums


def _add_partial_sums(sums: Tensor, gradients: list[Tensor]) -> None:
    """Write the sums over the programs, (programs, len(gradients), width), into the gradients."""
    if not gradients:
        return
    blocks = triton.cdiv(sums.shape[-1], tuning.SUM.columns)
    add_partial_sums_kernel[(blocks * len(gradients),)](
        sums,
        gradients[0],
        gradients[1] if len(gradients) == 2 else None,
        sums.shape[0],
        WIDTH=sums.shape[-1],
        ROWS=tuning.SUM.rows,
        COLUMNS=tuning.SUM.columns,
        num_warps=tuning.SUM.num_warps,
    )


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors a device has, counting any but a CUDA device as one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
