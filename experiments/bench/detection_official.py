"""The official structure of DETR, for measurements beside it.

Written from the paper (Carion et al. 2020, https://arxiv.org/abs/2005.12872) and the names of the official weights. As
there, tokens come before the batch and padding is masked, and attention is torch's ``nn.MultiheadAttention``; unlike
there it is told ``need_weights=False``, without which torch's fused attention is never used.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models
from torchvision.ops import FrozenBatchNorm2d

from lit_models.detection.network import Predictions


class OfficialDETR(nn.Module):
    """DETR under the names of the official weights, norms after the sublayers.

    Args:
        num_classes: Classes of objects; one more output stands for no object.
        backbone: Name of torchvision's ResNet.
        dilation: DC5.
        dim: Width.
        num_heads: Attention heads.
        layers: Layers of the encoder, and of the decoder.
        feed_forward_dim: Width inside the feed-forward networks.
        num_queries: Object queries.
        dropout: On attention weights, inside the feed-forward networks and on every branch.
    """

    def __init__(
        self,
        num_classes: int = 91,
        *,
        backbone: str = "resnet50",
        dilation: bool = False,
        dim: int = 256,
        num_heads: int = 8,
        layers: int = 6,
        feed_forward_dim: int = 2048,
        num_queries: int = 100,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.dim, self.dropout = dim, dropout
        resnet = models.get_model(
            backbone,
            weights=None,
            norm_layer=FrozenBatchNorm2d,
            replace_stride_with_dilation=[False, False, dilation],
        )
        body = nn.Module()
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            body.add_module(name, getattr(resnet, name))
        for name, parameter in body.named_parameters():
            parameter.requires_grad_(name.startswith(("layer2", "layer3", "layer4")))
        features = nn.Module()
        features.add_module("body", body)
        self.backbone = nn.ModuleList([features])
        self.input_proj = nn.Conv2d(resnet.fc.in_features, dim, 1)
        self.transformer = _Transformer(dim, num_heads, layers, feed_forward_dim, dropout)
        self.query_embed = nn.Embedding(num_queries, dim)
        self.class_embed = nn.Linear(dim, num_classes + 1)
        self.bbox_embed = nn.Module()
        self.bbox_embed.add_module("layers", nn.ModuleList(nn.Linear(dim, width) for width in (dim, dim, 4)))
        for parameter in self.transformer.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, images: Tensor, padding: Tensor) -> Predictions:
        """Predict the objects of a padded batch, after each layer of the decoder.

        Args:
            images: (batch, 3, height, width) float32.
            padding: (batch, height, width) bool, True outside the images.
        """
        features = images
        for stage in self.backbone[0].body.children():  # type: ignore[union-attr]
            features = stage(features)
        masked = functional.interpolate(padding[None].float(), size=features.shape[-2:]).bool()[0]
        sources = self.input_proj(features).flatten(2).permute(2, 0, 1)
        positions = sine_positions(masked, self.dim).flatten(2).permute(2, 0, 1)
        states = self.transformer(sources, masked.flatten(1), self.query_embed.weight, positions)
        boxes = states
        *hidden, last = self.bbox_embed.layers  # type: ignore[misc]
        for layer in hidden:
            boxes = functional.relu(layer(boxes))
        return Predictions(self.class_embed(states)[:, None], last(boxes).sigmoid()[:, None])


def sine_positions(masked: Tensor, dim: int) -> Tensor:
    """Return the positions (batch, dim, rows, columns) of cells, counted over those that are not masked."""
    parts = []
    for axis in (1, 2):
        place = (~masked).cumsum(axis, dtype=torch.float32)
        place = place / (place.select(axis, -1).unsqueeze(axis) + 1e-6) * 2 * math.pi
        pairs = torch.arange(dim // 2, device=masked.device).div(2, rounding_mode="floor")
        angles = place[..., None] / 10000 ** (4 * pairs / dim)
        parts.append(torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=4).flatten(3))
    return torch.cat(parts, dim=3).permute(0, 3, 1, 2)


class _Transformer(nn.Module):
    def __init__(self, dim: int, num_heads: int, layers: int, feed_forward_dim: int, dropout: float) -> None:
        super().__init__()
        settings = (dim, num_heads, feed_forward_dim, dropout)
        self.encoder, self.decoder = nn.Module(), nn.Module()
        self.encoder.add_module("layers", nn.ModuleList(_Layer(*settings) for _ in range(layers)))
        self.decoder.add_module("layers", nn.ModuleList(_DecoderLayer(*settings) for _ in range(layers)))
        self.decoder.add_module("norm", nn.LayerNorm(dim))

    def forward(self, sources: Tensor, masked: Tensor, queries: Tensor, positions: Tensor) -> Tensor:
        """Return the normed state after each layer of the decoder, (layers, batch, queries, dim)."""
        for layer in self.encoder.layers:  # type: ignore[union-attr]
            sources = layer.feed_forward(layer.attend(sources, positions, masked), layer.norm2, layer.dropout2)
        query_positions = queries[:, None].expand(-1, sources.shape[1], -1)
        state, states = torch.zeros_like(query_positions), []
        for layer in self.decoder.layers:  # type: ignore[union-attr]
            state = layer(state, query_positions, sources, positions, masked)
            states.append(self.decoder.norm(state))  # type: ignore[operator]
        return torch.stack(states).transpose(1, 2)


class _Layer(nn.Module):
    def __init__(self, dim: int, num_heads: int, feed_forward_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, num_heads, dropout=dropout)
        self.linear1, self.linear2 = nn.Linear(dim, feed_forward_dim), nn.Linear(feed_forward_dim, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout, self.dropout1, self.dropout2 = (nn.Dropout(dropout) for _ in range(3))

    def attend(self, state: Tensor, positions: Tensor, masked: Tensor | None) -> Tensor:
        located = state + positions
        attended, _ = self.self_attn(located, located, state, key_padding_mask=masked, need_weights=False)
        return self.norm1(state + self.dropout1(attended))

    def feed_forward(self, state: Tensor, norm: nn.Module, dropout: nn.Module) -> Tensor:
        hidden = self.dropout(functional.relu(self.linear1(state)))
        return norm(state + dropout(self.linear2(hidden)))


class _DecoderLayer(_Layer):
    def __init__(self, dim: int, num_heads: int, feed_forward_dim: int, dropout: float) -> None:
        super().__init__(dim, num_heads, feed_forward_dim, dropout)
        self.multihead_attn = nn.MultiheadAttention(dim, num_heads, dropout=dropout)
        self.norm3, self.dropout3 = nn.LayerNorm(dim), nn.Dropout(dropout)

    def forward(self, state: Tensor, queries: Tensor, memory: Tensor, positions: Tensor, masked: Tensor) -> Tensor:
        state = self.attend(state, queries, None)
        attended, _ = self.multihead_attn(
            state + queries, memory + positions, memory, key_padding_mask=masked, need_weights=False
        )
        return self.feed_forward(self.norm2(state + self.dropout2(attended)), self.norm3, self.dropout3)
