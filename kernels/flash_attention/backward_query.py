"""The part of the attention backward that owns query rows: delta and dQ."""

import triton
import triton.language as tl

from kernels import random
from kernels.flash_attention.forward import CHANGING, add_bias, load_tile, locate


@triton.jit
def _query_blocks(
    grad_query,  # (BLOCK_M, BLOCK_D) float32
    query,  # (BLOCK_M, BLOCK_D)
    grad_output,  # (BLOCK_M, BLOCK_DV)
    lse,  # (BLOCK_M, 1)
    delta,  # (BLOCK_M, 1)
    key_pointer,
    value_pointer,
    bias_pointer,
    row_keys,  # (BLOCK_M, 1)
    queries,  # (BLOCK_M, 1) queries within the tile
    rows,  # (BLOCK_M, 1) their positions
    start,
    end,
    visible,
    query_length,
    shift,
    key_stride,
    value_stride,
    bias_stride_query,
    bias_stride_key,
    scale_log2,
    keep_scale,
    dropout_threshold,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    DROPOUT: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add to dQ the part of the keys from ``start`` to ``end``; unless ``MASKED``, every query sees all of them."""
    block = tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_D)
    value_depth = tl.arange(0, BLOCK_DV)
    unit = scale_log2 if bias_pointer is None else 1.0
    for first in range(start, end, BLOCK_N):
        columns = first + block
        offset = tl.cast(first, tl.int64)
        key = load_tile(
            key_pointer + offset * key_stride + block[:, None] * key_stride + depth[None, :],
            columns[:, None],
            visible,
            depth[None, :],
            HEAD_DIM,
            MASKED,
            HEAD_DIM != BLOCK_D,
        )
        value = load_tile(
            value_pointer + offset * value_stride + block[:, None] * value_stride + value_depth[None, :],
            columns[:, None],
            visible,
            value_depth[None, :],
            VALUE_DIM,
            MASKED,
            VALUE_DIM != BLOCK_DV,
        )
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION)
        if bias_pointer is not None:
            scores = add_bias(
                scores,
                bias_pointer
                + offset * bias_stride_key
                + queries * bias_stride_query
                + block[None, :] * bias_stride_key,
                (rows < query_length) & (columns[None, :] < visible) if MASKED else rows < query_length,
                scale_log2,
            )
        if MASKED:
            seen = columns[None, :] < visible
            if CAUSAL:
                seen &= columns[None, :] <= rows + shift
            scores = tl.where(seen, scores, float("-inf"))
        weights = tl.math.exp2(scores * unit - lse)
        grad_weights = tl.dot(grad_output, tl.trans(value), input_precision=PRECISION)
        if DROPOUT:
            keep = random.kept(row_keys, random.column_keys(columns)[None, :], dropout_threshold)
            grad_weights = tl.where(keep, grad_weights * keep_scale, 0.0)
        grad_scores = weights * (grad_weights - delta)
        grad_query = tl.dot(grad_scores.to(key.dtype), key, grad_query, input_precision=PRECISION)
    return grad_query


@triton.jit(do_not_specialize=CHANGING)
def attention_backward_query(
    query_pointer,  # as in the forward, down to seed_pointer
    key_pointer,
    value_pointer,
    bias_pointer,
    key_lengths_pointer,
    offsets_query_pointer,
    offsets_key_pointer,
    seed_pointer,
    output_pointer,  # (batch, heads, query_rows, VALUE_DIM)
    lse_pointer,  # (batch, heads, query_rows) float32, base 2
    grad_output_pointer,  # (batch, heads, query_rows, VALUE_DIM)
    delta_pointer,  # (batch, heads, query_rows) float32, written
    grad_query_pointer,  # (batch, heads, query_rows, HEAD_DIM), written, or None
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
    output_stride_batch,
    output_stride_head,
    output_stride,
    grad_output_stride_batch,
    grad_output_stride_head,
    grad_output_stride,
    grad_query_stride_batch,
    grad_query_stride_head,
    grad_query_stride,
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
    """One program computes delta and dQ of BLOCK_M query rows."""
    program = tl.program_id(0)
    tile = tiles - 1 - program % tiles if CAUSAL else program % tiles
    sequence = program // tiles // heads
    head = (program // tiles % heads).to(tl.int64)
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
    first_row = tile * BLOCK_M
    if first_row >= query_length:
        return
    shift = key_length - query_length
    block = tl.arange(0, BLOCK_M)
    depth = tl.arange(0, BLOCK_D)
    value_depth = tl.arange(0, BLOCK_DV)
    rows = first_row + block
    start = query_start + first_row
    in_rows = rows < query_length
    in_value = in_rows[:, None] & (value_depth[None, :] < VALUE_DIM)

    output_pointer += batch * output_stride_batch + head * output_stride_head + start * output_stride
    grad_output_pointer += (
        batch * grad_output_stride_batch + head * grad_output_stride_head + start * grad_output_stride
    )
    output = tl.load(output_pointer + block[:, None] * output_stride + value_depth[None, :], mask=in_value, other=0.0)
    grad_output = tl.load(
        grad_output_pointer + block[:, None] * grad_output_stride + value_depth[None, :], mask=in_value, other=0.0
    )
    delta = tl.sum(output.to(tl.float32) * grad_output.to(tl.float32), 1)
    row_offset = (batch * heads + head) * query_rows + start
    tl.store(delta_pointer + row_offset + block, delta, mask=in_rows)

    if grad_query_pointer is not None:
        lse = tl.load(lse_pointer + row_offset + block, mask=in_rows, other=float("inf"))
        query_pointer += batch * query_stride_batch + head * query_stride_head + start * query_stride
        query = load_tile(
            query_pointer + block[:, None] * query_stride + depth[None, :],
            rows[:, None],
            query_length,
            depth[None, :],
            HEAD_DIM,
            True,
            HEAD_DIM != BLOCK_D,
        )
        key_pointer += batch * key_stride_batch + head // GROUP * key_stride_head + key_start * key_stride
        value_pointer += batch * value_stride_batch + head // GROUP * value_stride_head + key_start * value_stride
        if bias_pointer is not None:
            bias_pointer += batch * bias_stride_batch + head * bias_stride_head + start * bias_stride_query
        row_keys = rows[:, None]
        if seed_pointer is not None:
            row_keys = random.row_keys(random.stream_key(seed_pointer, sequence * heads + head), row_keys)
        end = visible
        unmasked = visible
        if CAUSAL:
            end = tl.minimum(visible, first_row + BLOCK_M + shift)
            unmasked = tl.maximum(tl.minimum(visible, first_row + shift + 1), 0)
        unmasked = unmasked // BLOCK_N * BLOCK_N
        grad_query = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for masked in tl.static_range(2):
            grad_query = _query_blocks(
                grad_query,
                query,
                grad_output,
                lse[:, None],
                delta[:, None],
                key_pointer,
                value_pointer,
                bias_pointer,
                row_keys,
                block[:, None],
                rows[:, None],
                unmasked if masked else 0,
                end if masked else unmasked,
                visible,
                query_length,
                shift,
                key_stride,
                value_stride,
                bias_stride_query,
                bias_stride_key,
                scale_log2,
                keep_scale,
                dropout_threshold,
                HEAD_DIM,
                VALUE_DIM,
                BLOCK_D,
                BLOCK_DV,
                BLOCK_N,
                CAUSAL,
                seed_pointer is not None,
                masked == 1,
                PRECISION,
            )
        grad_query_pointer += (
            batch * grad_query_stride_batch + head * grad_query_stride_head + start * grad_query_stride
        )
        tl.store(
            grad_query_pointer + block[:, None] * grad_query_stride + depth[None, :],
            (grad_query * scale).to(grad_query_pointer.dtype.element_ty),
            mask=in_rows[:, None] & (depth[None, :] < HEAD_DIM),
        )
