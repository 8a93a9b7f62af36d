"""Attention backward: gradients of query, key, value and bias, recomputed tile by tile (Dao 2022, appendix B.4).

With the weights ``P = 2^(scores - lse)``, ``D`` the dropout mask over 1 - p, and ``O`` the output::

    delta = rowsum(dO ∘ O)
    dV = (P ∘ D)ᵀ dO,   dP = (dO Vᵀ) ∘ D,   dS = P ∘ (dP - delta)
    dQ = scale · dS K,  dK = scale · dSᵀ Q,  dB = dS summed over the axes that the bias broadcasts

Nothing is added atomically, so two runs agree bit for bit: one kernel owns query rows, one owns key rows, and one owns
tiles of the bias. The price is that scores are computed again in each: seven products instead of five, nine with dB.
"""

import torch
import triton
from torch import Tensor

from kernels.flash_attention import tuning
from kernels.flash_attention.backward_bias import attention_backward_bias
from kernels.flash_attention.backward_key_value import attention_backward_key_value
from kernels.flash_attention.backward_query import attention_backward_query
from kernels.flash_attention.problem import Problem

# Programs that fill a large GPU: a bias gradient with fewer tiles splits the axes it sums over.
BIAS_PROGRAMS = 512


def backward_query(
    problem: Problem,
    output: Tensor,
    lse: Tensor,
    grad_output: Tensor,
    delta: Tensor,
    grad_query: Tensor | None,
) -> None:
    """Launch the kernel that owns query rows.

    Args:
        problem: The inputs.
        output: (batch, heads, query_rows, value_head_dim), the forward's result.
        lse: (batch, heads, query_rows) float32, the forward's result.
        grad_output: Shaped like ``output``, last dimension contiguous.
        delta: Shaped like ``lse``, written: the row sums of ``grad_output ∘ output``.
        grad_query: Shaped like the query, written; None if it is not wanted.
    """
    tile = tuning.tile("backward_query", problem.shape)
    tiles = triton.cdiv(problem.max_query, tile.block_queries)
    attention_backward_query[(tiles * problem.heads * problem.sequences,)](
        output_pointer=output,
        lse_pointer=lse,
        grad_output_pointer=grad_output,
        delta_pointer=delta,
        grad_query_pointer=grad_query,
        **problem.strides("output", output),
        **problem.strides("grad_output", grad_output),
        **problem.strides("grad_query", output if grad_query is None else grad_query),
        **problem.arguments,
        tiles=tiles,
        **tile.options(),
    )


def backward_key_value(
    problem: Problem, lse: Tensor, grad_output: Tensor, delta: Tensor, grad_key: Tensor, grad_value: Tensor
) -> None:
    """Launch the kernel that owns key rows; ``delta`` is what :func:`backward_query` wrote.

    Args:
        problem: The inputs.
        lse: (batch, heads, query_rows) float32.
        grad_output: (batch, heads, query_rows, value_head_dim), last dimension contiguous.
        delta: Shaped like ``lse``.
        grad_key: Shaped like the key, written.
        grad_value: Shaped like the value, written.
    """
    tile = tuning.tile("backward_key_value", problem.shape)
    tiles = triton.cdiv(problem.max_key, tile.block_keys)
    attention_backward_key_value[(tiles * problem.key_heads * problem.sequences,)](
        lse_pointer=lse,
        grad_output_pointer=grad_output,
        delta_pointer=delta,
        grad_key_pointer=grad_key,
        grad_value_pointer=grad_value,
        **problem.strides("grad_output", grad_output),
        **problem.strides("grad_key", grad_key),
        **problem.strides("grad_value", grad_value),
        **problem.arguments,
        tiles=tiles,
        **tile.options(),
    )


def backward_bias(
    problem: Problem,
    lse: Tensor,
    grad_output: Tensor,
    delta: Tensor,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
) -> Tensor:
    """Launch the kernel that owns tiles of the bias; ``delta`` is what :func:`backward_query` wrote.

    Args:
        problem: The inputs, dense, with a bias.
        lse: (batch, heads, query_rows) float32.
        grad_output: (batch, heads, query_rows, value_head_dim), last dimension contiguous.
        delta: Shaped like ``lse``.
        shape: Of the bias: (batch or 1, heads or 1, query_rows or 1, key_rows).
        dtype: Of the bias.

    Returns:
        The gradient of the bias.
    """
    tile = tuning.tile("backward_bias", problem.shape)
    batches, heads, rows, columns = shape
    all_rows = rows == 1
    tiles = triton.cdiv(columns, tile.block_keys)
    row_tiles = triton.cdiv(problem.max_query, tile.block_queries)
    members = (problem.sequences // batches) * (problem.heads // heads) * (row_tiles if all_rows else 1)
    programs = tiles * batches * heads * (1 if all_rows else row_tiles)
    members_each = triton.cdiv(members, min(members, triton.cdiv(BIAS_PROGRAMS, programs)))
    splits = triton.cdiv(members, members_each)
    partial = torch.empty((splits, *shape), dtype=dtype if splits == 1 else torch.float32, device=lse.device)
    attention_backward_bias[(programs * splits,)](
        lse_pointer=lse,
        grad_output_pointer=grad_output,
        delta_pointer=delta,
        partial_pointer=partial,
        **problem.strides("grad_output", grad_output),
        **problem.arguments,
        tiles=tiles,
        row_tiles=row_tiles,
        bias_batches=batches,
        bias_heads=heads,
        members=members,
        members_each=members_each,
        ALL_ROWS=all_rows,
        **tile.options(),
    )
    return partial[0] if splits == 1 else partial.sum(0).to(dtype)
