"""Attention within the shifted windows of a map, with learned relative positions, on the project's kernel."""

import functools
import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels import window_attention
from kernels.window_attention.op import PadMode
from lit_models.checks import check_at_least

Pair = tuple[int, int]
Padding = Literal["torchvision", "timm", "microsoft", "fixed"]

# Swin V2 (Liu et al. 2022, section 3.3): the largest logarithm of a head's scale, and the bound of its bias.
LARGEST_LOGIT_SCALE = math.log(100.0)
BIAS_BOUND = 16.0
POSITION_HIDDEN_DIM = 512


def fit_window(size: Pair, window: Pair, shift: Pair, padding: Padding) -> tuple[Pair, Pair]:
    """Return the window and the shift that a map gets: a map no larger than a window has nothing to shift into.

    Args:
        size: (rows, columns) of the map.
        window: (rows, columns) of the network's windows.
        shift: Rows and columns that this layer shifts larger maps by.
        padding: Whose rule: ``"torchvision"`` keeps the window and switches off the shift along an axis that one window
            covers; ``"timm"`` makes the window as short as the axis besides; ``"microsoft"`` (also Hugging Face's
            Swin V1), if the shorter axis is no longer than the window, makes the window a square of that side, without
            any shift; ``"fixed"`` (Hugging Face's Swin V2) leaves both as they are for every map.
    """
    if padding == "fixed":
        return window, shift
    if padding == "microsoft":
        side = min(size)
        return ((side, side), (0, 0)) if side <= window[0] else (window, shift)
    rows, columns = (0 if length <= side else by for length, side, by in zip(size, window, shift, strict=True))
    if padding == "timm":
        window = min(size[0], window[0]), min(size[1], window[1])
    return window, (rows, columns)


