"""Attention forward in one pass over the keys (Dao 2023, FlashAttention-2, algorithm 1).

For each query row, over blocks of keys, with the softmax in base 2 and ``a = scale · log2(e)``::

    scores  = a · query · keyᵀ + log2(e) · bias
    maximum = max(maximum, max(scores)),   weights = 2^(scores - maximum)
    sum     = sum · 2^(old maximum - maximum) + sum(weights)
    output  = output · 2^(old maximum - maximum) + dropout(weights) · value

and in the end ``output / sum`` and ``lse = maximum + log2(sum)``, +inf for a row without keys, so that every
``2^(scores - lse)`` of the backward is 0 there. Without a bias, ``a`` is applied in the exponent, one fused
multiply-add instead of two operations per score.

Dense tensors are (batch, heads, length, head_dim) with any strides but the last; packed ones are (1, heads, tokens,
head_dim) with the offsets of their sequences. Rows are addressed with 64 bits, within a tile with 32.
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels import random
from kernels.flash_attention import tuning
from kernels.flash_attention.problem import Problem

LOG2_E = tl.constexpr(1.4426950408889634)

# Sizes that change from batch to batch: specialising on them would compile again and again.
CHANGING = ["query_rows", "key_rows", "max_query", "max_key", "tiles"]


@triton.jit
def segment(
    offsets_pointer,  # (batch + 1,) int32 or int64
    sequence,
    rows,  # tokens in all
    max_rows,  # the longest sequence that the grid covers
):
    """Return where a packed sequence begins and how many rows it has, never outside the tensor whatever the offsets."""
    start = tl.minimum(tl.maximum(tl.load(offsets_pointer + sequence).to(tl.int64), 0), rows)
    end = tl.minimum(tl.maximum(tl.load(offsets_pointer + sequence + 1).to(tl.int64), start), rows)
    return start, tl.minimum(end - start, max_rows).to(tl.int32)


@triton.jit
def locate(
    sequence,  # index in the batch
    key_lengths_pointer,  # (batch,) int32 or int64, or None
    offsets_query_pointer,  # (batch + 1,), or None for dense tensors
    offsets_key_pointer,
    query_rows,
    key_rows,
    max_query,
    max_key,
):
    """Return the first row of a sequence's queries and keys, its lengths, its visible keys, and its index in memory."""
    if offsets_query_pointer is not None:
        query_start, query_length = segment(offsets_query_pointer, sequence, query_rows, max_query)
        key_start, key_length = segment(offsets_key_pointer, sequence, key_rows, max_key)
        batch = sequence.to(tl.int64) * 0
    else:
        batch = sequence.to(tl.int64)
        query_start = batch * 0
        key_start = batch * 0
        query_length = query_rows
        key_length = key_rows
    visible = key_length
    if key_lengths_pointer is not None:
        visible = tl.minimum(tl.maximum(tl.load(key_lengths_pointer + sequence).to(tl.int64), 0), key_length)
        visible = visible.to(tl.int32)
    return batch, query_start, query_length, key_start, key_length, visible


