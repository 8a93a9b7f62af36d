"""Stochastic depth and LayerScale: what a residual branch is multiplied by before it is added."""

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
        branch: (batch, tokens, dim).
        layer_scale: (dim,), LayerScale (Touvron et al. 2021, "Going deeper with Image Transformers"), or None.
        drop_path: Probability with which a sample's whole branch becomes 0; the others are scaled by
            ``1 / (1 - drop_path)``. Give 0 in evaluation.

    Returns:
        (batch, tokens, dim), or ``branch`` itself if there is nothing to do.
    """
    if drop_path == 0.0:
        return branch if layer_scale is None else branch * layer_scale
    kept = 1.0 - drop_path
    # In float32 whatever the branch is in: 1 / kept rounded to bfloat16 would scale every branch a little too much.
    factor = torch.empty(branch.shape[0], 1, 1, device=branch.device).bernoulli_(kept).div_(kept)
    return branch * (factor if layer_scale is None else factor * layer_scale)
