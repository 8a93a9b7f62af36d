"""Shifted-window attention in plain PyTorch: the path on a CPU.

What is large never exists: the map is worked on a few windows at a time, so that their scores stay in the cache, and
the backward computes the scores again. Whatever the dtype of the map, it computes in float32 or better.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from kernels.dropout import dropout
from kernels.library import LIBRARY, first_order, implement, refuse_transforms
from kernels.window_attention.geometry import Geometry
from kernels.window_attention.layout import layout, relative

_SMALLEST_NORM = 1e-12  # as in torch's normalize


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
    refuse_transforms("window_attention")
    keep = None
    if dropout_p > 0.0:
        rows, columns = geometry.grid
        shape = (qkv.shape[0], rows * columns, num_heads, geometry.tokens, geometry.tokens)
        keep = dropout(torch.ones(shape, dtype=_computed(qkv), device=qkv.device), dropout_p)
    cut = (*geometry.window, *geometry.shift)
    return _WindowAttention.apply(qkv, bias, qkv_padding, logit_scale, keep, cut, geometry.roll_first, num_heads, scale)


_ARGUMENTS = (
    "Tensor qkv, Tensor? bias, Tensor? qkv_padding, Tensor? logit_scale, Tensor? keep, int[4] cut, bool roll_first, "
    "int num_heads, float scale"
)
LIBRARY.define(f"window_attention_torch({_ARGUMENTS}) -> Tensor", tags=torch.Tag.pt2_compliant_tag)
LIBRARY.define(
    f"window_attention_torch_backward(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)


class _WindowAttention(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, *inputs: Any) -> Tensor:
        context.save_for_backward(*inputs[:5])
        context.settings = inputs[5:]
        return torch.ops.heddle.window_attention_torch(*inputs)

    @staticmethod
    def backward(context: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = first_order(
            "window_attention",
            torch.ops.heddle.window_attention_torch_backward,
            grad,
            *context.saved_tensors,
            *context.settings,
        )
        needed = context.needs_input_grad[:4]
        return *(grad if wanted else None for grad, wanted in zip(gradients, needed, strict=True)), *(None,) * 5


def _forward(
    qkv: Tensor,
    bias: Tensor | None,
    qkv_padding: Tensor | None,
    logit_scale: Tensor | None,
    keep: Tensor | None,
    *settings: Any,
) -> Tensor:
    """Implement ``heddle::window_attention_torch``."""
    output = _forward_fake(qkv)
    work = _Work(qkv, bias, qkv_padding, logit_scale, keep, *settings)
    attended = work.windows(1)[0]
    for examples, map_rows, parts in work.groups():
        for rows, index in parts:
            work.load(map_rows, index)
            torch.bmm(work.dropped(work.weights(index), examples, index), work.value, out=attended[rows])
        work.take(attended.view(-1, work.head_dim), work.places(work.layout.output_places, examples), output[examples])
    return output


def _backward(
    grad: Tensor,
    qkv: Tensor,
    bias: Tensor | None,
    qkv_padding: Tensor | None,
    logit_scale: Tensor | None,
    keep: Tensor | None,
    *settings: Any,
) -> tuple[Tensor, ...]:
    """Implement ``heddle::window_attention_torch_backward``."""
    work = _Work(qkv, bias, qkv_padding, logit_scale, keep, *settings)
    heads, tokens = work.heads, work.tokens
    grad_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    grad_bias = work.new(heads * tokens * tokens).zero_()
    grad_padding = work.new(3, heads, work.head_dim).zero_()
    grad_logit = work.new(heads).zero_()
    grads, upstream, grad_scores = work.windows(3), work.part(work.head_dim), work.part(tokens)
    nothing = grad.new_zeros(grad.shape[3])
    for examples, map_rows, parts in work.groups():
        grad_rows = work.rows(grad[examples], nothing)
        for rows, index in parts:
            size = rows.stop - rows.start
            work.load(map_rows, index)
            weights = work.weights(index)
            work.take(grad_rows, work.layout.output_rows[index].flatten(), upstream[:size])
            torch.bmm(work.dropped(weights, examples, index).mT, upstream[:size], out=grads[2, rows])
            scores = torch.bmm(upstream[:size], work.value.mT, out=grad_scores[:size])
            scores = work.dropped(scores, examples, index).mul_(weights)
            torch.addcmul(scores, weights, scores.sum(-1, keepdim=True), value=-1, out=scores)
            if bias is not None:
                grad_bias += scores.view(-1, heads * tokens * tokens).sum(0)
            torch.bmm(scores, work.key, out=grads[0, rows])
            torch.bmm(scores.mT, work.query, out=grads[1, rows])
            work.scale_back(grads[0, rows], grads[1, rows], grad_logit)
        work.take(grads.view(-1, work.head_dim), work.places(work.layout.qkv_places, examples), grad_qkv[examples])
        if qkv_padding is not None:
            grad_padding += work.padded(grads, examples).sum((0, 2))
    return (
        grad_qkv,
        _grad_table(grad_bias, bias, settings[0], heads),
        _like(grad_padding.flatten(), qkv_padding),
        _like(grad_logit, logit_scale),
    )


class _Work:
    """Goes over the windows of a map, some at a time: ``index`` says which, as (examples of the group, windows).

    Attributes:
        query: (matrices, tokens, head_dim) of the windows loaded last, one matrix for each window and head, times the
            factor of the scores.
        key, value: Likewise.
    """

    def __init__(
        self,
        qkv: Tensor,
        bias: Tensor | None,
        qkv_padding: Tensor | None,
        logit_scale: Tensor | None,
        keep: Tensor | None,
        cut: list[int],
        roll_first: bool,
        num_heads: int,
        scale: float,
    ) -> None:
        batch, height, width, stacked = qkv.shape
        geometry = Geometry(height, width, (cut[0], cut[1]), (cut[2], cut[3]), roll_first)
        self.layout = layout(geometry, num_heads, batch, qkv.device)
        self.heads, self.tokens, self.head_dim = num_heads, geometry.tokens, stacked // (3 * num_heads)
        self.qkv, self.keep, self.scale, self.has_padding = qkv, keep, scale, geometry.has_padding
        self.padding = qkv.new_zeros(stacked) if qkv_padding is None else qkv_padding.to(qkv.dtype)
        self.dtype = _computed(qkv)
        self.logit_scale = None if logit_scale is None else logit_scale.to(self.dtype).view(-1, 1, 1)
        table = None if bias is None else _expand(bias.to(self.dtype), geometry.window)
        self.biases = [
            (first, end, table if mask is None else mask.to(self.dtype) if table is None else table + mask)
            for first, end, mask in self.layout.maskings
        ]
        self.buffers = [self.part(self.head_dim) for _ in range(3)]
        self.scores = self.part(self.tokens)

    def new(self, *shape: int) -> Tensor:
        """Return an empty tensor of the dtype that is computed in."""
        return self.qkv.new_empty(shape, dtype=self.dtype)

    def part(self, columns: int) -> Tensor:
        """Return room for what is worked on at a time, (matrices, tokens, columns)."""
        return self.new(self.layout.examples * self.layout.windows * self.heads, self.tokens, columns)

    def windows(self, count: int) -> Tensor:
        """Return room for ``count`` times the windows of a group, (count, matrices, tokens, head_dim)."""
        matrices = self.layout.examples * self.layout.qkv_rows.shape[1] * self.heads
        if self.dtype != self.qkv.dtype:
            self.narrow = self.qkv.new_empty(count * matrices * self.tokens, self.head_dim)
        return self.new(count, matrices, self.tokens, self.head_dim)

    def groups(self) -> Iterator[tuple[slice, Tensor, list[tuple[slice, tuple[slice, slice]]]]]:
        """Yield the examples of each group, the rows of their map, and its parts: their matrices and ``index``."""
        batch, windows, together = len(self.qkv), self.layout.qkv_rows.shape[1], self.layout.windows
        for start in range(0, batch, self.layout.examples):
            examples = slice(start, min(start + self.layout.examples, batch))
            count = examples.stop - start
            parts = []
            for first in range(0, windows, together):
                end = min(first + together, windows)
                # A group of more than one example has one part.
                matrices = slice(first * self.heads, (first + count * (end - first)) * self.heads)
                parts.append((matrices, (slice(count), slice(first, end))))
            yield examples, self.rows(self.qkv[examples], self.padding), parts

    def rows(self, maps: Tensor, padding: Tensor) -> Tensor:
        """Return (examples, height, width, channels) as rows of ``head_dim``, with padding after each example."""
        maps = maps.flatten(1, 2)
        if self.has_padding:
            maps = torch.cat([maps, padding.expand(len(maps), 1, -1)], dim=1)
        return maps.reshape(-1, self.head_dim)

    def load(self, map_rows: Tensor, index: tuple[slice, slice]) -> None:
        """Gather queries, keys and values, and scale or normalise them."""
        rows = self.layout.qkv_rows[index].flatten()
        size = len(rows) // self.tokens
        for part, buffer in enumerate(self.buffers):
            self.take(map_rows[part * self.heads :], rows, buffer[:size])
        self.query, self.key, self.value = (buffer[:size] for buffer in self.buffers)
        if self.logit_scale is None:
            self.query.mul_(self.scale)
            return
        self.norms = [
            torch.linalg.vector_norm(side, dim=-1, keepdim=True).clamp_min_(_SMALLEST_NORM)
            for side in (self.query, self.key)
        ]
        self.key.div_(self.norms[1])
        self._by_head(self.query.div_(self.norms[0])).mul_(self.logit_scale)

    def take(self, rows: Tensor, index: Tensor, out: Tensor) -> None:
        """Gather rows into ``out``, contiguous; one of the two may be of the map's dtype, in which rows are moved."""
        flat = out.view(-1, self.head_dim)
        if rows.dtype == out.dtype:
            torch.index_select(rows, 0, index, out=flat)
            return
        # Room that is used again and again costs no page faults.
        narrow = self.narrow[: len(rows) if rows.dtype == self.dtype else len(flat)]
        if rows.dtype == self.dtype:
            torch.index_select(narrow.copy_(rows), 0, index, out=flat)
        else:
            flat.copy_(torch.index_select(rows, 0, index, out=narrow))

    def scale_back(self, grad_query: Tensor, grad_key: Tensor, grad_logit: Tensor) -> None:
        """Turn the gradients of what ``load`` left into those of what it read, in place; use up ``query``."""
        if self.logit_scale is None:
            grad_query.mul_(self.scale)
            return
        self._by_head(self.query).div_(self.logit_scale)
        self._by_head(grad_query).mul_(self.logit_scale)
        for unit, norm, grad in ((self.query, self.norms[0], grad_query), (self.key, self.norms[1], grad_key)):
            along = (unit * grad).sum(-1, keepdim=True)
            if unit is self.query:
                grad_logit += (self._by_head(along) / self.logit_scale).sum((0, 2, 3))
            torch.addcmul(grad, unit, along, value=-1, out=grad).div_(norm)

    def weights(self, index: tuple[slice, slice]) -> Tensor:
        """Return the softmax of the scores, (matrices, tokens, tokens); the next call overwrites it."""
        scores = self._scores(index)
        if scores.is_cuda:
            return torch.softmax(scores, -1)
        # The largest score of a window costs a fraction of that of each row. What is next to nothing becomes 0, as a
        # processor is many times slower at numbers below the normal ones, such as exp(-100) in float32.
        lowest = 0.9 * math.log(torch.finfo(scores.dtype).tiny)
        scores.sub_(scores.amax((1, 2), keepdim=True)).clamp_min_(lowest).exp_()
        torch.threshold_(scores, 2.0 * math.exp(lowest), 0.0)
        sums = scores.sum(-1, keepdim=True)
        if sums.numel() and sums.min() > math.exp(0.7 * lowest):
            return scores.mul_(sums.reciprocal_())
        return torch.softmax(self._scores(index), -1)  # a row lies far below another, or something is not finite

    def dropped(self, values: Tensor, examples: slice, index: tuple[slice, slice]) -> Tensor:
        """Multiply by the dropout mask, if there is one, in a new tensor."""
        return values if self.keep is None else values * self.keep[examples, index[1]].flatten(0, 2)

    def places(self, places: Tensor, examples: slice) -> Tensor:
        """Return the places of the rows of so many examples."""
        return places[: examples.stop - examples.start].flatten()

    def padded(self, windows: Tensor, examples: slice) -> Tensor:
        """Return what padded tokens hold, (padded tokens, 3, examples, heads, head_dim), of three stacked windows."""
        window, position = self.layout.padding
        windows = windows.view(3, self.layout.examples, -1, self.heads, self.tokens, self.head_dim)
        return windows[:, : examples.stop - examples.start, window, :, position]

    def _scores(self, index: tuple[slice, slice]) -> Tensor:
        scores = torch.bmm(self.query, self.key.mT, out=self.scores[: len(self.query)])
        first, end = index[1].start, index[1].stop
        windows = scores.view(index[0].stop, end - first, self.heads, self.tokens, self.tokens)
        for start, stop, bias in self.biases:
            if bias is not None and start < end and stop > first:
                windows[:, max(start - first, 0) : stop - first].add_(bias)
        return scores

    def _by_head(self, matrices: Tensor) -> Tensor:
        return matrices.view(-1, self.heads, *matrices.shape[1:])


