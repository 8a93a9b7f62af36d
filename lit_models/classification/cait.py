"""CaiT: class attention and talking heads in deep image Transformers.

Touvron et al. 2021, "Going deeper with Image Transformers", https://arxiv.org/abs/2103.17239.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kernels import dropout as drop
from lit_models.checks import check_at_least
from lit_models.classification.blocks import PatchClassifier, TransformerLayer, plain_settings
from lit_models.classification.network import HeadLogits
from lit_models.layers import LayerNorm, MultiHeadAttention, drop_path_rates
from lit_models.layers.patch_embedding import Size

# LayerScale starts smaller in deeper networks (section 3.2 of the paper).
SIZES: dict[str, dict[str, Any]] = {
    "xxs24": {"dim": 192, "depth": 24, "num_heads": 4, "layer_scale": 1e-5},
    "xxs36": {"dim": 192, "depth": 36, "num_heads": 4, "layer_scale": 1e-5},
    "xs24": {"dim": 288, "depth": 24, "num_heads": 6, "layer_scale": 1e-5},
    "s24": {"dim": 384, "depth": 24, "num_heads": 8, "layer_scale": 1e-5},
    "s36": {"dim": 384, "depth": 36, "num_heads": 8, "layer_scale": 1e-6},
    "m36": {"dim": 768, "depth": 36, "num_heads": 16, "layer_scale": 1e-6},
    "m48": {"dim": 768, "depth": 48, "num_heads": 16, "layer_scale": 1e-6},
}


class TalkingHeadsAttention(MultiHeadAttention):
    """Self-attention whose heads are mixed before and after the softmax.

    Shazeer et al. 2020, "Talking-Heads Attention", https://arxiv.org/abs/2003.02436. A weight of one head depends on
    the scores of all heads, so they are held in memory: a fused kernel, which sees one head at a time, cannot serve.

    Args:
        dim: Width of input and output.
        num_heads: Number of heads; divides ``dim``.
        dropout: Probability of dropping an attention weight in training.
        qkv_bias: Add a bias to queries, keys and values.
    """

    def __init__(self, dim: int, num_heads: int, *, dropout: float = 0.0, qkv_bias: bool = True) -> None:
        super().__init__(dim, num_heads, dropout=dropout, qkv_bias=qkv_bias)
        self.mix_scores = nn.Linear(num_heads, num_heads)
        self.mix_weights = nn.Linear(num_heads, num_heads)

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """Map (batch, length, dim) to (batch, length, dim)."""
        query, key, value = self.project(input)
        weights = drop(self._mixed_weights(query, key), self.dropout if self.training else 0.0)
        return self.output((weights @ value).transpose(1, 2).flatten(2))

    def weights(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """Return the weights after the second mixing, (batch, heads, length, length); rows need not sum to 1."""
        query, key, _ = self.project(input)
        return self._mixed_weights(query, key)

    def _mixed_weights(self, query: Tensor, key: Tensor) -> Tensor:
        if query.dtype == torch.float16:  # scores would pass its largest number, 65,504
            with torch.autocast(query.device.type, enabled=False):
                return self._mixed_weights(query.float(), key.float()).half()
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        return mix_heads(mix_heads(scores, self.mix_scores).softmax(-1), self.mix_weights)


def mix_heads(scores: Tensor, linear: nn.Linear) -> Tensor:
    """Apply a linear layer over the heads of (batch, heads, queries, keys), in place of two copies with heads last."""
    batch, heads = scores.shape[:2]
    weight = linear.weight.to(scores.dtype).expand(batch, -1, -1)
    bias = linear.bias.to(scores.dtype)[:, None].expand(batch, heads, 1)
    return torch.baddbmm(bias, weight, scores.flatten(2)).view_as(scores)


class ClassAttentionLayer(TransformerLayer):
    """A layer in which the class token alone attends, to itself and to the patches, and alone is changed."""

    def forward(self, token: Tensor, patches: Tensor) -> Tensor:  # type: ignore[override]
        """Return the next class token, (batch, 1, dim), from the last one and the patches (batch, patches, dim)."""
        input = self._norm_together(token, patches)
        attended = self.attention(input[:, :1], input)
        input, token = self.feed_forward_norm(self.scale(attended, self.attention_scale), token)
        return token + self.scale(self.feed_forward(input), self.feed_forward_scale)

    def attention_weights(self, token: Tensor, patches: Tensor) -> Tensor:  # type: ignore[override]
        """Return the attention weights, (batch, heads, 1, 1 + patches) float32, of what :meth:`forward` takes."""
        input = self._norm_together(token, patches)
        return self.attention.weights(input[:, :1], input).float()

    def _norm_together(self, token: Tensor, patches: Tensor) -> Tensor:
        return self.attention_norm(None, torch.cat([token, patches], dim=1))[0]


class CaiT(PatchClassifier):
    """CaiT: talking-heads layers over the patches, then class-attention layers that read them out.

    The class token joins only at the class-attention layers, so that positions belong to patches alone. The features
    are the class token and the patches, normed together.

    Args:
        num_classes: Classes of the head; 0 for none.
        image_size: Height and width of the images, one number for both or (height, width).
        patch_size: Likewise of a patch; divides the image.
        dim: Width; ``num_heads`` divides it.
        depth: Number of talking-heads layers.
        class_depth: Number of class-attention layers.
        num_heads: Attention heads.
        mlp_ratio: Width of the feed-forward networks as a multiple of ``dim``.
        qkv_bias: Add a bias to queries, keys and values.
        layer_scale: Initial value of LayerScale.
        drop_path: Stochastic depth: the probability of dropping a sample's residual branch, the same in each
            talking-heads layer; the class-attention layers drop none.
        dropout: On the embedded patches, on every branch and inside the feed-forward networks of the talking-heads
            layers.
        attention_dropout: On the weights of talking-heads attention.
        norm_eps: Added to the variance in layer norms.
        position_antialias: How positions are resampled for another image size, see :class:`VisionTransformer`.

    Raises:
        ValueError: If the arguments do not fit together; the message names them.
    """

    sizes: ClassVar[dict[str, dict[str, Any]]] = SIZES

    def __init__(
        self,
        num_classes: int,
        *,
        image_size: Size = 224,
        patch_size: Size = 16,
        dim: int = 384,
        depth: int = 24,
        class_depth: int = 2,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        layer_scale: float = 1e-5,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        norm_eps: float = 1e-6,
        position_antialias: bool = False,
    ) -> None:
        super().__init__(num_classes, plain_settings(locals()))
        check_at_least("class_depth", class_depth, 1)
        self.prefix_tokens, self.prefix_positions = 1, 0
        rows, columns = self.grid
        self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        self.positions = nn.Parameter(torch.empty(1, rows * columns, dim))
        hidden_dim = int(dim * mlp_ratio)
        self.layers = nn.ModuleList(
            TransformerLayer(
                TalkingHeadsAttention(dim, num_heads, dropout=attention_dropout, qkv_bias=qkv_bias),
                dim,
                hidden_dim,
                layer_scale=layer_scale,
                drop_path=rate,
                dropout=dropout,
                norm_eps=norm_eps,
            )
            for rate in drop_path_rates(drop_path, depth, "constant")
        )
        self.class_layers = nn.ModuleList(
            ClassAttentionLayer(
                MultiHeadAttention(dim, num_heads, qkv_bias=qkv_bias),
                dim,
                hidden_dim,
                layer_scale=layer_scale,
                norm_eps=norm_eps,
            )
            for _ in range(class_depth)
        )
        self.norm = LayerNorm(dim, norm_eps)
        self.initialize()
        self.reset_classifier(num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the class token and the patches, normed: (batch, 1 + patches, dim)."""
        return self.norm(torch.cat(self._read(images), dim=1))

    def forward_heads(self, images: Tensor) -> HeadLogits:
        """Return the logits of the one head, without norming the patches, which it does not read."""
        return self.forward_head(self.norm(self._read(images)[0]))

    def forward_head(self, features: Tensor) -> HeadLogits:
        """Return the logits of the class token of (batch, tokens, dim)."""
        return HeadLogits(self.head(features[:, 0]), None)

    def reset_classifier(self, num_classes: int) -> None:
        """Make a new head; 0 classes leave the class token's features."""
        check_at_least("num_classes", num_classes, 0)
        self.num_classes = num_classes
        self.head = self.new_head(num_classes)

    def attention_maps(self, images: Tensor) -> list[Tensor]:
        """Return each layer's attention weights, float32, in evaluation mode.

        Those of talking-heads layers, (batch, heads, patches, patches), are taken after the second mixing: they need
        not be positive, nor sum to 1. Those of class attention follow, (batch, heads, 1, 1 + patches).
        """
        return super().attention_maps(images)

    def read_out_maps(self, patches: Tensor) -> list[Tensor]:
        """Return the weights of the class-attention layers, (batch, heads, 1, 1 + patches)."""
        token, maps = self._token(patches), []
        for layer in self.class_layers:
            maps.append(layer.attention_weights(token, patches))  # type: ignore[operator]
            token = layer(token, patches)
        return maps

    def layer_of(self, name: str) -> int:
        """Return a parameter's depth as timm counts it: the class-attention layers lie beside the last layers.

        0 is what makes the tokens, the layers follow from 1, the final norm goes with the last one, and
        ``num_layers + 1`` is the head.
        """
        if name.startswith("layers."):
            return int(name.split(".")[1]) + 1
        if name.startswith("class_layers."):
            return self.num_layers - len(self.class_layers) + 1 + int(name.split(".")[1])
        if name.startswith("norm."):
            return self.num_layers
        return self.num_layers + 1 if name.startswith("head") else 0

    def embed(self, images: Tensor) -> Tensor:
        """Return the patches of images (batch, 3, height, width) with their positions: (batch, patches, dim)."""
        return self.drop(self.patch_embedding(images) + self.positions)

    def _read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return class token, (batch, 1, dim), and patches, (batch, patches, dim), before the final norm."""
        branch: Tensor | None = None
        residual = self.embed(images)
        for layer in self.layers:
            branch, residual = self.run_layer(layer, branch, residual)
        patches = self.add(branch, residual)
        token = self._token(patches)
        for layer in self.class_layers:
            token = self.run_layer(layer, token, patches)
        return token, patches

    def _token(self, patches: Tensor) -> Tensor:
        return self.class_token.expand(patches.shape[0], -1, -1)
