"""What the tests of window attention share: the public networks' roll and partition in plain PyTorch, and the maps."""

import torch
from torch.nn import functional

# Height, width, window, shift: each one that the window divides or not, not shifted and shifted by half a window.
MAPS = [
    (height, width, window, shift)
    for window, sizes in (
        (3, ((9, 6), (15, 20), (9, 5), (7, 7))),  # divides; pads the columns; the same on few rows; pads both axes
        (7, ((14, 21), (15, 20), (9, 5), (7, 7))),  # divides; pads both axes; fewer columns than the window; one window
        (8, ((8, 16), (15, 20), (9, 5), (7, 7))),  # divides; pads both axes; an almost empty row; a padded window
    )
    for height, width in sizes
    for shift in (0, window // 2)
]
PAD_MODES = ("pad_then_roll", "roll_then_pad")


def pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def window_formula(
    qkv,
    bias=None,
    *,
    window_size,
    shift=0,
    num_heads,
    scale=None,
    pad_mode="pad_then_roll",
    qkv_padding=None,
    logit_scale=None,
    keep=None,
    dropout_p=0.0,
):
    """Window attention by padding, rolling and cutting the map, differentiable, in the dtype of ``qkv``.

    ``keep`` is a dropout mask, boolean (batch · windows, heads, tokens, tokens).
    """
    window, shift = pair(window_size), pair(shift)
    batch, height, width, stacked = qkv.shape
    windows = roll_partition(qkv, window, shift, pad_mode, qkv_padding)
    tokens, head_dim = windows.shape[1], stacked // (3 * num_heads)
    query, key, value = windows.view(-1, tokens, 3, num_heads, head_dim).permute(2, 0, 3, 1, 4)
    if logit_scale is None:
        scores = query @ key.transpose(-1, -2) * (head_dim**-0.5 if scale is None else scale)
    else:
        query, key = functional.normalize(query, dim=-1), functional.normalize(key, dim=-1)
        scores = query @ key.transpose(-1, -2) * logit_scale.to(qkv.dtype)[:, None, None]
    if bias is not None:
        scores = scores + expand_table(bias, window).to(qkv.dtype)
    weights = (scores + region_mask(height, width, window, shift, qkv).repeat(batch, 1, 1, 1)).softmax(-1)
    if keep is not None:
        weights = weights * keep / (1 - dropout_p)
    attended = (weights @ value).transpose(1, 2).reshape(-1, tokens, stacked // 3)
    return reverse_partition(attended, height, width, window, shift, pad_mode)


def roll_partition(image, window, shift, pad_mode="pad_then_roll", padding=None):
    """Return the windows of a map, (batch · windows, tokens, channels)."""
    back = (-shift[0], -shift[1])
    if pad_mode == "roll_then_pad":
        image = image.roll(back, dims=(1, 2))
    batch, height, width, channels = image.shape
    rows, columns = -height % window[0], -width % window[1]
    if padding is None:
        padding = image.new_zeros(channels)
    padding = padding.to(image.dtype)
    image = torch.cat([image, padding.expand(batch, rows, width, channels)], dim=1)
    image = torch.cat([image, padding.expand(batch, height + rows, columns, channels)], dim=2)
    if pad_mode == "pad_then_roll":
        image = image.roll(back, dims=(1, 2))
    return cut(image, window)


def reverse_partition(windows, height, width, window, shift, pad_mode="pad_then_roll"):
    """Return the map (batch, height, width, channels) that the windows were cut from."""
    grid = (-(-height // window[0]), -(-width // window[1]))
    image = windows.view(-1, *grid, *window, windows.shape[-1]).transpose(2, 3)
    image = image.reshape(-1, grid[0] * window[0], grid[1] * window[1], windows.shape[-1])
    if pad_mode == "roll_then_pad":
        return image[:, :height, :width].roll(shift, dims=(1, 2))
    return image.roll(shift, dims=(1, 2))[:, :height, :width]


def cut(image, window):
    """Cut (batch, rows, columns, channels) into (batch · windows, tokens, channels)."""
    batch, rows, columns, channels = image.shape
    image = image.view(batch, rows // window[0], window[0], columns // window[1], window[1], channels)
    return image.transpose(2, 3).reshape(-1, window[0] * window[1], channels)


def expand_table(table, window):
    """Return the bias of each head, query and key, (heads, tokens, tokens), from a table by their offsets."""
    row, column = (axis.flatten() for axis in torch.meshgrid(*(torch.arange(size) for size in window), indexing="ij"))
    rows, columns = row[:, None] - row + window[0] - 1, column[:, None] - column + window[1] - 1
    table = table.view(2 * window[0] - 1, 2 * window[1] - 1, -1)
    return table[rows.to(table.device), columns.to(table.device)].permute(2, 0, 1)


def region_mask(height, width, window, shift, like):
    """Return -100 between tokens that only the roll brought together, (windows, 1, tokens, tokens) like ``like``."""
    wrapped = []
    for size, side, rolled in zip((height, width), window, shift, strict=True):
        position = torch.arange(size + -size % side)
        wrapped.append(position.roll(-rolled) < position)
    part = 2 * wrapped[0].long()[:, None] + wrapped[1].long()
    part = cut(part[None, :, :, None], window)
    return torch.where(part == part.transpose(1, 2), 0.0, -100.0)[:, None].to(like)