def _computed(qkv: Tensor) -> torch.dtype:
    return torch.promote_types(qkv.dtype, torch.float32)


def _expand(table: Tensor, window: tuple[int, int]) -> Tensor:
    """Return the bias of each head, query and key from the table."""
    return table[relative(window, table.device)].permute(2, 0, 1).contiguous()


def _grad_table(grad: Tensor, bias: Tensor | None, cut: list[int], heads: int) -> Tensor:
    """Sum the gradient of what :func:`_expand` returns into the table, in the same order every time."""
    if bias is None:
        return grad.new_empty(0)
    rows = relative((cut[0], cut[1]), grad.device)
    table = grad.new_zeros(bias.shape).index_put_((rows,), grad.view(heads, *rows.shape).permute(1, 2, 0), True)
    return table.to(bias.dtype)


def _like(grad: Tensor, input: Tensor | None) -> Tensor:
    return grad.new_empty(0) if input is None else grad.to(input.dtype)


@torch.library.register_fake("heddle::window_attention_torch", lib=LIBRARY)
def _forward_fake(qkv: Tensor, *_: Any) -> Tensor:
    return qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)


@torch.library.register_fake("heddle::window_attention_torch_backward", lib=LIBRARY)
def _backward_fake(grad: Tensor, qkv: Tensor, *optional: Tensor | None) -> tuple[Tensor, ...]:
    def like(input: Tensor | None) -> Tensor:
        return qkv.new_empty(0, dtype=_computed(qkv)) if input is None else torch.empty_like(input)

    return torch.empty_like(qkv, memory_format=torch.contiguous_format), *map(like, optional[:3])


implement("window_attention_torch", _forward)
implement("window_attention_torch_backward", _backward)