@triton.jit
def load_tile(
    pointers,
    rows,  # with a trailing or leading axis of 1, as the tile is laid out
    row_end,
    columns,  # with the other axis of 1
    COLUMNS: tl.constexpr,
    CHECK_ROWS: tl.constexpr,
    CHECK_COLUMNS: tl.constexpr,
):
    """Load a tile; what lies outside is 0."""
    if CHECK_ROWS and CHECK_COLUMNS:
        return tl.load(pointers, mask=(rows < row_end) & (columns < COLUMNS), other=0.0)
    elif CHECK_ROWS:
        return tl.load(pointers, mask=rows < row_end, other=0.0)
    elif CHECK_COLUMNS:
        return tl.load(pointers, mask=columns < COLUMNS, other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def add_bias(
    scores,  # raw products
    pointers,  # to the bias of each
    mask,
    scale_log2,
):
    """Return biased scores in units of log2."""
    bias = tl.load(pointers, mask=mask, other=0.0)
    return scores * scale_log2 + bias.to(tl.float32) * LOG2_E


@triton.jit
def _attend(
    output,  # (BLOCK_M, BLOCK_DV) float32, not yet divided by the sum
    row_max,  # (BLOCK_M,) float32, in units of log2
    row_sum,  # (BLOCK_M,) float32
    query,  # (BLOCK_M, BLOCK_D)
    key_pointer,  # at the sequence's first key
    value_pointer,
    bias_pointer,
    row_keys,  # (BLOCK_M, 1) uint32
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
    """Go on over the keys from ``start`` to ``end``; unless ``MASKED``, every query sees all of them."""
    block = tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_D)
    value_depth = tl.arange(0, BLOCK_DV)
    unit = scale_log2 if bias_pointer is None else 1.0
    for first in range(start, end, BLOCK_N):
        columns = first + block
        offset = tl.cast(first, tl.int64)
        key_t = load_tile(
            key_pointer + offset * key_stride + block[None, :] * key_stride + depth[:, None],
            columns[None, :],
            visible,
            depth[:, None],
            HEAD_DIM,
            MASKED,
            HEAD_DIM != BLOCK_D,
        )
        scores = tl.dot(query, key_t, input_precision=PRECISION)
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
        new_max = tl.maximum(row_max, tl.max(scores, 1) * unit)
        # A row that has seen no key yet has the maximum -inf, and -inf - -inf would be NaN.
        pivot = tl.where(new_max == float("-inf"), 0.0, new_max)
        weights = tl.math.exp2(scores * unit - pivot[:, None])
        decay = tl.math.exp2(row_max - pivot)
        row_sum = row_sum * decay + tl.sum(weights, 1)
        row_max = new_max
        if DROPOUT:
            weights = tl.where(
                random.kept(row_keys, random.column_keys(columns)[None, :], dropout_threshold), weights, 0.0
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
        output = tl.dot(weights.to(value.dtype), value, output * decay[:, None], input_precision=PRECISION)
    return output, row_max, row_sum


@triton.jit(do_not_specialize=CHANGING)
def _attention_forward(
    query_pointer,  # (batch, heads, query_rows, HEAD_DIM)
    key_pointer,  # (batch, heads / GROUP, key_rows, HEAD_DIM)
    value_pointer,  # (batch, heads / GROUP, key_rows, VALUE_DIM)
    bias_pointer,  # broadcast to (batch, heads, query_rows, key_rows) by strides of 0, or None
    key_lengths_pointer,  # (batch,) or None
    offsets_query_pointer,  # (batch + 1,) or None
    offsets_key_pointer,  # (batch + 1,) or None
    seed_pointer,  # (1,) int64 or None
    output_pointer,  # (batch, heads, query_rows, VALUE_DIM)
    lse_pointer,  # (batch, heads, query_rows) float32, contiguous, base 2
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
    """One program computes BLOCK_M query rows of one head of one sequence."""
    program = tl.program_id(0)
    # Under a causal mask the last rows have the most to do: they begin first.
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
    output = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    for masked in tl.static_range(2):
        output, row_max, row_sum = _attend(
            output,
            row_max,
            row_sum,
            query,
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

    # A query without keys: its output is 0 and stays 0.
    blind = row_sum == 0.0
    row_sum = tl.where(blind, 1.0, row_sum)
    output *= (keep_scale / row_sum)[:, None]
    output_pointer += batch * output_stride_batch + head * output_stride_head + start * output_stride
    tl.store(
        output_pointer + block[:, None] * output_stride + value_depth[None, :],
        output.to(output_pointer.dtype.element_ty),
        mask=(rows[:, None] < query_length) & (value_depth[None, :] < VALUE_DIM),
    )
    lse = tl.where(blind, float("inf"), row_max + tl.math.log2(row_sum))
    tl.store(lse_pointer + (batch * heads + head) * query_rows + start + block, lse, mask=rows < query_length)


def attention_forward(problem: Problem, output: Tensor, lse: Tensor) -> None:
    """Launch the forward kernel.

    Args:
        problem: The inputs.
        output: (batch, heads, query_rows, value_head_dim), written.
        lse: (batch, heads, query_rows) float32, contiguous, written: log-sum-exp of the scores in base 2, +inf for a
            query without keys.
    """
    tile = tuning.tile("forward", problem.shape)
    tiles = triton.cdiv(problem.max_query, tile.block_queries)
    _attention_forward[(tiles * problem.heads * problem.sequences,)](
        output_pointer=output,
        lse_pointer=lse,
        **problem.strides("output", output),
        **problem.arguments,
        tiles=tiles,
        **tile.options(),
    )
