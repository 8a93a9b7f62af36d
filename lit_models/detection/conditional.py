"""Conditional DETR, with groups of queries.

Meng et al. 2021, "Conditional DETR for Fast Training Convergence", https://arxiv.org/abs/2108.06152; Chen et al. 2022,
"Group DETR: Fast DETR Training with Group-Wise One-to-Many Assignment", https://arxiv.org/abs/2207.13085.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kernels import flash_attention
from lit_models.checks import check_at_least
from lit_models.classification.blocks import plain_settings
from lit_models.detection.backbone import Backbone
from lit_models.detection.detr import DETR, PositionKind
from lit_models.detection.positions import sine_encoding
from lit_models.detection.transformer import MLP, DecoderLayer, LayerConfig, Memory
from lit_models.layers import NormOrder
from lit_models.layers.attention import attend_packed

# Before training each class has this probability, so that the many queries without an object do not swamp the loss.
PRIOR = 0.01


class Queries(NamedTuple):
    """What the decoder's layers know of the queries of all groups, which no image changes.

    Attributes:
        positions: (groups·queries, dim).
        reference: (groups·queries, 2), the point (x, y) that a box's centre is relative to, before its sigmoid.
        place: Sine encoding of that point: (groups·queries, dim), or (batch, groups·queries, dim) after the first
            layer, where the query's content transforms it.
        groups: Number of groups.
    """

    positions: Tensor
    reference: Tensor
    place: Tensor
    groups: int


class ConditionalSelfAttention(nn.Module):
    """Self-attention among the queries of a group, with projections of content and position apart.

    Args:
        dim: Width.
        num_heads: Number of heads; divides ``dim``.
        dropout: Probability of dropping an attention weight in training.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query_content, self.query_position = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.key_content, self.key_position = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.value, self.output = nn.Linear(dim, dim), nn.Linear(dim, dim)
        _reset(self)

    def forward(self, input: Tensor, queries: Queries) -> Tensor:
        """Map (batch, groups·queries, dim) to the same shape; groups do not see each other."""
        query = self.query_content(input) + self.query_position(queries.positions)
        key = self.key_content(input) + self.key_position(queries.positions)
        # A group is one more row of the batch.
        query, key, value = (
            _heads(tensor.unflatten(1, (queries.groups, -1)).flatten(0, 1), self.num_heads)
            for tensor in (query, key, self.value(input))
        )
        attended = flash_attention(query, key, value, dropout_p=self.dropout if self.training else 0.0)
        return self.output(attended.transpose(1, 2).reshape(input.shape))


class ConditionalCrossAttention(nn.Module):
    """Attention to the image in which content and place each have their half of every head (section 3.3).

    The score is the sum of a content score and a spatial one, since queries and keys are concatenations.

    Args:
        dim: Width.
        num_heads: Number of heads; divides ``dim``.
        dropout: Probability of dropping an attention weight in training.
        first: Whether this is the first layer, where content is zero and positions are added to it.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float, *, first: bool) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query_content, self.query_place = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.query_position = nn.Linear(dim, dim) if first else None
        self.key_content, self.key_position = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.value, self.output = nn.Linear(dim, dim), nn.Linear(dim, dim)
        _reset(self)

    def forward(self, input: Tensor, queries: Queries, memory: Memory) -> Tensor:
        """Map (batch, groups·queries, dim) to the same shape; all groups are queries to one image."""
        query, key, value = self.project_positioned(input, queries, memory)
        dropout_p = self.dropout if self.training else 0.0
        if memory.packing is None:
            attended = flash_attention(query, key, value, dropout_p=dropout_p).transpose(1, 2)
        else:
            attended = attend_packed(query, key, value, memory.packing, dropout_p)
        return self.output(attended.reshape(input.shape))

    def project_positioned(self, input: Tensor, queries: Queries, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries and keys, twice as wide as values, laid out as the memory is."""
        content, place = self.query_content(input), self.query_place(queries.place).expand_as(input)
        key_content, key_place = self.key_content(memory.content), self.key_position(memory.positions)
        if self.query_position is not None:
            content, key_content = content + self.query_position(queries.positions), key_content + key_place
        halves = [
            [_heads(memory.rows(half), self.num_heads) for half in (content, place)],
            [_heads(half, self.num_heads) for half in (key_content, key_place.expand_as(key_content))],
        ]
        query, key = (torch.cat(pair, dim=-1) for pair in halves)
        return query, key, _heads(self.value(memory.content), self.num_heads)


