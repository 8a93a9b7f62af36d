"""The part of the attention backward that owns tiles of the bias.

A program recomputes dS of its tile for every (batch, head, query tile) that shares it and adds them in registers,
always in the same order: no (batch, heads, queries, keys) tensor and nothing atomic.
"""

import triton
import triton.language as tl

from kernels import random
from kernels.flash_attention.forward import CHANGING, add_bias, load_tile, locate


@triton.jit
def _grad_scores(
    query_pointer,  # at the (batch, head)
    key_pointer,
    value_pointer,
    bias_pointer,
    grad_output_pointer,
    lse_pointer,
    delta_pointer,
    stream,  # uint32
    rows,  # (BLOCK_M,) positions of the queries
    columns,  # (BLOCK_N,) positions of the keys
    visible,
    query_length,
    shift,
    query_stride,
    key_stride,
    value_stride,
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
    CAUSAL: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return dS of one tile, (BLOCK_M, BLOCK_N) float32, 0 where a query does not see a key."""
    depth = tl.arange(0, BLOCK_D)
    value_depth = tl.arange(0, BLOCK_DV)
    long_rows = rows.to(tl.int64)[:, None]
    long_columns = columns.to(tl.int64)[:, None]
    in_rows = rows < query_length
    query = load_tile(
        query_pointer + long_rows * query_stride + depth[None, :],
        rows[:, None],
        query_length,
        depth[None, :],
        HEAD_DIM,
        True,
        HEAD_DIM != BLOCK_D,
    )
    key = load_tile(
        key_pointer + long_columns * key_stride + depth[None, :],
        columns[:, None],
        visible,
        depth[None, :],
        HEAD_DIM,
        True,
        HEAD_DIM != BLOCK_D,
    )
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION)
    seen = in_rows[:, None] & (columns < visible)[None, :]
    if CAUSAL:
        seen &= columns[None, :] <= rows[:, None] + shift
    scores = add_bias(
        scores,
        bias_pointer + long_rows * bias_stride_query + columns.to(tl.int64)[None, :] * bias_stride_key,
        seen,
        scale_log2,
    )
    lse = tl.load(lse_pointer + rows, mask=in_rows, other=float("inf"))
    weights = tl.math.exp2(tl.where(seen, scores, float("-inf")) - lse[:, None])
    grad_output = load_tile(
        grad_output_pointer + long_rows * grad_output_stride + value_depth[None, :],
        rows[:, None],
        query_length,
        value_depth[None, :],
        VALUE_DIM,
        True,
        VALUE_DIM != BLOCK_DV,
    )
    value = load_tile(
        value_pointer + long_columns * value_stride + value_depth[None, :],
        columns[:, None],
        visible,
        value_depth[None, :],
        VALUE_DIM,
        True,
        VALUE_DIM != BLOCK_DV,
    )
    grad_weights = tl.dot(grad_output, tl.trans(value), input_precision=PRECISION)
    if DROPOUT:
        keep = random.kept(
            random.row_keys(stream, rows)[:, None], random.column_keys(columns)[None, :], dropout_threshold
        )
        grad_weights = tl.where(keep, grad_weights * keep_scale, 0.0)
    delta = tl.load(delta_pointer + rows, mask=in_rows, other=0.0)
    return weights * (grad_weights - delta[:, None])


@triton.jit(do_not_specialize=CHANGING + ["members", "members_each"])
def attention_backward_bias(
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
    partial_pointer,  # (splits, bias batch, bias heads, query_rows or 1, key_rows), written
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
    heads,
    query_rows,
    key_rows,
    max_query,
    max_key,
    tiles,  # of keys
    row_tiles,  # of queries
    bias_batches,  # 1 if the bias broadcasts over the batch
    bias_heads,  # 1 if it broadcasts over the heads
    members,  # tiles of dS that add up to one tile of dB
    members_each,  # of them for one split
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
    ALL_ROWS: tl.constexpr,  # whether the bias broadcasts over the queries
    PRECISION: tl.constexpr,
):
    """One program adds up one split of one tile of dB."""
    program = tl.program_id(0)
    column_tile = program % tiles
    rest = program // tiles
    bias_row_tile = rest * 0
    if not ALL_ROWS:
        bias_row_tile = rest % row_tiles
        rest = rest // row_tiles
    bias_head = rest % bias_heads
    rest = rest // bias_heads
    bias_batch = rest % bias_batches
    split = rest // bias_batches
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    block = tl.arange(0, BLOCK_M)
    # How many heads, and query tiles, share a tile of the bias.
    head_members = tl.where(bias_heads == 1, heads, 1)
    row_members = row_tiles if ALL_ROWS else 1

    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for member in range(split * members_each, tl.minimum((split + 1) * members_each, members)):
        row_tile = bias_row_tile + member % row_members
        head = (bias_head + member // row_members % head_members).to(tl.int64)
        sequence = bias_batch + member // row_members // head_members
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
        shift = key_length - query_length
        stream = tl.zeros([], tl.uint32)
        if seed_pointer is not None:
            stream = random.stream_key(seed_pointer, sequence * heads + head)
        row_offset = (batch * heads + head) * query_rows
        total += _grad_scores(
            query_pointer + batch * query_stride_batch + head * query_stride_head,
            key_pointer + batch * key_stride_batch + head // GROUP * key_stride_head,
            value_pointer + batch * value_stride_batch + head // GROUP * value_stride_head,
            bias_pointer + batch * bias_stride_batch + head * bias_stride_head,
            grad_output_pointer + batch * grad_output_stride_batch + head * grad_output_stride_head,
            lse_pointer + row_offset,
            delta_pointer + row_offset,
            stream,
            row_tile * BLOCK_M + block,
            columns,
            visible,
            query_length,
            shift,
            query_stride,
            key_stride,
            value_stride,
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
            CAUSAL,
            seed_pointer is not None,
            PRECISION,
        )

    plane = (split.to(tl.int64) * bias_batches + bias_batch) * bias_heads + bias_head
    in_columns = columns < key_rows
    if ALL_ROWS:
        tl.store(
            partial_pointer + plane * key_rows + columns,
            tl.sum(total, 0).to(partial_pointer.dtype.element_ty),
            mask=in_columns,
        )
    else:
        rows = bias_row_tile * BLOCK_M + block
        pointers = partial_pointer + (plane * query_rows + rows)[:, None] * key_rows + columns[None, :]
        tl.store(
            pointers,
            total.to(partial_pointer.dtype.element_ty),
            mask=(rows < query_rows)[:, None] & in_columns[None, :],
        )
