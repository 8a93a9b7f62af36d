"""The backward of windows that are one tile: everything in one pass, from the map and the gradient of the output alone.

The scores are laid out with keys as rows, so that dK and dV are products of a tile with what was loaded, and dQᵀ is a
product of what was loaded with a tile: nothing that a product made is transposed.
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels import random
from kernels.window_attention.forward import (
    CHANGING,
    expanded_table,
    load_tokens,
    locate,
    normalized,
    scores_of,
    share,
    store_tokens,
)
from kernels.window_attention.problem import Problem


@triton.jit
def through_norms(
    gradient,  # of normalised rows, float32
    rows,  # before that, laid out alike
    norms,  # inverse, broadcasting to them
    AXIS: tl.constexpr,
):
    """Return the gradient of the rows, and the products of normalised rows with their gradients along ``AXIS``."""
    unit = rows.to(tl.float32) * norms
    along = tl.sum(unit * gradient, AXIS, keep_dims=True)
    return (gradient - unit * along) * norms, along


@triton.jit
def load_transposed(
    pointer,
    column,
    offsets,  # (N,) int64
    there,  # (N,)
    fill_pointer,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Return what ``load_tokens`` returns as (BLOCK_D, N)."""
    depth = tl.arange(0, BLOCK_D)[:, None]
    pointers = pointer + column + offsets[None, :] + depth
    if WHOLE and HEAD_DIM == BLOCK_D:
        tile = tl.load(pointers)
    else:
        tile = tl.load(pointers, mask=there[None, :] & (depth < HEAD_DIM), other=0.0)
        if fill_pointer is not None:
            fill = tl.load(fill_pointer + column + depth, mask=depth < HEAD_DIM, other=0.0)
            tile = tl.where(there[None, :], tile, fill)
    return tile


