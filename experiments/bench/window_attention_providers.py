"""Shifted-window attention by this project and as others compute it, all from the same map to the same map."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from experiments.bench.kernel_case import OURS, Built, Inputs, NotSupported, Provider, compiled

if TYPE_CHECKING:
    from experiments.bench.window_attention import WindowCase
    from kernels.window_attention.tuning import Entry, Kind

NAMES = ("qkv", "table", "logit_scale", "relative", "mask")
"""The tensors that a function of this file takes, in its order."""


def cut(tokens: Tensor, window: int, shift: int) -> Tensor:
    """Roll a map (batch, height, width, channels) and cut it into (batch · windows, window², channels)."""
    if shift:
        tokens = tokens.roll((-shift, -shift), (1, 2))
    batch, height, width, channels = tokens.shape
    windows = tokens.view(batch, height // window, window, width // window, window, channels)
    return windows.transpose(2, 3).reshape(-1, window * window, channels)


def join(windows: Tensor, size: tuple[int, int], window: int, shift: int) -> Tensor:
    """Return the map of (height, width) that was cut."""
    height, width = size
    grid = windows.view(-1, height // window, width // window, window, window, windows.shape[-1])
    tokens = grid.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])
    return tokens.roll((shift, shift), (1, 2)) if shift else tokens


def relative_index(window: int) -> Tensor:
    """Return the row of the table for each query and key, (window², window²) int64."""
    row, column = (axis.flatten() for axis in torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij"))
    rows, columns = (axis[:, None] - axis + window - 1 for axis in (row, column))
    return rows * (2 * window - 1) + columns


def region_ids(size: int, window: int, shift: int) -> Tensor:
    """Return which part of the map each token of each window was in, (windows, window²) int64."""
    position = torch.arange(size)
    part = (position >= size - window).long() + (position >= size - shift).long()
    return cut((3 * part[:, None] + part)[None, :, :, None], window, 0).squeeze(-1)


def shift_mask(regions: Tensor) -> Tensor:
    """Return what is added to the scores, (windows, 1, window², window²): -100 between tokens of different parts."""
    return (-100.0 * (regions[:, :, None] != regions[:, None])).unsqueeze(1)


def eager(
    qkv: Tensor,
    table: Tensor,
    logit_scale: Tensor | None,
    relative: Tensor,
    mask: Tensor | None,
    window: int,
    shift: int,
) -> Tensor:
    """Roll, cut, and compute every score, as the official code does with the mask that it keeps for one size of map."""
    query, key, value = _heads(qkv, table, logit_scale, window, shift)
    scores = query @ key.transpose(-1, -2) + _bias(table, relative)
    if mask is not None:
        scores = (scores.unflatten(0, (-1, mask.shape[0])) + mask).flatten(0, 1)
    return _join_heads(scores.softmax(-1) @ value, qkv, window, shift)


def sdpa(
    qkv: Tensor,
    table: Tensor,
    logit_scale: Tensor | None,
    relative: Tensor,
    mask: Tensor | None,
    window: int,
    shift: int,
) -> Tensor:
    """Roll and cut, and hand bias and mask of every window to SDPA, as timm's fused switch does."""
    query, key, value = _heads(qkv, table, logit_scale, window, shift)
    added = _bias(table, relative)[None]
    if mask is not None:
        added = (added + mask).repeat(qkv.shape[0], 1, 1, 1)
    output = functional.scaled_dot_product_attention(query, key, value, attn_mask=added, scale=1.0)
    return _join_heads(output, qkv, window, shift)