class ConditionalDETR(DETR):
    """DETR whose queries look where their reference points are; it converges in a tenth of the epochs.

    The classes are read by a sigmoid each, so that there is no column for no object. Everything else is as in
    :class:`DETR`.

    Args:
        num_classes: Classes of objects.
        backbone: As in :class:`DETR`, and so on.
        dim: A multiple of 4.
        num_heads: Attention heads.
        encoder_layers: Layers of the encoder.
        decoder_layers: Layers of the decoder.
        feed_forward_dim: Width inside the feed-forward networks.
        num_queries: Objects that can be found in an image; the paper has 300.
        groups: Groups of as many queries again, each matched to all objects on its own in training; they see the same
            image and not each other. Evaluation has the first group alone. Group DETR has 11.
        dropout: On attention weights, inside the feed-forward networks and on every branch.
        norm_order: ``"post"`` as published, or ``"pre"``.
        positions: ``"sine"`` or ``"learned"``.
        position_length: Rows and columns of the largest feature map of learned positions.

    Raises:
        ValueError: If the arguments do not fit together; the message names them.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: Backbone | Mapping[str, Any] | str = "resnet50",
        dim: int = 256,
        num_heads: int = 8,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        feed_forward_dim: int = 2048,
        num_queries: int = 300,
        groups: int = 1,
        dropout: float = 0.1,
        norm_order: NormOrder = "post",
        positions: PositionKind = "sine",
        position_length: int = 50,
    ) -> None:
        settings = plain_settings(locals())
        check_at_least("groups", groups, 1)
        if dim % 4:
            raise ValueError(f"dim must be a multiple of 4 for the reference points, got {dim}")
        super().__init__(num_classes, **{name: value for name, value in settings.items() if name != "groups"})
        self.settings, self.groups = {**self.settings, "groups": groups}, groups
        self.query_embedding = nn.Embedding(groups * num_queries, dim)
        self.reference_head = MLP(dim, 2, 2)
        # Xavier as all matrices of the published Transformer.
        _reset(self.reference_head)
        self.place_scale = MLP(dim, dim, 2) if decoder_layers > 1 else None
        if self.place_scale is not None:
            _reset(self.place_scale)
        self.class_head = nn.Linear(dim, num_classes)
        nn.init.constant_(self.class_head.bias, -math.log((1 - PRIOR) / PRIOR))
        last: Any = self.box_head.layers[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def _decoder_layer(self, config: LayerConfig, number: int, layers: int) -> DecoderLayer:
        sizes = (config.dim, config.num_heads, config.dropout)
        cross_attention = ConditionalCrossAttention(*sizes, first=number == 0)
        return DecoderLayer(config, ConditionalSelfAttention(*sizes), cross_attention, last=number == layers - 1)

    def _queries(self) -> Queries:
        positions = self.query_embedding.weight[: self._active_queries]
        # A point of an image needs more digits than bfloat16 has.
        with torch.autocast(positions.device.type, enabled=False):
            reference = self.reference_head(positions)
        # (x, y) of the reference, but the row's half comes first, as in the image's positions.
        angles = reference.float().sigmoid().flip(-1) * (2 * math.pi)
        place = sine_encoding(angles, positions.shape[-1] // 2).flatten(-2).to(positions.dtype)
        return Queries(positions, reference, place, len(positions) // self.num_queries)

    def _aim(self, queries: Queries, number: int, residual: Tensor) -> Queries:
        if number == 0 or self.place_scale is None:
            return queries
        return queries._replace(place=queries.place * self.place_scale(residual))

    def _boxes(self, states: Tensor, queries: Queries) -> Tensor:
        reference = queries.reference.to(states.dtype).unflatten(0, (queries.groups, 1, -1))
        boxes = self.box_head(states)
        return torch.cat([boxes[..., :2] + reference, boxes[..., 2:]], dim=-1)


def _heads(tensor: Tensor, num_heads: int) -> Tensor:
    """View (batch, length, dim) as (batch, heads, length, head_dim)."""
    return tensor.unflatten(2, (num_heads, -1)).transpose(1, 2)


def _reset(module: nn.Module) -> None:
    """Draw the matrices Xavier-uniform; biases are torch's, but that of the output is zero."""
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
        elif name == "output.bias":
            nn.init.zeros_(parameter)