@triton.jit
def store_gradient(
    grad_qkv_pointer,  # or None
    grad_padding_pointer,  # (rows, 2 · channels) float32, or None
    gradient,  # (N, BLOCK_D), of keys or values
    column,  # where they begin in a token
    channels,
    pixels,  # (N,) int64
    row,  # of the sums over padded tokens
    tokens,  # (N,)
    there,  # (N,)
    TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write a gradient to the tokens that the map has, and its sum over the others: kept, it would take registers."""
    if grad_qkv_pointer is not None:
        store_tokens(grad_qkv_pointer, column, pixels * (3 * channels), there, gradient, HEAD_DIM, BLOCK_D)
    if grad_padding_pointer is not None:
        padded = (tokens < TOKENS) & (there == 0)
        depth = tl.arange(0, BLOCK_D)
        sums = grad_padding_pointer + (tl.cast(row, tl.int64) * 2 - 1) * channels + column + depth
        tl.store(sums, tl.sum(tl.where(padded[:, None], gradient, 0.0), 0), mask=depth < HEAD_DIM)


@triton.jit(do_not_specialize=CHANGING)
def window_attention_backward_window(
    qkv_pointer,  # as in the forward, down to seed_pointer
    bias_pointer,
    padding_pointer,
    logit_scale_pointer,
    seed_pointer,
    grad_output_pointer,  # (batch, height, width, channels), contiguous
    grad_qkv_pointer,  # (batch, height, width, 3 · channels), contiguous, written, or None
    grad_bias_pointer,  # (splits, heads, TILE, TILE) float32, written, or None
    grad_padding_pointer,  # (windows, 2 · channels) float32, written: of keys and values, or None
    grad_logit_scale_pointer,  # (splits, heads) float32, written, or None
    stride_batch,
    stride_row,
    stride_column,
    channels,
    height,
    width,
    grid_rows,
    grid_columns,
    heads,
    windows,
    windows_each,
    scale,
    keep_scale,
    dropout_threshold,
    GEOMETRY: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program computes every gradient of one head in ``windows_each`` windows."""
    TOKENS: tl.constexpr = GEOMETRY[0] * GEOMETRY[1]
    WHOLE: tl.constexpr = TILE == TOKENS and not GEOMETRY[5]
    COSINE: tl.constexpr = logit_scale_pointer is not None
    extent = (height, width, grid_rows, grid_columns)
    strides = (stride_batch, stride_row, stride_column)
    head, _block, first, last = share(heads, 1, windows, windows_each)
    split = tl.program_id(0) // heads
    tokens = tl.arange(0, TILE)
    depth = tl.arange(0, BLOCK_D)
    column = head * HEAD_DIM
    if COSINE:
        scale = tl.load(logit_scale_pointer + head)
    bias = None
    if bias_pointer is not None:
        bias = tl.load(bias_pointer + (head * TILE + tokens[None, :]) * TILE + tokens[:, None])
    grad_bias = tl.zeros([TILE, TILE], tl.float32)
    grad_logit_scale = tl.zeros([TILE, 1], tl.float32)
    for window in range(first, last):
        offsets, pixels, there = locate(tokens, window, extent, strides, GEOMETRY)
        query = load_tokens(qkv_pointer, column, offsets, there, padding_pointer, HEAD_DIM, BLOCK_D, WHOLE)
        key = load_tokens(qkv_pointer, column + channels, offsets, there, padding_pointer, HEAD_DIM, BLOCK_D, WHOLE)
        value = load_tokens(
            qkv_pointer, column + 2 * channels, offsets, there, padding_pointer, HEAD_DIM, BLOCK_D, WHOLE
        )
        # Nobody reads the output of a padded token: its gradient is 0, and with it that of its query.
        grad_output = load_tokens(grad_output_pointer, column, pixels * channels, there, None, HEAD_DIM, BLOCK_D, WHOLE)
        if COSINE:
            query, query_norms = normalized(query)
            key, key_norms = normalized(key)
        scores = scores_of(
            tl.dot(key, tl.trans(query), input_precision=PRECISION),
            tokens[None, :],
            tokens[:, None],
            scale,
            bias,
            window,
            extent,
            GEOMETRY,
            TILE,
        )
        weights = tl.math.exp2(scores - tl.max(scores, 0)[None, :])
        weights *= (1.0 / tl.sum(weights, 0))[None, :]
        grad_weights = tl.dot(value, tl.trans(grad_output), input_precision=PRECISION)
        dropped = weights
        if seed_pointer is not None:
            row_keys = random.row_keys(random.stream_key(seed_pointer, window * heads + head), tokens[None, :])
            kept = random.kept(row_keys, random.column_keys(tokens)[:, None], dropout_threshold)
            dropped = tl.where(kept, weights * keep_scale, 0.0)
            grad_weights = tl.where(kept, grad_weights * keep_scale, 0.0)
        grad_value = tl.dot(dropped.to(grad_output.dtype), grad_output, input_precision=PRECISION)
        store_gradient(
            grad_qkv_pointer,
            grad_padding_pointer,
            grad_value,
            column + 2 * channels,
            channels,
            pixels,
            window,
            tokens,
            there,
            TOKENS,
            HEAD_DIM,
            BLOCK_D,
        )
        delta = tl.sum(weights * grad_weights, 0)
        grad_scores = weights * (grad_weights - delta[None, :])
        if grad_bias_pointer is not None:
            grad_bias += grad_scores
        rounded = grad_scores.to(query.dtype)
        grad_key = tl.dot(rounded, query, input_precision=PRECISION)
        # Keys and queries are read again, from a cache: held since the scores, they take registers, and a transposed
        # tile takes them in every warp.
        if COSINE:
            key = load_tokens(qkv_pointer, column + channels, offsets, there, padding_pointer, HEAD_DIM, BLOCK_D, WHOLE)
            grad_key, along = through_norms(grad_key, key, key_norms[:, None], 1)
            grad_logit_scale += along
        store_gradient(
            grad_qkv_pointer,
            grad_padding_pointer,
            grad_key * scale,
            column + channels,
            channels,
            pixels,
            window,
            tokens,
            there,
            TOKENS,
            HEAD_DIM,
            BLOCK_D,
        )
        if grad_qkv_pointer is not None:
            key_t = load_transposed(
                qkv_pointer, column + channels, offsets, there, padding_pointer, HEAD_DIM, BLOCK_D, WHOLE
            )
            if COSINE:
                key_t = (key_t.to(tl.float32) * key_norms[None, :]).to(key.dtype)
            grad_query_t = tl.dot(key_t, rounded, input_precision=PRECISION)
            if COSINE:
                query_t = load_transposed(
                    qkv_pointer, column, offsets, there, padding_pointer, HEAD_DIM, BLOCK_D, WHOLE
                )
                grad_query_t, _along = through_norms(grad_query_t, query_t, query_norms[None, :], 0)
            tl.store(
                grad_qkv_pointer + column + (pixels * (3 * channels))[None, :] + depth[:, None],
                (grad_query_t * scale).to(grad_qkv_pointer.dtype.element_ty),
                mask=there[None, :] & (depth[:, None] < HEAD_DIM),
            )

    if grad_bias_pointer is not None:
        rows = ((split * heads + head).to(tl.int64) * TILE + tokens[None, :]) * TILE + tokens[:, None]
        tl.store(grad_bias_pointer + rows, grad_bias)
    if grad_logit_scale_pointer is not None:
        tl.store(grad_logit_scale_pointer + tl.program_id(0), tl.sum(grad_logit_scale))


def launch(
    problem: Problem, grad_output: Tensor, grad_qkv: Tensor | None, table: bool, padding: bool, logit_scale: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Launch the kernel.

    Args:
        problem: The inputs; the windows are one tile.
        grad_output: (batch, height, width, channels), contiguous.
        grad_qkv: (batch, height, width, 3 · channels), contiguous, written, or None if it is not wanted.
        table: Whether the gradient of the table is wanted.
        padding: Whether that of what padded tokens hold is.
        logit_scale: Whether that of the logit scale is.

    Returns:
        The partial sums of those three, over their first dimension, None where not wanted: (splits, heads, tile, tile),
        (windows, 2 · channels) and (splits, heads), float32.
    """
    launch = problem.launch("backward_window")
    partials = (
        problem.partial(launch.splits, problem.heads, problem.tile, problem.tile) if table else None,
        problem.partial(problem.windows, 2 * problem.channels) if padding else None,
        problem.partial(launch.rows, problem.heads) if logit_scale else None,
    )
    window_attention_backward_window[launch.grid](
        bias_pointer=expanded_table(problem),
        grad_output_pointer=grad_output,
        grad_qkv_pointer=grad_qkv,
        grad_bias_pointer=partials[0],
        grad_padding_pointer=partials[1],
        grad_logit_scale_pointer=partials[2],
        **problem.arguments,
        **launch.options,
    )
    return partials