class WindowAttention(nn.Module):
    """Self-attention within the windows of a map, biased by relative positions (Liu et al. 2021, section 3.2).

    Args:
        dim: Width of input and output.
        num_heads: Number of heads; divides ``dim``.
        window_size: (rows, columns) of a window.
        shifted: Shift the windows by half of their size.
        padding: Whose treatment of maps that the window does not divide, see :func:`fit_window`; ``"timm"`` rolls
            before it pads, the others pad first.
        qkv_bias: Add a bias to queries, keys and values.
        dropout: Probability of dropping an attention weight in training.

    Raises:
        ValueError: If the arguments do not fit together; the message names them.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: Pair,
        *,
        shifted: bool = False,
        padding: Padding = "torchvision",
        qkv_bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_at_least("num_heads", num_heads, 1)
        check_at_least("window_size", min(window_size), 1)
        if dim % num_heads:
            raise ValueError(f"num_heads {num_heads} must divide dim {dim}")
        if padding not in get_args(Padding):
            raise ValueError(f"padding must be one of {', '.join(get_args(Padding))}, got {padding!r}")
        if padding == "microsoft" and window_size[0] != window_size[1]:
            raise ValueError(f'padding="microsoft" has square windows, got window_size {window_size}')
        self.num_heads, self.window_size = num_heads, window_size
        self.shift = (window_size[0] // 2, window_size[1] // 2) if shifted else (0, 0)
        self.padding: Padding = padding
        self.pad_mode: PadMode = "roll_then_pad" if padding == "timm" else "pad_then_roll"
        self.dropout = dropout
        self.make_projection(dim, qkv_bias)
        self.output = nn.Linear(dim, dim)
        self.make_positions()
        self.reset_parameters()

    def make_projection(self, dim: int, qkv_bias: bool) -> None:
        """Make what queries, keys and values are projected with."""
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=qkv_bias)

    def make_positions(self) -> None:
        """Make the parameters of the bias and of the scale of the scores."""
        rows, columns = self.window_size
        self.bias_table = nn.Parameter(torch.empty((2 * rows - 1) * (2 * columns - 1), self.num_heads))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the table of relative positions; the linear layers are the network's to draw."""
        nn.init.trunc_normal_(self.bias_table, std=0.02, a=-2.0, b=2.0)

    def forward(self, input: Tensor) -> Tensor:
        """Map (batch, rows, columns, dim) to (batch, rows, columns, dim)."""
        window, shift = fit_window((input.shape[1], input.shape[2]), self.window_size, self.shift, self.padding)
        bias = self.projection_bias()
        attended = window_attention(
            functional.linear(input, self.query_key_value.weight, bias),
            self.table(window),
            window_size=window,
            shift=shift,
            num_heads=self.num_heads,
            pad_mode=self.pad_mode,
            qkv_padding=bias,
            logit_scale=self.scale_of_cosines(),
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.output(attended)

    def projection_bias(self) -> Tensor | None:
        """Return the bias of queries, keys and values, (3 · dim,), which padded tokens hold."""
        return self.query_key_value.bias

    def table(self, window: Pair) -> Tensor:
        """Return the bias of each offset in a window, ((2 · rows - 1) · (2 · columns - 1), heads).

        That of a smaller window is the middle of the table: the same offsets.
        """
        if window == self.window_size:
            return self.bias_table
        rows, columns = self.window_size
        grid = self.bias_table.view(2 * rows - 1, 2 * columns - 1, self.num_heads)
        middle = grid[rows - window[0] : rows + window[0] - 1, columns - window[1] : columns + window[1] - 1]
        return middle.reshape(-1, self.num_heads)

    def scale_of_cosines(self) -> Tensor | None:
        """Return each head's scale, (heads,), where the scores are cosines."""
        return None


class CosineWindowAttention(WindowAttention):
    """The window attention of Swin V2: scaled cosines, and a bias that a small network makes of the offsets.

    Liu et al. 2022, "Swin Transformer V2", https://arxiv.org/abs/2111.09883, sections 3.2 and 3.3. The keys have no
    bias.

    Args:
        dim: Width of input and output.
        num_heads: Number of heads; divides ``dim``.
        window_size: (rows, columns) of a window.
        pretrained_window_size: (rows, columns) of the windows that the position MLP was trained with, to which the
            offsets are relative; None for those of each map.
        **settings: See :class:`WindowAttention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: Pair,
        *,
        pretrained_window_size: Pair | None = None,
        **settings: object,
    ) -> None:
        super().__init__(dim, num_heads, window_size, **settings)  # type: ignore[arg-type]
        self.pretrained_window_size = pretrained_window_size

    def make_projection(self, dim: int, qkv_bias: bool) -> None:
        """Make a projection whose biases are parameters of their own."""
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.value_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None

    def make_positions(self) -> None:
        """Make the position MLP and the logarithms of the scales."""
        self.logit_scale = nn.Parameter(torch.empty(self.num_heads))
        self.position_mlp = nn.Sequential(
            nn.Linear(2, POSITION_HIDDEN_DIM), nn.ReLU(), nn.Linear(POSITION_HIDDEN_DIM, self.num_heads, bias=False)
        )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start every head with a scale of 10."""
        nn.init.constant_(self.logit_scale, math.log(10.0))

    def projection_bias(self) -> Tensor | None:
        """Return the bias of queries, keys (0) and values, (3 · dim,)."""
        if self.query_bias is None or self.value_bias is None:
            return None
        return torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])

    def table(self, window: Pair) -> Tensor:
        """Return the bias of each offset in a window, ((2 · rows - 1) · (2 · columns - 1), heads), in (0, 16)."""
        like = self.logit_scale
        make = log_spaced_offsets if torch.compiler.is_compiling() else _kept_offsets
        offsets = make(window, self.pretrained_window_size or window, like.device).to(like.dtype)
        # Not in half precision under autocast: bfloat16 rounds a bias near 16 by up to 0.03.
        with torch.autocast(like.device.type, enabled=False):
            return BIAS_BOUND * self.position_mlp(offsets).sigmoid()

    def scale_of_cosines(self) -> Tensor:
        """Return each head's scale, (heads,), at most 100."""
        return self.logit_scale.clamp(max=LARGEST_LOGIT_SCALE).exp()


def log_spaced_offsets(window: Pair, unit: Pair, device: torch.device) -> Tensor:
    """Return what the position MLP reads (Liu et al. 2022, section 3.3), one row for each offset of a window.

    Args:
        window: (rows, columns) of the window.
        unit: (rows, columns) of the window that offsets are relative to: its largest become ±8 before the logarithm.
        device: Where they shall lie.

    Returns:
        ((2 · rows - 1) · (2 · columns - 1), 2) float32, sign(offset) · log2(1 + abs(offset)) / 3.
    """
    axes = [
        torch.arange(1 - side, side, dtype=torch.float32) / max(whole - 1, 1) * 8
        for side, whole in zip(window, unit, strict=True)
    ]
    offsets = torch.cartesian_prod(*axes)
    return (offsets.sign() * (1 + offsets.abs()).log2() / 3).to(device)


@functools.lru_cache(maxsize=64)
def _kept_offsets(window: Pair, unit: Pair, device: torch.device) -> Tensor:
    """Return the offsets, which lie on the device from call to call."""
    with torch.inference_mode(False):  # they are kept beyond a validation
        return log_spaced_offsets(window, unit, device)
