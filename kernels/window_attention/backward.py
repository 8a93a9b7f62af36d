"""Shifted-window attention backward: gradients of the map, the table, the logit scale and what padded tokens hold.

With the weights ``P``, the dropout mask over 1 - p ``D``, and ``O`` the output, for each window and head::

    dV = (P ∘ D)ᵀ dO,   dP = (dO Vᵀ) ∘ D,   dS = P ∘ (dP - rowsum(dO ∘ O)) = P ∘ (dP - rowsum(P ∘ dP))
    dQ = scale · dS K,  dK = scale · dSᵀ Q,  dB = dS summed over the windows

The scores are computed again from the map. Nothing is added atomically: programs that sum over windows write one
partial sum each, and these are added in one order, so that two runs agree bit for bit. A window of at most 64 tokens is
one tile, and one kernel does all of it where its registers suffice (``tuning.is_fused``); otherwise there is a kernel
for query rows, one for key rows and one for tiles of the bias.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.window_attention import backward_tiled, backward_window, tuning
from kernels.window_attention.problem import Problem


@triton.jit
def _sum_pairs(
    bias_pointer,  # (heads, TILE, TILE) float32: gradients of each query and key
    table_pointer,  # (offsets, heads) float32, written
    heads,
    WINDOW_H: tl.constexpr,
    WINDOW_W: tl.constexpr,
    TILE: tl.constexpr,
    OFFSETS: tl.constexpr,
    QUERIES: tl.constexpr,
):
    """One program sums over the queries and keys that are as far apart as each of OFFSETS says, for one head."""
    COUNT: tl.constexpr = (2 * WINDOW_H - 1) * (2 * WINDOW_W - 1)
    head = tl.program_id(0) % heads
    offsets = tl.program_id(0) // heads * OFFSETS + tl.arange(0, OFFSETS)
    queries = tl.arange(0, QUERIES)[None, :]
    rows = queries // WINDOW_W - (offsets // (2 * WINDOW_W - 1))[:, None] + WINDOW_H - 1
    columns = queries % WINDOW_W - (offsets % (2 * WINDOW_W - 1))[:, None] + WINDOW_W - 1
    in_window = (queries < WINDOW_H * WINDOW_W) & (offsets < COUNT)[:, None]
    in_window &= (rows >= 0) & (rows < WINDOW_H) & (columns >= 0) & (columns < WINDOW_W)
    pairs = (head * TILE + queries) * TILE + rows * WINDOW_W + columns
    sums = tl.sum(tl.load(bias_pointer + pairs, mask=in_window, other=0.0), 1)
    tl.store(table_pointer + offsets * heads + head, sums, mask=offsets < COUNT)


def table_gradient(problem: Problem, partial: Tensor) -> Tensor:
    """Return the gradient of the table from that of its expansion, (splits, heads, tile, tile) float32."""
    height, width, *_ = problem.arguments["GEOMETRY"]
    gradient = problem.partial((2 * height - 1) * (2 * width - 1), problem.heads)
    queries = triton.next_power_of_2(height * width)
    offsets = max(1, tuning.SUMMED // queries)
    _sum_pairs[(triton.cdiv(gradient.shape[0], offsets) * problem.heads,)](
        partial.sum(0),
        gradient,
        problem.heads,
        WINDOW_H=height,
        WINDOW_W=width,
        TILE=problem.tile,
        OFFSETS=offsets,
        QUERIES=queries,
    )
    return gradient


def backward(
    problem: Problem,
    output: Tensor | None,
    lse: Tensor | None,
    grad_output: Tensor,
    needed: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Launch the backward kernels.

    Args:
        problem: The inputs.
        output: The forward's, (batch, height, width, channels); None where one kernel does all.
        lse: The forward's, likewise.
        grad_output: (batch, height, width, channels), contiguous.
        needed: Which gradients are wanted: of qkv, the table, what padded tokens hold, and the logit scale.

    Returns:
        These gradients, None where not wanted: the first and third in the dtype of qkv, the others in float32.
    """
    wants_qkv, wants_table, wants_padding, wants_logit_scale = needed
    is_padded = problem.arguments["padding_pointer"] is not None
    qkv = problem.arguments["qkv_pointer"]
    grad_qkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device) if wants_qkv else None
    wanted = (wants_table, wants_padding and is_padded, wants_logit_scale)
    if output is None or lse is None:
        partials = backward_window.launch(problem, grad_output, grad_qkv, *wanted)
    else:
        partials = backward_tiled.launch(problem, output, lse, grad_output, grad_qkv, *wanted)
    table, padding, logit_scale = partials
    grad_padding = None
    if wants_padding:
        grad_padding = torch.zeros(3 * problem.channels, dtype=qkv.dtype, device=qkv.device)
        if padding is not None:
            grad_padding[problem.channels :] = padding.sum(0)
    return (
        grad_qkv,
        None if table is None else table_gradient(problem, table),
        grad_padding,
        None if logit_scale is None else logit_scale.sum(0),
    )
