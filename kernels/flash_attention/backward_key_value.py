"""The part of the attention backward that owns key rows: dK and dV, over all query heads of a group.

It computes ``Sᵀ = K Qᵀ`` and ``dPᵀ = V dOᵀ`` directly: Triton 3.4 to 3.7.0 miscompile a product with a transposed
product on Hopper, and where they do not, the transposition costs registers.
"""

import triton
import triton.language as tl

from kernels import random
from kernels.flash_attention.forward import CHANGING, add_bias, load_tile, locate


@triton.jit
def _key_blocks(
    grad_key,  # (BLOCK_N, BLOCK_D) float32
    grad_value,  # (BLOCK_N, BLOCK_DV) float32
    key,  # (BLOCK_N, BLOCK_D)
    value,  # (BLOCK_N, BLOCK_DV)
    query_pointer,
    grad_output_pointer,
    lse_pointer,
    delta_pointer,
    bias_pointer,
    stream,  # uint32
    keys,  # (BLOCK_N, 1) keys within the tile
    columns,  # (BLOCK_N, 1) their positions
    column_keys,  # (BLOCK_N, 1)
    start,
    end,
    visible,
    query_length,
    shift,
    query_stride,
    grad_output_stride,
    bias_stride_query,
    bias_stride_key,
    scale_log2,
    keep_scale,
    dropout_threshold,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    DROPOUT: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add to dK and dV the part of the queries from ``start`` to ``end``; ``MASKED`` for the causal diagonal.

    Keys beyond the visible ones are loaded as 0 and their rows are not stored, so they need no mask; queries beyond the
    last have an lse of +inf, so their weights are 0.
    """
    block = tl.arange(0, BLOCK_M)
    depth = tl.arange(0, BLOCK_D)
    value_depth = tl.arange(0, BLOCK_DV)
    unit = scale_log2 if bias_pointer is None else 1.0
    for first in range(start, end, BLOCK_M):
        rows = first + block
        offset = tl.cast(first, tl.int64)
        query = load_tile(
            query_pointer + offset * query_stride + block[:, None] * query_stride + depth[None, :],
            rows[:, None],
            query_length,
            depth[None, :],
            HEAD_DIM,
            True,
            HEAD_DIM != BLOCK_D,
        )
        lse = tl.load(lse_pointer + rows, mask=rows < query_length, other=float("inf"))
        scores_t = tl.dot(key, tl.trans(query), input_precision=PRECISION)
        if bias_pointer is not None:
            scores_t = add_bias(
                scores_t,
                bias_pointer + offset * bias_stride_query + block[None, :] * bias_stride_query + keys * bias_stride_key,
                (rows[None, :] < query_length) & (columns < visible),
                scale_log2,
            )
        if MASKED:
            scores_t = tl.where(columns <= rows[None, :] + shift, scores_t, float("-inf"))
        weights_t = tl.math.exp2(scores_t * unit - lse[None, :])
        grad_output = load_tile(
            grad_output_pointer
            + offset * grad_output_stride
            + block[:, None] * grad_output_stride
            + value_depth[None, :],
            rows[:, None],
            query_length,
            value_depth[None, :],
            VALUE_DIM,
            True,
            VALUE_DIM != BLOCK_DV,
        )
        dropped_t = weights_t
        grad_weights_t = tl.dot(value, tl.trans(grad_output), input_precision=PRECISION)
        if DROPOUT:
            keep = random.kept(random.row_keys(stream, rows)[None, :], column_keys, dropout_threshold)
            dropped_t = tl.where(keep, weights_t, 0.0)
            grad_weights_t = tl.where(keep, grad_weights_t * keep_scale, 0.0)
        grad_value = tl.dot(dropped_t.to(grad_output.dtype), grad_output, grad_value, input_precision=PRECISION)
        delta = tl.load(delta_pointer + rows, mask=rows < query_length, other=0.0)
        grad_scores_t = weights_t * (grad_weights_t - delta[None, :])
        grad_key = tl.dot(grad_scores_t.to(query.dtype), query, grad_key, input_precision=PRECISION)
    return grad_key, grad_value


@triton.jit(do_not_specialize=CHANGING)
def attention_backward_key_value(
    query_pointer,  # as in the forward, down to seed_pointer
    key_pointer,
    value_pointer,
    bias_pointer,
    key_lengths_pointer,
    offsets_query_pointer,
    offsets_key_pointer,
    seed_pointer,
    lse_pointer,  # (batch, heads, query_rows) float32, base 2
    grad_output_pointer,  # (batch, heads, query_rows, VALUE_DIM)
    delta_pointer,  # (batch, heads, query_rows) float32
    grad_key_pointer,  # (batch, heads / GROUP, key_rows, HEAD_DIM), written
    grad_value_pointer,  # (batch, heads / GROUP, key_rows, VALUE_DIM), written
    query_stride_batch,
    query_stride_head,
    query_stride,
    key_stride_batch,
    key_stride_head,
    key_stride,
    value_stride_batch,
    value_stride_head,
    value_stride,
    bias_stride_batch,
    bias_stride_head,
    bias_stride_query,
    bias_stride_key,
    grad_output_stride_batch,
    grad_output_stride_head,
    grad_output_stride,
    grad_key_stride_batch,
    grad_key_stride_head,
    grad_key_stride,
    grad_value_stride_batch,
    grad_value_stride_head,
    grad_value_stride,
    heads,
    query_rows,
    key_rows,
    max_query,
    max_key,
    tiles,
    scale,
    scale_log2,
    keep_scale,
    dropout_threshold,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program computes dK and dV of BLOCK_N keys of one key head, over all query heads of its group."""
    program = tl.program_id(0)
    tile = program % tiles
    key_heads = heads // GROUP
    sequence = program // tiles // key_heads
    key_head = (program // tiles % key_heads).to(tl.int64)
    batch, query_start, query_length, key_start, key_length, visible = locate(
        sequence,
        key_lengths_pointer,
        offsets_query_pointer,
        offsets_key_pointer,
        query_rows,
        key_rows,
        max_query,
        max_key,
    )
    first_column = tile * BLOCK_N
    if first_column >= key_length:
        return
    shift = key_length - query_length
    block = tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_D)
    value_depth = tl.arange(0, BLOCK_DV)
    columns = first_column + block
    start = key_start + first_column

    key_pointer += batch * key_stride_batch + key_head * key_stride_head + start * key_stride
    key = load_tile(
        key_pointer + block[:, None] * key_stride + depth[None, :],
        columns[:, None],
        visible,
        depth[None, :],
        HEAD_DIM,
        True,
        HEAD_DIM != BLOCK_D,
    )
    value_pointer += batch * value_stride_batch + key_head * value_stride_head + start * value_stride
    value = load_tile(
        value_pointer + block[:, None] * value_stride + value_depth[None, :],
        columns[:, None],
        visible,
        value_depth[None, :],
        VALUE_DIM,
        True,
        VALUE_DIM != BLOCK_DV,
    )
    # The first query that sees the tile's first key, and the first that sees them all.
    end = tl.where(first_column < visible, query_length, 0)
    begin = end * 0
    unmasked = end * 0
    if CAUSAL:
        begin = tl.minimum(tl.maximum(first_column - shift, 0) // BLOCK_M * BLOCK_M, end)
        unmasked = tl.maximum(first_column + BLOCK_N - 1 - shift, 0)
        unmasked = tl.minimum((unmasked + BLOCK_M - 1) // BLOCK_M * BLOCK_M, end)
    grad_key = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    grad_value = tl.zeros([BLOCK_N, BLOCK_DV], tl.float32)
    column_keys = random.column_keys(columns)[:, None]
    for member in range(GROUP):
        head = key_head * GROUP + member
        stream = tl.zeros([], tl.uint32)
        if seed_pointer is not None:
            stream = random.stream_key(seed_pointer, sequence * heads + head)
        row_offset = (batch * heads + head) * query_rows + query_start
        bias_of_head = bias_pointer
        if bias_pointer is not None:
            bias_of_head += batch * bias_stride_batch + head * bias_stride_head
            bias_of_head += first_column.to(tl.int64) * bias_stride_key
        for masked in tl.static_range(2 if CAUSAL else 1):
            grad_key, grad_value = _key_blocks(
                grad_key,
                grad_value,
                key,
                value,
                query_pointer + batch * query_stride_batch + head * query_stride_head + query_start * query_stride,
                grad_output_pointer
                + batch * grad_output_stride_batch
                + head * grad_output_stride_head
                + query_start * grad_output_stride,
                lse_pointer + row_offset,
                delta_pointer + row_offset,
                bias_of_head,
                stream,
                block[:, None],
                columns[:, None],
                column_keys,
                begin if masked else unmasked,
                unmasked if masked else end,
                visible,
                query_length,
                shift,
                query_stride,
                grad_output_stride,
                bias_stride_query,
                bias_stride_key,
                scale_log2,
                keep_scale,
                dropout_threshold,
                HEAD_DIM,
                VALUE_DIM,
                BLOCK_D,
                BLOCK_DV,
                BLOCK_M,
                seed_pointer is not None,
                masked == 1,
                PRECISION,
            )

    in_columns = columns[:, None] < key_length
    seen = columns[:, None] < visible
    grad_key_pointer += batch * grad_key_stride_batch + key_head * grad_key_stride_head + start * grad_key_stride
    tl.store(
        grad_key_pointer + block[:, None] * grad_key_stride + depth[None, :],
        tl.where(seen, grad_key * scale, 0.0).to(grad_key_pointer.dtype.element_ty),
        mask=in_columns & (depth[None, :] < HEAD_DIM),
    )
    grad_value_pointer += (
        batch * grad_value_stride_batch + key_head * grad_value_stride_head + start * grad_value_stride
    )
    tl.store(
        grad_value_pointer + block[:, None] * grad_value_stride + value_depth[None, :],
        tl.where(seen, grad_value * keep_scale, 0.0).to(grad_value_pointer.dtype.element_ty),
        mask=in_columns & (value_depth[None, :] < VALUE_DIM),
    )
