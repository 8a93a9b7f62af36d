"""DETR (Carion et al. 2020, "End-to-End Object Detection with Transformers", https://arxiv.org/abs/2005.12872)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels import attention_weights
from lit_models.checks import check_at_least
from lit_models.classification.blocks import plain_settings
from lit_models.detection.backbone import Backbone, build_backbone
from lit_models.detection.network import Detector, Predictions
from lit_models.detection.positions import LearnedPositions2d, SinePositions2d, TokenLayout
from lit_models.detection.transformer import (
    MLP,
    CrossAttention,
    DecoderLayer,
    EncoderLayer,
    LayerConfig,
    Memory,
    SelfAttention,
)
from lit_models.layers import LayerNorm, NormOrder

PositionKind = Literal["sine", "learned"]


class AttentionMaps(NamedTuple):
    """Where the last layers look in one image; float32, each map sums to 1.

    Attributes:
        encoder: (heads, rows, columns, rows, columns): from each cell of the features to all cells.
        decoder: (heads, queries, rows, columns).
    """

    encoder: Tensor
    decoder: Tensor


class DETR(Detector):
    """A backbone, an encoder over its features, a decoder over object queries, and two heads that all layers share.

    Args:
        num_classes: Classes of objects; the logits have one more column, the last, for no object.
        backbone: A backbone, the settings of one, or the name of a ResNet.
        dim: Width; ``num_heads`` divides it.
        num_heads: Attention heads.
        encoder_layers: Layers of the encoder.
        decoder_layers: Layers of the decoder.
        feed_forward_dim: Width inside the feed-forward networks.
        num_queries: Objects that can be found in an image.
        dropout: On attention weights, inside the feed-forward networks and on every branch.
        norm_order: ``"post"`` as published; ``"pre"`` trains from scratch more easily.
        positions: ``"sine"`` over the valid area of an image, or ``"learned"``.
        position_length: Rows and columns of the largest feature map of learned positions; without effect on others.

    Attributes:
        grad_checkpointing: Keep only each layer's input for the backward pass and compute the rest again.
        groups: Groups of queries in training; 1.

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
        num_queries: int = 100,
        dropout: float = 0.1,
        norm_order: NormOrder = "post",
        positions: PositionKind = "sine",
        position_length: int = 50,
    ) -> None:
        super().__init__()
        settings = plain_settings(locals())
        for name in ("encoder_layers", "decoder_layers", "num_queries"):
            check_at_least(name, settings[name], 1)
        check_at_least("num_classes", num_classes, 1)
        if positions not in ("sine", "learned"):
            raise ValueError(f"positions must be sine or learned, got {positions!r}")
        config = LayerConfig(dim, num_heads, feed_forward_dim, dropout, norm_order)
        self.num_classes, self.num_queries, self.groups = num_classes, num_queries, 1
        self.grad_checkpointing = False
        self.backbone = build_backbone(backbone)
        self.settings = {**settings, "backbone": dict(self.backbone.settings)}
        self.input_projection = nn.Conv2d(self.backbone.channels, dim, 1)
        self.positions = SinePositions2d(dim) if positions == "sine" else LearnedPositions2d(dim, position_length)
        self.encoder_input_norm = LayerNorm(dim) if norm_order == "pre" else nn.Identity()
        self.encoder_layers = nn.ModuleList(EncoderLayer(config) for _ in range(encoder_layers))
        self.decoder_input_norm = LayerNorm(dim) if norm_order == "pre" else nn.Identity()
        self.decoder_layers = nn.ModuleList(
            self._decoder_layer(config, number, decoder_layers) for number in range(decoder_layers)
        )
        self.decoder_norm = LayerNorm(dim)
        # From N(0, 1), torch's own: what the queries are is their positions, and content starts at zero.
        self.query_embedding = nn.Embedding(num_queries, dim)
        self.class_head = nn.Linear(dim, num_classes + 1)
        self.box_head = MLP(dim, 4, 3)

    def forward(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> Predictions:
        """Predict the objects of a padded batch.

        Args:
            images: (batch, 3, height, width) floating point, normalised, zeros right of and below each image.
            sizes: (height, width) of each image inside the padding.

        Raises:
            ValueError: If the images and their sizes do not fit each other.
        """
        memory, _ = self.encode(images, sizes)
        queries = self._queries()
        states = self.decode(queries, memory, len(sizes))
        # Boxes need more digits than bfloat16 has.
        with torch.autocast(states.device.type, enabled=False):
            states = states.to(self.class_head.weight.dtype)
            return Predictions(self.class_head(states).float(), self._boxes(states, queries).float().sigmoid())

    def encode(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> tuple[Memory, TokenLayout]:
        """Return what the decoder attends to, and where its tokens lie in the images."""
        _check_batch(images, sizes)
        features = self.input_projection(self.backbone(images))
        layout = TokenLayout.of(features, sizes, (images.shape[2], images.shape[3]))
        positions = self.positions(layout).to(self.input_projection.weight.dtype)
        packing, residual = layout.self_packing(), layout.tokens(features)
        input = self.encoder_input_norm(residual)
        for layer in self.encoder_layers:
            input, residual = self._run(layer, input, residual, positions, packing)
        return Memory(input, input + positions, positions, layout.cross_packing(self._active_queries)), layout

    def decode(self, queries: Any, memory: Memory, batch: int) -> Tensor:
        """Return the normed state after each layer, (layers, groups, batch, queries, dim).

        The norm reads copies: each layer goes on with the state as it was.
        """
        residual = memory.content.new_zeros(batch, self._active_queries, memory.content.shape[-1])
        input, states = self.decoder_input_norm(residual), []
        for number, layer in enumerate(self.decoder_layers):
            input, residual = self._run(layer, input, residual, self._aim(queries, number, residual), memory)
            states.append(residual)
        return self.decoder_norm(torch.stack(states)).unflatten(2, (-1, self.num_queries)).transpose(1, 2)

    @torch.no_grad()
    def attention_maps(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[AttentionMaps]:
        """Return where the last layers look in each image, in evaluation mode.

        The fused kernels hold no weights, so the last layers' are computed once more beside them.
        """
        seen: dict[nn.Module, tuple[Any, ...]] = {}
        modules = (self.encoder_layers[-1].self_attention, self.decoder_layers[-1].cross_attention)
        hooks = [module.register_forward_pre_hook(seen.__setitem__) for module in modules]  # type: ignore[union-attr]
        was_training = self.training
        self.eval()
        memory, layout = self.encode(images, sizes)
        self.decode(self._queries(), memory, len(sizes))
        self.train(was_training)
        for hook in hooks:
            hook.remove()
        encoder, decoder = (module.project_positioned(*seen[module])[:2] for module in modules)  # type: ignore[operator, union-attr, index]
        maps, start = [], 0
        for number, (rows, columns) in enumerate(layout.extents):
            own: tuple[Any, Any, Any] = (slice(number, number + 1), slice(None), slice(None))
            queries, cells = own, own
            if layout.offsets is not None:
                first = number * self.num_queries
                queries = (slice(None), slice(None), slice(first, first + self.num_queries))
                cells = (slice(None), slice(None), slice(start, start + rows * columns))
            start += rows * columns
            inner = attention_weights(encoder[0][cells], encoder[1][cells])[0].float()
            cross = attention_weights(decoder[0][queries], decoder[1][cells])[0].float()
            grid = (rows, columns)
            maps.append(AttentionMaps(inner.unflatten(2, grid).unflatten(1, grid), cross.unflatten(2, grid)))
        return maps

    @property
    def _active_queries(self) -> int:
        """Queries of an image: all groups' in training, the first group's in evaluation."""
        return self.num_queries * (self.groups if self.training else 1)

    def _decoder_layer(self, config: LayerConfig, number: int, layers: int) -> DecoderLayer:
        attentions = (kind(config.dim, config.num_heads, dropout=config.dropout) for kind in _ATTENTIONS)
        return DecoderLayer(config, *attentions, last=number == layers - 1)

    def _queries(self) -> Any:
        """Return what the decoder's layers know of the queries beside their content."""
        return self.query_embedding.weight

    def _aim(self, queries: Any, number: int, residual: Tensor) -> Any:
        """Return the queries as one layer sees them, given the residual stream before it."""
        return queries

    def _boxes(self, states: Tensor, queries: Any) -> Tensor:
        """Return the boxes before the sigmoid, (layers, groups, batch, queries, 4)."""
        return self.box_head(states)

    def _run(self, layer: nn.Module, *inputs: Any) -> Any:
        """Run a layer, checkpointed where that is switched on."""
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)


_ATTENTIONS = (SelfAttention, CrossAttention)


def _check_batch(images: Tensor, sizes: Sequence[tuple[int, int]]) -> None:
    """Raise a ValueError if the sizes are not those of images in this batch."""
    if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            f"images must be (batch, 3, height, width) floating point, got {tuple(images.shape)} {images.dtype}"
        )
    if len(sizes) != images.shape[0]:
        raise ValueError(f"sizes must have one entry for each of the {images.shape[0]} images, got {len(sizes)}")
    height, width = images.shape[2:]
    for number, size in enumerate(sizes):
        if not (1 <= size[0] <= height and 1 <= size[1] <= width):
            raise ValueError(f"sizes[{number}] is {tuple(size)}, outside the batch of {height}x{width} pixels")
