"""What the compile-only gate compiles: a call for every entry of every launch table."""

from collections.abc import Iterator
from functools import partial

import torch
from compile_gate import Case

from kernels.flash_attention import backward as attention_backward
from kernels.flash_attention import forward as attention_forward
from kernels.flash_attention import tuning as attention_tuning
from kernels.flash_attention.problem import Problem
from kernels.layer_norm import backward as layer_norm_backward
from kernels.layer_norm import forward as layer_norm_forward
from kernels.layer_norm import tuning as layer_norm_tuning
from kernels.linear_cross_entropy import forward as cross_entropy_forward
from kernels.linear_cross_entropy import tuning as cross_entropy_tuning
from kernels.window_attention import backward as window_backward
from kernels.window_attention import forward as window_forward
from kernels.window_attention import tuning as window_tuning
from kernels.window_attention.geometry import Geometry
from kernels.window_attention.problem import Problem as WindowProblem

# The table does not tell bfloat16 from float16.
DTYPES = {2: torch.bfloat16, 4: torch.float32}


def meta(*shape, dtype=torch.float32):
    """Return a tensor that has everything but memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def name_of(dtype):
    return str(dtype).removeprefix("torch.")


def cases() -> list[Case]:
    """Return the calls of all rooms."""
    return [*attention_cases(), *layer_norm_cases(), *linear_cross_entropy_cases(), *window_attention_cases()]


# Attention: each entry on the GPUs that it is for. One that serves with and without bias and dropout is compiled with
# them, which takes the most registers.

GPUS = {"sm_80": ("sm_80",), "sm_90": ("sm_90", "sm_100")}


def attention_cases() -> Iterator[Case]:
    calls = {
        "forward": attend,
        "backward_query": attend_backward_query,
        "backward_key_value": attend_backward_key_value,
        "backward_bias": attend_backward_bias,
    }
    seen = set()
    # Those with bias and dropout come first.
    for kind, shape, tile in sorted(attention_tuning.entries(), key=lambda entry: not entry[1].extras):
        which = (kind, shape.architecture, shape.itemsize, shape.block_head_dim, tile)
        if which in seen:
            continue
        seen.add(which)
        # An HGMMA makes 64 rows. A head_dim of 256 leaves no registers for so many, and goes without.
        rows = tile.block_keys if kind == "backward_key_value" else tile.block_queries
        yield Case(
            "flash_attention",
            f"{kind} {tile.block_queries}x{tile.block_keys} w{tile.num_warps} s{tile.num_stages}",
            f"head_dim {shape.block_head_dim}, causal" + (", lengths, bias, dropout" if shape.extras else ""),
            name_of(DTYPES[shape.itemsize]),
            partial(calls[kind], shape.query_length, shape.block_head_dim, DTYPES[shape.itemsize], shape.extras),
            targets=GPUS[shape.architecture],
            hgmma=rows >= 64 or shape.block_head_dim < 256,
        )


def heads_of(length, head_dim, dtype):
    """Return (batch, heads, length, head_dim), a view of what a linear layer makes."""
    return meta(2, length, 4, head_dim, dtype=dtype).transpose(1, 2)


def attention_problem(length, head_dim, dtype, extras):
    tensor = heads_of(length, head_dim, dtype)
    # A bias that the batch shares. Its rows end aligned: 8 elements are 16 bytes and more.
    bias = meta(1, 4, length, -(-length // 8) * 8, dtype=dtype)[..., :length].expand(2, -1, -1, -1)
    return Problem(
        query=tensor,
        key=tensor,
        value=tensor,
        bias=bias if extras else None,
        key_lengths=meta(2, dtype=torch.int64) if extras else None,
        offsets_query=None,
        offsets_key=None,
        seed=meta(1, dtype=torch.int64) if extras else None,
        max_query=length,
        max_key=length,
        causal=True,
        dropout_p=0.1 if extras else 0.0,
        scale=head_dim**-0.5,
    )


def attend(length, head_dim, dtype, extras):
    problem = attention_problem(length, head_dim, dtype, extras)
    attention_forward.attention_forward(problem, heads_of(length, head_dim, dtype), meta(2, 4, length))


def attend_backward_query(length, head_dim, dtype, extras):
    tensor, rows = heads_of(length, head_dim, dtype), meta(2, 4, length)
    attention_backward.backward_query(
        problem=attention_problem(length, head_dim, dtype, extras),
        output=tensor,
        lse=rows,
        grad_output=tensor,
        delta=rows,
        grad_query=tensor,
    )


def attend_backward_key_value(length, head_dim, dtype, extras):
    tensor, rows = heads_of(length, head_dim, dtype), meta(2, 4, length)
    attention_backward.backward_key_value(
        problem=attention_problem(length, head_dim, dtype, extras),
        lse=rows,
        grad_output=tensor,
        delta=rows,
        grad_key=tensor,
        grad_value=tensor,
    )


def attend_backward_bias(length, head_dim, dtype, extras):
    rows = meta(2, 4, length)
    attention_backward.backward_bias(
        problem=attention_problem(length, head_dim, dtype, extras),
        lse=rows,
        grad_output=heads_of(length, head_dim, dtype),
        delta=rows,
        shape=(1, 4, length, length),
        dtype=dtype,
    )


# Layer norm: everything at once, which takes the most registers. The width fills three quarters of the block, as 96,
# 192, 384 and 768 do, so that the masks are there.


def layer_norm_cases() -> Iterator[Case]:
    calls = {"forward": normalize, "backward": normalize_backward}
    for kind, block, itemsize, entry in layer_norm_tuning.entries():
        width, dtype = max(block * 3 // 4, 16), DTYPES[itemsize]
        yield Case(
            "layer_norm",
            f"{kind} {entry.rows}x{block} w{entry.num_warps}" + (f" s{entry.num_stages}" if kind == "backward" else ""),
            f"width {width}, residual, dropout",
            name_of(dtype),
            partial(calls[kind], width, dtype),
        )


def normalize(width, dtype):
    rows, parameter = meta(4096, width, dtype=dtype), meta(width)
    layer_norm_forward.forward(
        input=rows,
        residual=rows,
        weight=parameter,
        bias=parameter,
        seed=meta(1, dtype=torch.int64),
        eps=1e-6,
        dropout_p=0.1,
        rms=False,
        dtype=dtype,
    )


def normalize_backward(width, dtype):
    rows = meta(4096, width, dtype=dtype)
    layer_norm_backward.backward(
        grad_normed=rows,
        grad_summed=rows,
        summed=rows,
        weight=meta(width),
        statistics=meta(2, 4096),
        seed=meta(1, dtype=torch.int64),
        dropout_p=0.1,
        rms=False,
        input_dtype=dtype,
        residual_dtype=dtype,
        weight_dtype=torch.float32,
        bias_dtype=torch.float32,
    )


# Linear cross-entropy: a vocabulary of each entry that is no multiple of a block.


def linear_cross_entropy_cases() -> Iterator[Case]:
    for itemsize, launches in cross_entropy_tuning.LAUNCHES.items():
        for vocabulary, launch in zip((4001, 32003), launches, strict=True):
            assert cross_entropy_tuning.launch(vocabulary, itemsize) == launch
            for features in ("", "bias, smoothing, gradient"):
                yield Case(
                    "linear_cross_entropy",
                    f"{launch.block} w{launch.num_warps}",
                    features,
                    name_of(DTYPES[itemsize]),
                    partial(loss_and_gradient, vocabulary, DTYPES[itemsize], bool(features)),
                )


def loss_and_gradient(vocabulary, dtype, everything):
    stride = cross_entropy_tuning.row_stride(vocabulary, dtype.itemsize)
    cross_entropy_forward.loss_and_gradient(
        logits=meta(2048, stride, dtype=dtype)[:, :vocabulary],
        target=meta(2048, dtype=torch.int64),
        bias=meta(vocabulary) if everything else None,
        losses=meta(2048),
        label_smoothing=0.1 if everything else 0.0,
        ignore_index=-100,
        gradient=everything,
    )


# Window attention: each entry with the most that it is for, and with a table and a shift always. A backward is one
# kernel or three.

WINDOWS = {16: (3, 5), 32: (5, 5), 64: (7, 7), 192: (12, 12)}
FEATURES = ("", ", cosine", ", cosine, padding", ", cosine, padding, dropout")


def window_attention_cases() -> Iterator[Case]:
    calls = {"forward": attend_windows, "backward": attend_windows_backward}
    for shape in dict.fromkeys(shape for _, shape, _ in window_tuning.entries()):
        for direction, call in calls.items():
            kinds = [kind for kind in window_tuning.kinds(shape) if kind.startswith(direction)]
            entries = [window_tuning.entry(kind, shape) for kind in kinds]
            launches = (
                f"{each.block_queries}x{each.block_keys} w{each.num_warps} s{each.num_stages}" for each in entries
            )
            yield Case(
                "window_attention",
                f"{direction} {', '.join(launches)}",
                f"tile {shape.tile}, head_dim {shape.block_head_dim}, table, shift" + FEATURES[shape.features],
                name_of(DTYPES[shape.itemsize]),
                partial(call, shape),
                targets=GPUS[shape.architecture],
                # An HGMMA makes 64 rows.
                hgmma=shape.tile >= 64,
            )


def window_problem(shape):
    window, heads, dtype = WINDOWS[shape.tile], 4, DTYPES[shape.itemsize]
    cosine, padded, dropped = (
        shape.features >= feature for feature in (window_tuning.COSINE, window_tuning.PADDED, window_tuning.DROPPED)
    )
    height, width = (3 * side + padded for side in window)
    stacked = 3 * heads * shape.block_head_dim
    return WindowProblem(
        qkv=meta(2, height, width, stacked, dtype=dtype),
        table=meta((2 * window[0] - 1) * (2 * window[1] - 1), heads),
        qkv_padding=meta(stacked, dtype=dtype) if padded else None,
        logit_scale=meta(heads) if cosine else None,
        seed=meta(1, dtype=torch.int64) if dropped else None,
        # Rolled first: a division more.
        geometry=Geometry(height, width, window, (window[0] // 2, window[1] // 2), roll_first=padded),
        heads=heads,
        scale=shape.block_head_dim**-0.5,
        dropout_p=0.1 if dropped else 0.0,
    )


def window_results(problem):
    """Return a tensor like the output, and one like its log-sum-exp where the backward is three kernels."""
    qkv = problem.arguments["qkv_pointer"]
    output = meta(*qkv.shape[:3], problem.channels, dtype=qkv.dtype)
    fused = window_tuning.is_fused(problem.shape)
    return output, None if fused else meta(problem.windows, problem.heads, problem.tile)


def attend_windows(shape):
    problem = window_problem(shape)
    window_forward.forward(problem, *window_results(problem))


def attend_windows_backward(shape):
    problem = window_problem(shape)
    output, lse = window_results(problem)
    needed = [True, True, shape.features >= window_tuning.PADDED, shape.features >= window_tuning.COSINE]
    window_backward.backward(problem, None if lse is None else output, lse, output, needed)
