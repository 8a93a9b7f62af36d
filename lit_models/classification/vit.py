"""The Vision Transformer and DeiT.

Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", https://arxiv.org/abs/2010.11929; Touvron et al. 2021,
"Training data-efficient image transformers & distillation through attention", https://arxiv.org/abs/2012.12877; and
what later recipes added: LayerScale and positions without class token (DeiT III, https://arxiv.org/abs/2204.07118),
register tokens (Darcet et al. 2024, https://arxiv.org/abs/2309.16588), norms of queries and keys.
"""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lit_models.checks import check_at_least
from lit_models.classification.blocks import PatchClassifier, TransformerLayer, plain_settings
from lit_models.classification.network import HeadLogits
from lit_models.layers import DropPathMode, MultiHeadAttention, ResidualLayerNorm, drop_path_rates
from lit_models.layers.patch_embedding import Size

_LITE: dict[str, Any] = {"image_size": 32, "patch_size": 4, "mlp_ratio": 2.0}

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"dim": 192, "depth": 12, "num_heads": 3},
    "small": {"dim": 384, "depth": 12, "num_heads": 6},
    "base": {"dim": 768, "depth": 12, "num_heads": 12},
    "large": {"dim": 1024, "depth": 24, "num_heads": 16},
    # ViT-Lite of Hassani et al. 2021, https://arxiv.org/abs/2104.05704: for images of 32 pixels.
    "vit_lite_2": {**_LITE, "dim": 128, "depth": 2, "num_heads": 2, "mlp_ratio": 1.0},
    "vit_lite_6": {**_LITE, "dim": 256, "depth": 6, "num_heads": 4},
    "vit_lite_7": {**_LITE, "dim": 256, "depth": 7, "num_heads": 4},
}


