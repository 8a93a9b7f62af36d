"""Stochastic depth and LayerScale: what a residual branch is multiplied by before it is added."""

import math
from typing import Literal

import torch
from torch import Tensor

from lit_models.checks import check_probability

DropPathMode = Literal["linear", "constant"]
DROP_PATH_MODES: tuple[str, ...] = ("linear", "constant")


def drop_path_rates(rate: float, depth: int, mode: DropPathMode = "linear") -> list[float]:
    """Return the probability of each layer's residual branches of being dropped (Huang et al. 2016, section 3).

    Args:
        rate: Probability in the last layer.
        depth: Number of layers.
        mode: ``"linear"`` grows from 0 in the first layer (ViT, DeiT); ``"constant"`` is ``rate`` in each one (CaiT,
            DeiT III).

    Raises:
        ValueError: If ``rate`` is outside [0, 1) or the mode is not one of these.
    """
    check_probability("drop_path", rate)
    if mode not in DROP_PATH_MODES:
        raise ValueError(f"drop_path_mode must be one of {', '.join(DROP_PATH_MODES)}, got {mode!r}")
    if mode == "constant":
        return [rate] * depth
    return [rate * layer / max(depth - 1, 1) for layer in range(depth)]


def scale_branch(branch: Tensor, layer_scale: Tensor | None, drop_path: float) -> Tensor:
    """Multiply a residual branch by its LayerScale, and drop it for some samples, in one pass.

    Args:
        branch: (batch, tokens, dim), or a map (batch, rows, columns, dim).
        layer_scale: (dim,), LayerScale (Touvron et al. 2021, "Going deeper with Image Transformers"), or None.
        drop_path: Probability with which a sample's whole branch becomes 0; the others are scaled by
            ``1 / (1 - drop_path)``. Give 0 in evaluation. In half precision both are what the nearest factor allows.

    Returns:
        A tensor shaped like ``branch``, or ``branch`` itself if there is nothing to do.
    """
    if drop_path == 0.0:
        return branch if layer_scale is None else branch * layer_scale
    dtype = branch.dtype if layer_scale is None else torch.promote_types(branch.dtype, layer_scale.dtype)
    factor = nearest_number(1.0 / (1.0 - drop_path), dtype)
    scale = torch.empty(branch.shape[0], *[1] * (branch.dim() - 1), dtype=dtype, device=branch.device)
    scale.bernoulli_(1.0 / factor).mul_(factor)
    return branch * (scale if layer_scale is None else scale * layer_scale)


def nearest_number(value: float, dtype: torch.dtype) -> float:
    """Return the number of a dtype that is nearest to a positive one.

    For a kept branch's factor: 1 / 0.9 rounded to bfloat16 scales every branch 0.2 % too much. With the probability
    that goes with the rounded factor the mean is right, and the branch need not be promoted to float32.
    """
    spacing = torch.finfo(dtype).eps * 2.0 ** math.floor(math.log2(value))
    return round(value / spacing) * spacing
