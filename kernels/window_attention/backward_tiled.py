"""The backward in three kernels, from the forward's log-sum-exp: query rows, key rows, tiles of the bias."""

import triton
import triton.language as tl
from torch import Tensor

from kernels import random
from kernels.window_attention.backward_window import store_gradient, through_norms
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
def _weights_and_gradient(
    products,  # of queries and keys, as all that follows broadcasts
    grad_weights,  # products of the gradient of the output and the values
    queries,  # tokens
    keys,  # tokens
    lse,  # of the queries
    delta,
    bias,  # expanded table, or None
    seed_pointer,
    stream,  # of the dropout mask
    scale,
    keep_scale,
    dropout_threshold,
    window,
    extent,
    GEOMETRY: tl.constexpr,
    TILE: tl.constexpr,
):
    """Return the weights after dropout, and the gradient of the scores."""
    scores = scores_of(products, queries, keys, scale, bias, window, extent, GEOMETRY, TILE)
    weights = tl.math.exp2(scores - lse)
    dropped = weights
    if seed_pointer is not None:
        row_keys = random.row_keys(random.stream_key(seed_pointer, stream), queries)
        kept = random.kept(row_keys, random.column_keys(keys), dropout_threshold)
        dropped = tl.where(kept, weights * keep_scale, 0.0)
        grad_weights = tl.where(kept, grad_weights * keep_scale, 0.0)
    return dropped, weights * (grad_weights - delta)