class VisionTransformer(PatchClassifier):
    """ViT and DeiT of any size.

    The tokens are, in this order, class token, distillation token, register tokens and patches row by row.

    Args:
        num_classes: Classes of the heads; 0 for none.
        image_size: Height and width of the images, one number for both or (height, width).
        patch_size: Likewise of a patch; divides the image.
        dim: Width; ``num_heads`` divides it.
        depth: Number of layers.
        num_heads: Attention heads.
        mlp_ratio: Width of the feed-forward networks as a multiple of ``dim``.
        distilled: Add the distillation token and its head, ``head_distillation``.
        class_token: Have a class token.
        registers: Number of register tokens.
        pool: What the head reads: ``"token"``, the class token, or ``"average"``, the mean of the patches.
        pool_norm: Apply the final norm to what was pooled instead of to every token.
        prefix_positions: Whether class, distillation and register tokens have positions of their own, or patches alone.
        qkv_bias: Add a bias to queries, keys and values.
        qk_norm: Normalise each head's queries and keys.
        layer_scale: Initial value of LayerScale; None for none.
        drop_path: Stochastic depth: the probability of dropping a sample's residual branch in the last layer.
        drop_path_mode: ``"linear"`` grows from 0 in the first layer, ``"constant"`` is the same in each one.
        dropout: On the embedded tokens, on every branch and inside the feed-forward networks.
        attention_dropout: On the attention weights.
        norm_eps: Added to the variance in layer norms: 1e-6 in ViT and DeiT, 1e-12 in Hugging Face's.
        position_antialias: How positions are resampled for another image size: False as DeiT and Hugging Face do, True
            as timm does.

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
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        distilled: bool = False,
        class_token: bool = True,
        registers: int = 0,
        pool: Literal["token", "average"] = "token",
        pool_norm: bool = False,
        prefix_positions: bool = True,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        drop_path_mode: DropPathMode = "linear",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        norm_eps: float = 1e-6,
        position_antialias: bool = False,
    ) -> None:
        super().__init__(num_classes, plain_settings(locals()))
        _check_tokens(distilled, class_token, registers, pool, pool_norm)
        self.pool, self.pool_norm = pool, pool_norm
        self.class_token = nn.Parameter(torch.empty(1, 1, dim)) if class_token else None
        self.distillation_token = nn.Parameter(torch.empty(1, 1, dim)) if distilled else None
        self.register_tokens = nn.Parameter(torch.empty(1, registers, dim)) if registers else None
        self.prefix_tokens = class_token + distilled + registers
        self.prefix_positions = self.prefix_tokens if prefix_positions else 0
        rows, columns = self.grid
        self.positions = nn.Parameter(torch.empty(1, self.prefix_positions + rows * columns, dim))
        self.layers = nn.ModuleList(
            TransformerLayer(
                MultiHeadAttention(
                    dim, num_heads, dropout=attention_dropout, qkv_bias=qkv_bias, qk_norm=qk_norm, norm_eps=norm_eps
                ),
                dim,
                int(dim * mlp_ratio),
                layer_scale=layer_scale,
                drop_path=rate,
                dropout=dropout,
                norm_eps=norm_eps,
            )
            for rate in drop_path_rates(drop_path, depth, drop_path_mode)
        )
        self.norm = ResidualLayerNorm(dim, norm_eps, order="pre", dropout=dropout)
        self.initialize()
        self.reset_classifier(num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """Return the tokens of images (batch, 3, height, width) with their positions: (batch, tokens, dim)."""
        patches = self.patch_embedding(images)
        tokens = (self.class_token, self.distillation_token, self.register_tokens)
        present: list[Tensor] = [token for token in tokens if token is not None]
        positions = self.positions.split([self.prefix_positions, patches.shape[1]], dim=1)
        patches = patches + positions[1]
        if present:
            prefix = torch.cat(present, dim=1)
            prefix = prefix + positions[0] if self.prefix_positions else prefix
            patches = torch.cat([prefix.expand(patches.shape[0], -1, -1), patches], dim=1)
        return self.drop(patches)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return all tokens after the last layer, (batch, tokens, dim), normed unless the norm follows the pooling."""
        return self._features(images, None)

    def forward_heads(self, images: Tensor) -> HeadLogits:
        """Return the logits of each head. Of the last layer only the tokens that a head reads are computed."""
        queries = 1 + (self.distillation_token is not None) if self.pool == "token" else None
        return self.forward_head(self._features(images, queries))

    def forward_head(self, features: Tensor) -> HeadLogits:
        """Pool (batch, tokens, dim) and return the logits of each head, (batch, num_classes)."""
        pooled = features[:, 0] if self.pool == "token" else features[:, self.prefix_tokens :].mean(1)
        if self.pool_norm:
            pooled = self.norm(None, pooled)[0]
        if self.head_distillation is None:
            return HeadLogits(self.head(pooled), None)
        return HeadLogits(self.head(pooled), self.head_distillation(features[:, 1]))

    def reset_classifier(self, num_classes: int) -> None:
        """Make new heads, both in a distilled network; 0 classes leave the pooled features."""
        check_at_least("num_classes", num_classes, 0)
        self.num_classes = num_classes
        self.head = self.new_head(num_classes)
        self.head_distillation = None if self.distillation_token is None else self.new_head(num_classes)

    def layer_of(self, name: str) -> int:
        """Return a parameter's depth as timm counts it; the final norm goes with the last layer.

        0 is what makes the tokens, the layers follow from 1, and ``num_layers + 1`` is the heads (and the norm after
        pooling).
        """
        if name.startswith("layers."):
            return int(name.split(".")[1]) + 1
        if name.startswith("norm."):
            return self.num_layers + self.pool_norm
        return self.num_layers + 1 if name.startswith("head") else 0

    def _features(self, images: Tensor, queries: int | None) -> Tensor:
        branch: Tensor | None = None
        residual = self.embed(images)
        for layer in self.layers[:-1]:
            branch, residual = self.run_layer(layer, branch, residual)
        branch, residual = self.run_layer(self.layers[-1], branch, residual, queries)
        return self.add(branch, residual) if self.pool_norm else self.norm(branch, residual)[0]


def _check_tokens(distilled: bool, class_token: bool, registers: int, pool: str, pool_norm: bool) -> None:
    """Raise a ValueError that names the arguments that do not fit together."""
    check_at_least("registers", registers, 0)
    if pool not in ("token", "average"):
        raise ValueError(f"pool must be token or average, got {pool!r}")
    if pool == "token" and not class_token:
        raise ValueError('pool="token" reads the class token: set class_token=True or pool="average"')
    if distilled and (pool != "token" or pool_norm):
        raise ValueError(
            "distilled=True has heads on the normed class and distillation tokens: it needs class_token=True, "
            'pool="token" and pool_norm=False'
        )