def flex(
    qkv: Tensor, table: Tensor, logit_scale: Tensor | None, relative: Tensor, regions: Tensor, window: int, shift: int
) -> Tensor:
    """Roll and cut; bias and mask are functions of query, key and window that FlexAttention compiles."""
    from torch.nn.attention.flex_attention import flex_attention

    query, key, value = _heads(qkv, table, logit_scale, window, shift)
    bias, windows = _bias(table, relative), regions.shape[0]

    def add_bias(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return score + bias[head, row, column]

    def add_bias_and_mask(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        place = batch % windows
        is_apart = regions[place, row] != regions[place, column]
        return score + bias[head, row, column] - 100.0 * is_apart

    output = flex_attention(query, key, value, score_mod=add_bias_and_mask if shift else add_bias, scale=1.0)
    return _join_heads(output, qkv, window, shift)


def _heads(
    qkv: Tensor, table: Tensor, logit_scale: Tensor | None, window: int, shift: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, already scaled, keys and values, (batch · windows, heads, window², head_dim) each."""
    windows = cut(qkv, window, shift)
    query, key, value = windows.unflatten(-1, (3, table.shape[1], -1)).permute(2, 0, 3, 1, 4).unbind()
    if logit_scale is None:
        return query * query.shape[-1] ** -0.5, key, value
    return functional.normalize(query, dim=-1) * logit_scale[:, None, None], functional.normalize(key, dim=-1), value


def _bias(table: Tensor, relative: Tensor) -> Tensor:
    """Return the bias of each head, query and key."""
    return table[relative.flatten()].view(*relative.shape, -1).permute(2, 0, 1).contiguous()


def _join_heads(output: Tensor, qkv: Tensor, window: int, shift: int) -> Tensor:
    return join(output.transpose(1, 2).flatten(2), (qkv.shape[1], qkv.shape[2]), window, shift)


def _heddle(case: "WindowCase", inputs: Inputs) -> Built:
    from kernels import window_attention

    return Built(
        lambda: (
            window_attention(
                inputs["qkv"],
                inputs["table"],
                window_size=case.window,
                shift=case.shift,
                num_heads=case.heads,
                logit_scale=inputs["logit_scale"],
            ),
        )
    )


def _function(case: "WindowCase", inputs: Inputs, function: Callable[..., Tensor], compiles: bool = False) -> Built:
    """Call a function of this file, compiled or as it is."""
    call = compiled(function) if compiles else function
    return Built(lambda: (call(*(inputs[name] for name in NAMES), case.window, case.shift),))


def _flex(case: "WindowCase", inputs: Inputs) -> Built:
    if inputs["qkv"].device.type != "cuda":
        raise NotSupported("has no backward on a CPU")
    attend = compiled(flex)
    names = (*NAMES[:-1], "regions")
    return Built(lambda: (attend(*(inputs[name] for name in names), case.window, case.shift),))


PROVIDERS: dict[str, Provider] = {
    OURS: _heddle,
    "eager": partial(_function, function=eager),
    "sdpa": partial(_function, function=sdpa),
    "compile-eager": partial(_function, function=eager, compiles=True),
    "compile-sdpa": partial(_function, function=sdpa, compiles=True),
    "flex": _flex,
}


def entry_providers(kinds: Iterable["Kind"]) -> dict[str, Provider]:
    """Return this project's attention as it is launched, and with every entry that a kernel has in its launch table.

    Args:
        kinds: Kernels as ``kernels.window_attention.tuning`` names them.
    """
    from kernels.window_attention import tuning

    wanted = set(kinds)
    found = dict.fromkeys((kind, entry) for kind, _, entry in tuning.entries() if kind in wanted)
    return {OURS: _heddle, **{_entry_name(*pair): partial(_launched, kind=pair[0], entry=pair[1]) for pair in found}}


def _entry_name(kind: str, entry: "Entry") -> str:
    blocks = f"{entry.block_queries}x{entry.block_keys}"
    return f"{kind} {blocks} warps {entry.num_warps} stages {entry.num_stages} programs {entry.programs}"


def _launched(case: "WindowCase", inputs: Inputs, kind: "Kind", entry: "Entry") -> Built:
    from kernels.window_attention import tuning

    tile = tuning.tile(case.window**2)
    if kind != "forward" and (kind == "backward_window") != (tile <= tuning.LARGEST_TILE):
        raise NotSupported(f"is not launched for windows of {case.window**2} tokens")
    if max(entry.block_queries, entry.block_keys) > tile:
        raise NotSupported(f"its blocks are larger than a window of {case.window**2} tokens")
    return Built(_heddle(case, inputs).forward, partial(tuning.forced, kind, entry))
