"""Shifted-window attention forward: the map is read where it lies, and the result written where it belongs.

For the tokens of one window and one head, with the softmax in base 2::

    scores = log2(e) · (scale · query · keyᵀ + table at the offset of query and key - 100 across the seam of a shift)
    output = dropout(softmax(scores)) · value

Token ``t`` of a window is in its row ``t // window width`` and column ``t % window width``. Where that is in the map
is index arithmetic, and so is the seam: the last windows of a shifted axis hold ``shift`` rows or columns from the
other side of the map. Cosine attention (Swin V2) divides queries and keys by their norms as they are read.

A program owns BLOCK_M queries of one head and goes over its share of the windows, so that it reads a small window's
part of the expanded table once. Two tuples describe the windows: GEOMETRY, which a network fixes, is (window height,
window width, rows of shift, columns of shift, whether the map is rolled before it is padded, whether it is padded at
all), and ``extent``, which a batch may change, is (height, width, rows of windows, columns of windows).
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels import random
from kernels.window_attention import tuning
from kernels.window_attention.geometry import MASKED
from kernels.window_attention.problem import Problem

LOG2_E = tl.constexpr(1.4426950408889634)
SEAM = tl.constexpr(MASKED * 1.4426950408889634)
# The least divisor of torch.nn.functional.normalize.
LEAST_NORM = tl.constexpr(1e-12)

# Sizes that change from batch to batch: specialising on them would compile again and again.
CHANGING = ["height", "width", "grid_rows", "grid_columns", "heads", "windows", "windows_each"]


@triton.jit
def share(
    heads,
    blocks,
    windows,
    windows_each,
):
    """Return a program's head, its block of tokens, and the first window of its share and the one after the last.

    The heads of a window are neighbours in the grid: 32 channels are 64 bytes, half of a line that two heads share.
    """
    program = tl.program_id(0)
    first = program // heads // blocks * windows_each
    return program % heads, program // heads % blocks, first, tl.minimum(first + windows_each, windows)


@triton.jit
def _source(
    position,  # in the shifted and padded map
    size,
    padded,
    SHIFT: tl.constexpr,
    ROLL_FIRST: tl.constexpr,
):
    """Return the row or column of the map, and whether the map has it."""
    rolled = position + SHIFT
    if ROLL_FIRST:
        return rolled % size, position < size
    else:
        rolled = tl.where(rolled < padded, rolled, rolled - padded)
        return rolled, rolled < size


@triton.jit
def locate(
    tokens,  # (N,) within the window
    window,
    extent,
    strides,  # of the batch, rows and columns of qkv
    GEOMETRY: tl.constexpr,
):
    """Return where a window's tokens begin in qkv, their indices in the map, both int64, and which the map has."""
    height, width, grid_rows, grid_columns = extent
    WINDOW_H: tl.constexpr = GEOMETRY[0]
    WINDOW_W: tl.constexpr = GEOMETRY[1]
    row = window // grid_columns % grid_rows * WINDOW_H + tokens // WINDOW_W
    column = window % grid_columns * WINDOW_W + tokens % WINDOW_W
    row, in_rows = _source(row, height, grid_rows * WINDOW_H, GEOMETRY[2], GEOMETRY[4])
    column, in_columns = _source(column, width, grid_columns * WINDOW_W, GEOMETRY[3], GEOMETRY[4])
    there = tokens < WINDOW_H * WINDOW_W
    if GEOMETRY[5]:
        there &= in_rows & in_columns
    image = tl.cast(window // (grid_rows * grid_columns), tl.int64)
    row = row.to(tl.int64)
    column = column.to(tl.int64)
    offsets = image * strides[0] + row * strides[1] + column * strides[2]
    return offsets, (image * height + row) * width + column, there


@triton.jit
def load_tokens(
    pointer,
    column,  # where a head's queries, keys or values begin in a token
    offsets,  # (N,) int64
    there,  # (N,)
    fill_pointer,  # what a token holds that is not there, or None for 0
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Return (N, BLOCK_D); ``WHOLE`` if all tokens are there."""
    depth = tl.arange(0, BLOCK_D)[None, :]
    pointers = pointer + column + offsets[:, None] + depth
    if not WHOLE:
        tile = tl.load(pointers, mask=there[:, None] & (depth < HEAD_DIM), other=0.0)
        if fill_pointer is not None:
            fill = tl.load(fill_pointer + column + depth, mask=depth < HEAD_DIM, other=0.0)
            tile = tl.where(there[:, None], tile, fill)
    elif HEAD_DIM != BLOCK_D:
        tile = tl.load(pointers, mask=depth < HEAD_DIM, other=0.0)
    else:
        tile = tl.load(pointers)
    return tile


@triton.jit
def store_tokens(
    pointer,
    column,
    offsets,  # (N,) int64
    there,  # (N,)
    tile,  # (N, BLOCK_D)
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write (N, BLOCK_D) to the tokens that are there."""
    depth = tl.arange(0, BLOCK_D)[None, :]
    pointers = pointer + column + offsets[:, None] + depth
    tl.store(pointers, tile.to(pointer.dtype.element_ty), mask=there[:, None] & (depth < HEAD_DIM))


@triton.jit
def normalized(
    tile,  # (N, BLOCK_D)
):
    """Return rows divided by their norms, in their dtype, and one over the norms, (N,) float32."""
    rows = tile.to(tl.float32)
    norms = 1.0 / tl.maximum(tl.sqrt(tl.sum(rows * rows, 1)), LEAST_NORM)
    return (rows * norms[:, None]).to(tile.dtype), norms


@triton.jit
def scores_of(
    products,  # of queries and keys, as the next two broadcast
    queries,  # tokens
    keys,  # tokens
    scale,
    bias,  # expanded table, or None
    window,
    extent,
    GEOMETRY: tl.constexpr,
    TILE: tl.constexpr,
):
    """Return scores in units of log2, -inf at keys that the window does not have."""
    WINDOW_H: tl.constexpr = GEOMETRY[0]
    WINDOW_W: tl.constexpr = GEOMETRY[1]
    SHIFT_H: tl.constexpr = GEOMETRY[2]
    SHIFT_W: tl.constexpr = GEOMETRY[3]
    scores = products * (scale * LOG2_E)
    if bias is not None:
        scores += bias
    elif TILE != WINDOW_H * WINDOW_W:
        scores = tl.where(keys < WINDOW_H * WINDOW_W, scores, float("-inf"))
    if SHIFT_H + SHIFT_W > 0:
        grid_rows, grid_columns = extent[2], extent[3]
        last_row = window // grid_columns % grid_rows == grid_rows - 1
        last_column = window % grid_columns == grid_columns - 1
        if last_row | last_column:
            rows = (queries // WINDOW_W >= WINDOW_H - SHIFT_H) != (keys // WINDOW_W >= WINDOW_H - SHIFT_H)
            columns = (queries % WINDOW_W >= WINDOW_W - SHIFT_W) != (keys % WINDOW_W >= WINDOW_W - SHIFT_W)
            scores = tl.where((rows & last_row) | (columns & last_column), scores + SEAM, scores)
    return scores


@triton.jit
def _scores_and_values(
    query,  # (BLOCK_M, BLOCK_D)
    queries,  # (BLOCK_M,) tokens
    keys,  # (BLOCK_N,) tokens
    bias,  # (BLOCK_M, BLOCK_N) or None
    qkv_pointer,
    column,  # where the head's queries begin in a token
    channels,
    padding_pointer,
    scale,
    window,
    extent,
    strides,
    GEOMETRY: tl.constexpr,
    COSINE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the scores of a block of keys, and their values."""
    WHOLE: tl.constexpr = TILE == GEOMETRY[0] * GEOMETRY[1] and not GEOMETRY[5]
    offsets, _pixels, there = locate(keys, window, extent, strides, GEOMETRY)
    key = load_tokens(qkv_pointer, column + channels, offsets, there, padding_pointer, HEAD_DIM, BLOCK_D, WHOLE)
    value = load_tokens(qkv_pointer, column + 2 * channels, offsets, there, padding_pointer, HEAD_DIM, BLOCK_D, WHOLE)
    if COSINE:
        key, _norms = normalized(key)
    scores = scores_of(
        tl.dot(query, tl.trans(key), input_precision=PRECISION),
        queries[:, None],
        keys[None, :],
        scale,
        bias,
        window,
        extent,
        GEOMETRY,
        TILE,
    )
    return scores, value


@triton.jit(do_not_specialize=CHANGING)
def window_attention_forward(
    qkv_pointer,  # (batch, height, width, 3 · channels)
    bias_pointer,  # (heads, TILE, TILE) float32, the expanded table, or None
    padding_pointer,  # (3 · channels,), or None
    logit_scale_pointer,  # (heads,) float32, or None
    seed_pointer,  # (1,) int64, or None
    output_pointer,  # (batch, height, width, channels)
    lse_pointer,  # (windows, heads, tokens) float32, in base 2, or None
    stride_batch,
    stride_row,
    stride_column,
    channels,
    height,
    width,
    grid_rows,
    grid_columns,
    heads,
    windows,  # of all maps
    windows_each,
    scale,
    keep_scale,
    dropout_threshold,
    GEOMETRY: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,  # tokens of a window, rounded up to whole blocks
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program computes BLOCK_M queries of one head in ``windows_each`` windows."""
    TOKENS: tl.constexpr = GEOMETRY[0] * GEOMETRY[1]
    WHOLE: tl.constexpr = TILE == TOKENS and not GEOMETRY[5]
    COSINE: tl.constexpr = logit_scale_pointer is not None
    extent = (height, width, grid_rows, grid_columns)
    strides = (stride_batch, stride_row, stride_column)
    head, block, first, last = share(heads, TILE // BLOCK_M, windows, windows_each)
    queries = block * BLOCK_M + tl.arange(0, BLOCK_M)
    all_keys = tl.arange(0, BLOCK_N)
    column = head * HEAD_DIM
    if COSINE:
        scale = tl.load(logit_scale_pointer + head)
    bias = None
    if bias_pointer is not None:
        bias_pointers = bias_pointer + (head * TILE + queries[:, None]) * TILE + all_keys[None, :]
        # A window of one block reads its bias here, another in the loop over the keys.
        bias = tl.load(bias_pointers)
    for window in range(first, last):
        offsets, pixels, there = locate(queries, window, extent, strides, GEOMETRY)
        query = load_tokens(qkv_pointer, column, offsets, there, padding_pointer, HEAD_DIM, BLOCK_D, WHOLE)
        if COSINE:
            query, _norms = normalized(query)
        row_keys = None
        if seed_pointer is not None:
            row_keys = random.row_keys(random.stream_key(seed_pointer, window * heads + head), queries[:, None])
        output = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
        row_sum = tl.zeros([BLOCK_M], tl.float32)
        for start in range(0, TILE, BLOCK_N):
            keys = start + all_keys
            scores, value = _scores_and_values(
                query,
                queries,
                keys,
                bias if TILE == BLOCK_N or bias_pointer is None else tl.load(bias_pointers + start),
                qkv_pointer,
                column,
                channels,
                padding_pointer,
                scale,
                window,
                extent,
                strides,
                GEOMETRY,
                COSINE,
                HEAD_DIM,
                BLOCK_D,
                TILE,
                PRECISION,
            )
            # The first block has a key of the window, so that the maximum is finite from there on; the last ones of a
            # tile that is longer than the window may have none.
            new_max = tl.maximum(row_max, tl.max(scores, 1))
            weights = tl.math.exp2(scores - new_max[:, None])
            decay = tl.math.exp2(row_max - new_max)
            row_sum = row_sum * decay + tl.sum(weights, 1)
            row_max = new_max
            if seed_pointer is not None:
                kept = random.kept(row_keys, random.column_keys(keys)[None, :], dropout_threshold)
                weights = tl.where(kept, weights, 0.0)
            output = tl.dot(weights.to(value.dtype), value, output * decay[:, None], input_precision=PRECISION)
        output *= (keep_scale / row_sum)[:, None]
        store_tokens(output_pointer, column, pixels * channels, there, output, HEAD_DIM, BLOCK_D)
        if lse_pointer is not None:
            rows = (tl.cast(window, tl.int64) * heads + head) * TOKENS + queries
            tl.store(lse_pointer + rows, row_max + tl.math.log2(row_sum), mask=queries < TOKENS)


@triton.jit
def _expand(
    table_pointer,  # (offsets, heads) float32
    bias_pointer,  # (heads, TILE, TILE) float32, written
    heads,
    GEOMETRY: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program writes BLOCK elements, in units of log2; keys that the window does not have are -inf."""
    WINDOW_H: tl.constexpr = GEOMETRY[0]
    WINDOW_W: tl.constexpr = GEOMETRY[1]
    pairs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head = pairs // (TILE * TILE)
    query = pairs // TILE % TILE
    key = pairs % TILE
    rows = query // WINDOW_W - key // WINDOW_W + WINDOW_H - 1
    columns = query % WINDOW_W - key % WINDOW_W + WINDOW_W - 1
    is_key = (key < WINDOW_H * WINDOW_W) & (head < heads)
    offsets = (rows * (2 * WINDOW_W - 1) + columns) * heads + head
    bias = tl.load(table_pointer + offsets, mask=is_key & (query < WINDOW_H * WINDOW_W), other=0.0)
    tl.store(bias_pointer + pairs, tl.where(is_key, bias * LOG2_E, float("-inf")), mask=head < heads)


def expanded_table(problem: Problem) -> Tensor | None:
    """Return the table at the offset of every query and key, in units of log2: (heads, tile, tile) float32.

    Keys beyond the tokens of a window are -inf. None without a table.
    """
    if problem.table is None:
        return None
    bias = problem.partial(problem.heads, problem.tile, problem.tile)
    _expand[(triton.cdiv(bias.numel(), tuning.EXPANDED),)](
        problem.table,
        bias,
        problem.heads,
        GEOMETRY=problem.arguments["GEOMETRY"],
        TILE=problem.tile,
        BLOCK=tuning.EXPANDED,
    )
    return bias


def forward(problem: Problem, output: Tensor, lse: Tensor | None) -> None:
    """Launch the forward kernel.

    Args:
        problem: The inputs.
        output: (batch, height, width, channels), contiguous, written.
        lse: (batch · windows, heads, tokens) float32, written if there is one: log-sum-exp of the scores in base 2.
    """
    launch = problem.launch("forward")
    window_attention_forward[launch.grid](
        bias_pointer=expanded_table(problem),
        output_pointer=output,
        lse_pointer=lse,
        **problem.arguments,
        **launch.options,
    )
