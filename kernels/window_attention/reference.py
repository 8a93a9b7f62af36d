"""Shifted-window attention in plain PyTorch: the oracle of the tests and the path on a CPU.

The map is gathered into windows once, by indices that are kept from call to call, and the result is gathered back.
"""

import functools

import torch
from torch import Tensor
from torch.nn import functional

from kernels.dropout import dropout
from kernels.window_attention.geometry import MASKED, Geometry


def window_attention(
    qkv: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    num_heads: int,
    scale: float,
    qkv_padding: Tensor | None,
    logit_scale: Tensor | None,
    dropout_p: float,
) -> Tensor:
    """Compute what :func:`kernels.window_attention` computes."""
    batch, height, width, stacked = qkv.shape
    channels = stacked // 3
    sources, targets = _indices(geometry, qkv.device)
    rows = qkv.flatten(1, 2)
    if geometry.has_padding:
        padding = qkv.new_zeros(stacked) if qkv_padding is None else qkv_padding.to(qkv.dtype)
        rows = torch.cat([rows, padding.expand(batch, 1, -1)], dim=1)
    windows = rows.index_select(1, sources).view(batch, -1, geometry.tokens, 3, num_heads, channels // num_heads)
    query, key, value = windows.permute(3, 0, 1, 4, 2, 5).unbind()
    if logit_scale is not None:
        query, key = functional.normalize(query, dim=-1), functional.normalize(key, dim=-1)
        scores = query @ key.transpose(-1, -2) * logit_scale[:, None, None]
    else:
        scores = query @ key.transpose(-1, -2) * scale
    if bias is not None:
        relative = _relative(geometry.window, qkv.device)
        scores = scores + bias[relative].permute(2, 0, 1)
    if any(geometry.shift):
        scores = scores + _mask(geometry, qkv.device)
    weights = dropout(scores.softmax(-1).to(value.dtype), dropout_p)
    attended = (weights @ value).transpose(2, 3).reshape(batch, -1, channels)
    return attended.index_select(1, targets).view(batch, height, width, channels)


@functools.lru_cache(maxsize=64)
def _indices(geometry: Geometry, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return where each token of each window is read, and where each token of the map lies among the windows'."""
    sources = geometry.sources().flatten()
    targets = torch.empty(geometry.height * geometry.width + 1, dtype=torch.int64)
    targets[sources] = torch.arange(sources.numel())
    return sources.to(device), targets[:-1].to(device)


@functools.lru_cache(maxsize=16)
def _relative(window: tuple[int, int], device: torch.device) -> Tensor:
    return Geometry(*window, window, (0, 0), roll_first=False).relative().to(device)


@functools.lru_cache(maxsize=64)
def _mask(geometry: Geometry, device: torch.device) -> Tensor:
    """Return what is added to the scores, (windows, 1, tokens, tokens) float32."""
    regions = geometry.regions()
    return torch.where(regions[:, :, None] == regions[:, None], 0.0, MASKED)[:, None].to(device)