@triton.jit(do_not_specialize=CHANGING)
def window_attention_backward_query(
    qkv_pointer,  # as in the forward, down to lse_pointer
    bias_pointer,
    padding_pointer,
    logit_scale_pointer,
    seed_pointer,
    output_pointer,
    lse_pointer,
    grad_output_pointer,  # (batch, height, width, channels), contiguous
    delta_pointer,  # (windows, heads, tokens) float32, written
    grad_qkv_pointer,  # (batch, height, width, 3 · channels), contiguous, of which the queries are written, or None
    grad_logit_scale_pointer,  # (programs per head, heads) float32, written, or None
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program computes delta, the row sums of dO ∘ O, and dQ for BLOCK_M queries of one head."""
    TOKENS: tl.constexpr = GEOMETRY[0] * GEOMETRY[1]
    WHOLE: tl.constexpr = TILE == TOKENS and not GEOMETRY[5]
    COSINE: tl.constexpr = logit_scale_pointer is not None
    extent = (height, width, grid_rows, grid_columns)
    strides = (stride_batch, stride_row, stride_column)
    head, block, first, last = share(heads, TILE // BLOCK_M, windows, windows_each)
    queries = block * BLOCK_M + tl.arange(0, BLOCK_M)
    column = head * HEAD_DIM
    if COSINE:
        scale = tl.load(logit_scale_pointer + head)
    grad_logit_scale = tl.zeros([BLOCK_M, 1], tl.float32)
    for window in range(first, last):
        offsets, pixels, there = locate(queries, window, extent, strides, GEOMETRY)
        rows = pixels * channels
        grad_output = load_tokens(grad_output_pointer, column, rows, there, None, HEAD_DIM, BLOCK_D, WHOLE)
        output = load_tokens(output_pointer, column, rows, there, None, HEAD_DIM, BLOCK_D, WHOLE)
        delta = tl.sum(output.to(tl.float32) * grad_output.to(tl.float32), 1)
        statistics = (tl.cast(window, tl.int64) * heads + head) * TOKENS + queries
        tl.store(delta_pointer + statistics, delta, mask=queries < TOKENS)
        if grad_qkv_pointer is not None or grad_logit_scale_pointer is not None:
            lse = tl.load(lse_pointer + statistics, mask=queries < TOKENS, other=float("inf"))
            query = load_tokens(qkv_pointer, column, offsets, there, padding_pointer, HEAD_DIM, BLOCK_D, WHOLE)
            if COSINE:
                query, query_norms = normalized(query)
            gradient = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
            for start in range(0, TILE, BLOCK_N):
                keys = start + tl.arange(0, BLOCK_N)
                places, _pixels, held = locate(keys, window, extent, strides, GEOMETRY)
                key = load_tokens(
                    qkv_pointer, column + channels, places, held, padding_pointer, HEAD_DIM, BLOCK_D, WHOLE
                )
                value = load_tokens(
                    qkv_pointer, column + 2 * channels, places, held, padding_pointer, HEAD_DIM, BLOCK_D, WHOLE
                )
                if COSINE:
                    key, _key_norms = normalized(key)
                bias = None
                if bias_pointer is not None:
                    bias = tl.load(bias_pointer + (head * TILE + queries[:, None]) * TILE + keys[None, :])
                _dropped, grad_scores = _weights_and_gradient(
                    tl.dot(query, tl.trans(key), input_precision=PRECISION),
                    tl.dot(grad_output, tl.trans(value), input_precision=PRECISION),
                    queries[:, None],
                    keys[None, :],
                    lse[:, None],
                    delta[:, None],
                    bias,
                    seed_pointer,
                    window * heads + head,
                    scale,
                    keep_scale,
                    dropout_threshold,
                    window,
                    extent,
                    GEOMETRY,
                    TILE,
                )
                gradient = tl.dot(grad_scores.to(key.dtype), key, gradient, input_precision=PRECISION)
            if COSINE:
                query = load_tokens(qkv_pointer, column, offsets, there, padding_pointer, HEAD_DIM, BLOCK_D, WHOLE)
                gradient, along = through_norms(gradient, query, query_norms[:, None], 1)
                grad_logit_scale += along
            if grad_qkv_pointer is not None:
                store_tokens(grad_qkv_pointer, column, 3 * rows, there, gradient * scale, HEAD_DIM, BLOCK_D)
    if grad_logit_scale_pointer is not None:
        tl.store(grad_logit_scale_pointer + tl.program_id(0), tl.sum(grad_logit_scale))


@triton.jit(do_not_specialize=CHANGING)
def window_attention_backward_key_value(
    qkv_pointer,  # as in the forward, down to seed_pointer
    bias_pointer,
    padding_pointer,
    logit_scale_pointer,
    seed_pointer,
    lse_pointer,  # (windows, heads, tokens) float32, as the next
    delta_pointer,
    grad_output_pointer,  # (batch, height, width, channels), contiguous
    grad_qkv_pointer,  # (batch, height, width, 3 · channels), contiguous, of which keys and values are written, or None
    grad_padding_pointer,  # (windows · blocks, 2 · channels) float32, written: of keys and values, or None
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program computes dK and dV for BLOCK_N keys of one head; its tiles have keys as rows."""
    TOKENS: tl.constexpr = GEOMETRY[0] * GEOMETRY[1]
    WHOLE: tl.constexpr = TILE == TOKENS and not GEOMETRY[5]
    COSINE: tl.constexpr = logit_scale_pointer is not None
    extent = (height, width, grid_rows, grid_columns)
    strides = (stride_batch, stride_row, stride_column)
    head, block, first, last = share(heads, TILE // BLOCK_N, windows, windows_each)
    keys = block * BLOCK_N + tl.arange(0, BLOCK_N)
    column = head * HEAD_DIM
    if COSINE:
        scale = tl.load(logit_scale_pointer + head)
    for window in range(first, last):
        places, pixels, held = locate(keys, window, extent, strides, GEOMETRY)
        key = load_tokens(qkv_pointer, column + channels, places, held, padding_pointer, HEAD_DIM, BLOCK_D, WHOLE)
        value = load_tokens(qkv_pointer, column + 2 * channels, places, held, padding_pointer, HEAD_DIM, BLOCK_D, WHOLE)
        if COSINE:
            key, key_norms = normalized(key)
        grad_key = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        grad_value = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        for start in range(0, TILE, BLOCK_M):
            queries = start + tl.arange(0, BLOCK_M)
            offsets, rows, there = locate(queries, window, extent, strides, GEOMETRY)
            query = load_tokens(qkv_pointer, column, offsets, there, padding_pointer, HEAD_DIM, BLOCK_D, WHOLE)
            grad_output = load_tokens(
                grad_output_pointer, column, rows * channels, there, None, HEAD_DIM, BLOCK_D, WHOLE
            )
            statistics = (tl.cast(window, tl.int64) * heads + head) * TOKENS + queries
            lse = tl.load(lse_pointer + statistics, mask=queries < TOKENS, other=float("inf"))
            delta = tl.load(delta_pointer + statistics, mask=queries < TOKENS, other=0.0)
            if COSINE:
                query, _query_norms = normalized(query)
            bias = None
            if bias_pointer is not None:
                bias = tl.load(bias_pointer + (head * TILE + queries[None, :]) * TILE + keys[:, None])
            dropped, grad_scores = _weights_and_gradient(
                tl.dot(key, tl.trans(query), input_precision=PRECISION),
                tl.dot(value, tl.trans(grad_output), input_precision=PRECISION),
                queries[None, :],
                keys[:, None],
                lse[None, :],
                delta[None, :],
                bias,
                seed_pointer,
                window * heads + head,
                scale,
                keep_scale,
                dropout_threshold,
                window,
                extent,
                GEOMETRY,
                TILE,
            )
            grad_value = tl.dot(dropped.to(grad_output.dtype), grad_output, grad_value, input_precision=PRECISION)
            grad_key = tl.dot(grad_scores.to(query.dtype), query, grad_key, input_precision=PRECISION)
        if COSINE:
            key = load_tokens(qkv_pointer, column + channels, places, held, padding_pointer, HEAD_DIM, BLOCK_D, WHOLE)
            grad_key, _along = through_norms(grad_key, key, key_norms[:, None], 1)
        for part in tl.static_range(2):
            store_gradient(
                grad_qkv_pointer,
                grad_padding_pointer,
                grad_value if part else grad_key * scale,
                column + (part + 1) * channels,
                channels,
                pixels,
                window * (TILE // BLOCK_N) + block,
                keys,
                held,
                TOKENS,
                HEAD_DIM,
                BLOCK_D,
            )


@triton.jit(do_not_specialize=CHANGING)
def window_attention_backward_bias(
    qkv_pointer,  # as in the forward, down to seed_pointer
    bias_pointer,
    padding_pointer,
    logit_scale_pointer,
    seed_pointer,
    lse_pointer,  # (windows, heads, tokens) float32, as the next
    delta_pointer,
    grad_output_pointer,  # (batch, height, width, channels), contiguous
    grad_bias_pointer,  # (splits, heads, TILE, TILE) float32, written
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program sums dS of BLOCK_M queries and BLOCK_N keys of one head over ``windows_each`` windows."""
    TOKENS: tl.constexpr = GEOMETRY[0] * GEOMETRY[1]
    WHOLE: tl.constexpr = TILE == TOKENS and not GEOMETRY[5]
    COSINE: tl.constexpr = logit_scale_pointer is not None
    BLOCKS_N: tl.constexpr = TILE // BLOCK_N
    BLOCKS: tl.constexpr = TILE // BLOCK_M * BLOCKS_N
    extent = (height, width, grid_rows, grid_columns)
    strides = (stride_batch, stride_row, stride_column)
    head, block, first, last = share(heads, BLOCKS, windows, windows_each)
    split = tl.program_id(0) // heads // BLOCKS
    queries = block // BLOCKS_N * BLOCK_M + tl.arange(0, BLOCK_M)
    keys = block % BLOCKS_N * BLOCK_N + tl.arange(0, BLOCK_N)
    column = head * HEAD_DIM
    if COSINE:
        scale = tl.load(logit_scale_pointer + head)
    bias = tl.load(bias_pointer + (head * TILE + queries[:, None]) * TILE + keys[None, :])
    grad_bias = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for window in range(first, last):
        offsets, rows, there = locate(queries, window, extent, strides, GEOMETRY)
        places, _pixels, held = locate(keys, window, extent, strides, GEOMETRY)
        query = load_tokens(qkv_pointer, column, offsets, there, padding_pointer, HEAD_DIM, BLOCK_D, WHOLE)
        key = load_tokens(qkv_pointer, column + channels, places, held, padding_pointer, HEAD_DIM, BLOCK_D, WHOLE)
        if COSINE:
            query, _query_norms = normalized(query)
            key, _key_norms = normalized(key)
        value = load_tokens(qkv_pointer, column + 2 * channels, places, held, padding_pointer, HEAD_DIM, BLOCK_D, WHOLE)
        grad_output = load_tokens(grad_output_pointer, column, rows * channels, there, None, HEAD_DIM, BLOCK_D, WHOLE)
        statistics = (tl.cast(window, tl.int64) * heads + head) * TOKENS + queries
        lse = tl.load(lse_pointer + statistics, mask=queries < TOKENS, other=float("inf"))
        delta = tl.load(delta_pointer + statistics, mask=queries < TOKENS, other=0.0)
        _dropped, grad_scores = _weights_and_gradient(
            tl.dot(query, tl.trans(key), input_precision=PRECISION),
            tl.dot(grad_output, tl.trans(value), input_precision=PRECISION),
            queries[:, None],
            keys[None, :],
            lse[:, None],
            delta[:, None],
            bias,
            seed_pointer,
            window * heads + head,
            scale,
            keep_scale,
            dropout_threshold,
            window,
            extent,
            GEOMETRY,
            TILE,
        )
        grad_bias += grad_scores
    pairs = ((split * heads + head).to(tl.int64) * TILE + queries[:, None]) * TILE + keys[None, :]
    tl.store(grad_bias_pointer + pairs, grad_bias)


def launch(
    problem: Problem,
    output: Tensor,
    lse: Tensor,
    grad_output: Tensor,
    grad_qkv: Tensor | None,
    table: bool,
    padding: bool,
    logit_scale: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Launch the kernels.

    Args:
        problem: The inputs.
        output: The forward's, (batch, height, width, channels).
        lse: The forward's, (windows, heads, tokens) float32.
        grad_output: Shaped like ``output``, contiguous.
        grad_qkv: (batch, height, width, 3 · channels), contiguous, written, or None if it is not wanted.
        table: Whether the gradient of the table is wanted.
        padding: Whether that of what padded tokens hold is.
        logit_scale: Whether that of the logit scale is.

    Returns:
        The partial sums of those three, as of the backward in one kernel, the second of windows and blocks.
    """
    heads, tile = problem.heads, problem.tile
    made = {"bias_pointer": expanded_table(problem), "delta_pointer": problem.partial(*lse.shape)}
    shared = problem.arguments | made | {"lse_pointer": lse, "grad_output_pointer": grad_output}
    launch = problem.launch("backward_query")
    logit_scales = problem.partial(launch.rows, heads) if logit_scale else None
    window_attention_backward_query[launch.grid](
        output_pointer=output,
        grad_qkv_pointer=grad_qkv,
        grad_logit_scale_pointer=logit_scales,
        **shared,
        **launch.options,
    )
    fills = biases = None
    if grad_qkv is not None or padding:
        launch = problem.launch("backward_key_value")
        blocks = launch.rows // launch.splits
        fills = problem.partial(problem.windows * blocks, 2 * problem.channels) if padding else None
        window_attention_backward_key_value[launch.grid](
            grad_qkv_pointer=grad_qkv, grad_padding_pointer=fills, **shared, **launch.options
        )
    if table:
        launch = problem.launch("backward_bias")
        biases = problem.partial(launch.splits, heads, tile, tile)
        window_attention_backward_bias[launch.grid](grad_bias_pointer=biases, **shared, **launch.options)
    return biases, fills, logit_scales
