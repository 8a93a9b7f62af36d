"""What the Transformers are made of: the pre-norm layer, and the frames of the networks that read patches."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels import dropout
from lit_models.checks import check_at_least, check_probability
from lit_models.classification.network import Classifier
from lit_models.layers import (
    FeedForward,
    LayerNorm,
    PatchEmbedding,
    ResidualLayerNorm,
    resize_positions,
    scale_branch,
)
from lit_models.layers.patch_embedding import Size


class TransformerLayer(nn.Module):
    """A pre-norm layer: attention and feed-forward, each opened by the norm that also adds the branch before it.

    A layer takes and returns ``(branch, residual)``, a branch not yet added to the residual stream, so that addition
    and norm are one step on either side of the border between two layers. Each layer holds the norms that open its own
    sublayers, as in the state dicts of all public ViTs.

    Args:
        attention: The attention sublayer, of tokens or of maps.
        dim: Width.
        hidden_dim: Width inside the feed-forward network.
        layer_scale: Initial LayerScale of both branches; None for none.
        drop_path: Probability of dropping a sample's branch in training.
        dropout: On each branch and inside the feed-forward network.
        norm_eps: Added to the variance in the norms.
    """

    attention: Any

    def __init__(
        self,
        attention: nn.Module,
        dim: int,
        hidden_dim: int,
        *,
        layer_scale: float | None,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.attention_norm = ResidualLayerNorm(dim, norm_eps, order="pre", dropout=dropout)
        self.attention = attention
        self.attention_scale = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))
        self.feed_forward_norm = ResidualLayerNorm(dim, norm_eps, order="pre", dropout=dropout)
        self.feed_forward = FeedForward(dim, hidden_dim, activation="gelu", dropout=dropout)
        self.feed_forward_scale = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))
        self.drop_path = drop_path

    def forward(self, branch: Tensor | None, residual: Tensor, queries: int | None = None) -> tuple[Tensor, Tensor]:
        """Advance the residual stream by one layer.

        Args:
            branch: (batch, tokens, dim) or a map (batch, rows, columns, dim), what the layer before adds to the stream;
                None before the first layer.
            residual: Shaped likewise.
            queries: Compute only the first so many tokens: all that a head reads of the last layer.

        Returns:
            The next ``(branch, residual)``, shaped likewise, or (batch, queries, dim) each.
        """
        input, residual = self.attention_norm(branch, residual)
        if queries is None:
            attended = self.attention(input)
        else:
            attended, residual = self.attention(input[:, :queries], input), residual[:, :queries]
        input, residual = self.feed_forward_norm(self.scale(attended, self.attention_scale), residual)
        return self.scale(self.feed_forward(input), self.feed_forward_scale), residual

    def attention_weights(self, branch: Tensor | None, residual: Tensor) -> Tensor:
        """Return the attention weights, (batch, heads, tokens, tokens) float32, of what :meth:`forward` takes."""
        return self.attention.weights(self.attention_norm(branch, residual)[0]).float()

    def scale(self, branch: Tensor, layer_scale: Tensor | None) -> Tensor:
        """Apply LayerScale and stochastic depth to a branch."""
        return scale_branch(branch, layer_scale, self.drop_path if self.training else 0.0)


class TransformerClassifier(Classifier):
    """A classifier made of Transformer layers: what all of them have in common.

    Args:
        num_classes: Classes of the head; 0 for none.
        settings: The constructor's other arguments.

    Attributes:
        grad_checkpointing: Keep only each layer's input for the backward pass and compute the rest again.
    """

    sizes: ClassVar[Mapping[str, Mapping[str, Any]]]
    head: nn.Module

    def __init__(self, num_classes: int, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.settings = dict(settings)
        check_at_least("dim", settings["dim"], 1)
        for name in ("dropout", "attention_dropout"):
            check_probability(name, settings[name])
        self.dropout = settings["dropout"]
        self.grad_checkpointing = False

    @classmethod
    def of_size(cls, name: str, num_classes: int, **overrides: Any) -> Self:
        """Build a network of a published size.

        Args:
            name: A key of ``sizes``.
            num_classes: Classes of the heads.
            **overrides: Any argument of the constructor; takes precedence over the size's.

        Raises:
            ValueError: If there is no such size.
        """
        if name not in cls.sizes:
            raise ValueError(f"there is no {cls.__name__} of size {name!r}; there are {', '.join(cls.sizes)}")
        return cls(num_classes, **{**cls.sizes[name], **overrides})

    def drop(self, tokens: Tensor) -> Tensor:
        """Apply the network's dropout in training."""
        return dropout(tokens, self.dropout if self.training else 0.0)

    def add(self, branch: Tensor | None, residual: Tensor) -> Tensor:
        """Add the last branch to the residual stream where no norm follows."""
        return residual if branch is None else self.drop(branch) + residual

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw the weights as DeiT and Swin do: N(0, 0.02²) for linear layers, zero biases.

        The bounds ±2 of their truncated normal are absolute, a hundred deviations away. Norms start as the identity;
        the patch embedding keeps PyTorch's initialisation of a convolution.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                initialize_linear(module)
            elif isinstance(module, LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)

    def new_head(self, num_classes: int) -> nn.Module:
        """Return a freshly initialised head where the network lies; for 0 classes one that passes its input on."""
        if num_classes == 0:
            return nn.Identity()
        like = next(self.parameters())
        head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
        initialize_linear(head)
        return head

    def run_layer(self, layer: nn.Module, *inputs: Any) -> Any:
        """Run a layer, checkpointed where that is switched on."""
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)


class PatchClassifier(TransformerClassifier):
    """A classifier of a sequence of image patches: what ViT and CaiT have in common.

    Args:
        num_classes: Classes of the head; 0 for none.
        settings: The constructor's other arguments.

    Attributes:
        prefix_tokens: Tokens before the patches in the features.
    """

    positions: nn.Parameter
    layers: nn.ModuleList
    prefix_tokens: int
    # How many of the prefix tokens have entries in ``positions``.
    prefix_positions: int

    def __init__(self, num_classes: int, settings: Mapping[str, Any]) -> None:
        super().__init__(num_classes, settings)
        for name in ("depth", "num_heads"):
            check_at_least(name, settings[name], 1)
        self.num_features = settings["dim"]
        self.patch_embedding = PatchEmbedding(settings["image_size"], settings["patch_size"], settings["dim"])
        self.image_size = self.patch_embedding.image_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.patch_embedding.grid

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Return what enters the first layer, (batch, tokens, dim), of images (batch, 3, height, width)."""

    def forward_intermediates(self, images: Tensor, layers: Sequence[int] | None = None) -> list[Tensor]:
        """Return the patches after some layers, before any norm, as maps (batch, dim, rows, columns).

        Args:
            images: (batch, 3, height, width).
            layers: Layers counted from 0, negative from the end; all by default.

        Raises:
            ValueError: If there is no such layer.
        """
        depth = self.num_layers
        chosen = range(depth) if layers is None else layers
        if unknown := [layer for layer in chosen if not -depth <= layer < depth]:
            raise ValueError(f"layers {unknown} do not exist: the network has {depth}, from 0 to {depth - 1}")
        numbers = [layer % depth for layer in chosen]
        branch: Tensor | None = None
        residual, maps = self.embed(images), {}
        for number in range(max(numbers, default=-1) + 1):
            branch, residual = self.run_layer(self.layers[number], branch, residual)
            if number in numbers:
                maps[number] = self.as_map(self.add(branch, residual))
        return [maps[number] for number in numbers]

    @torch.no_grad()
    def attention_maps(self, images: Tensor) -> list[Tensor]:
        """Return each layer's attention weights, (batch, heads, tokens, tokens) float32, in evaluation mode.

        The fused kernels hold no weights, so each layer's are computed once more beside it.
        """
        was_training = self.training
        self.eval()
        branch: Tensor | None = None
        residual, maps = self.embed(images), []
        for layer in self.layers:
            maps.append(layer.attention_weights(branch, residual))  # type: ignore[operator]
            branch, residual = layer(branch, residual)
        maps += self.read_out_maps(self.add(branch, residual))
        self.train(was_training)
        return maps

    def read_out_maps(self, patches: Tensor) -> list[Tensor]:
        """Return the attention weights of what follows the layers; ViT has nothing there."""
        return []

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw tokens and positions as well, from N(0, 0.02²)."""
        for name, parameter in self.named_parameters(recurse=False):
            if name == "positions" or name.endswith(("_token", "_tokens")):
                nn.init.trunc_normal_(parameter, std=0.02, a=-2.0, b=2.0)
        super().initialize()

    def set_input_size(self, image_size: Size) -> None:
        """Take images of another size from now on: the positions are resampled for the new grid of patches.

        Call it before an optimizer is built, since the positions become another parameter.

        Args:
            image_size: (height, width), or one number for both.

        Raises:
            ValueError: If the patches do not tile the image.
        """
        old_grid = self.grid
        self.patch_embedding.set_image_size(image_size)
        self.image_size = self.patch_embedding.image_size
        self.settings = {**self.settings, "image_size": image_size}
        if self.grid != old_grid:
            resized = resize_positions(
                self.positions.detach(),
                old_grid,
                self.grid,
                prefix=self.prefix_positions,
                antialias=self.settings["position_antialias"],
            )
            self.positions = nn.Parameter(resized, requires_grad=self.positions.requires_grad)

    def no_weight_decay(self) -> set[str]:
        """Return the tokens' and the positions' names.

        This is timm's rule today. The released DeiT left ``distillation_token`` in the decayed group.
        """
        names = {name for name, _ in self.named_parameters(recurse=False)}
        return {name for name in names if name == "positions" or name.endswith(("_token", "_tokens"))}

    def as_map(self, features: Tensor) -> Tensor:
        """Lay the patches of (batch, tokens, dim) out as (batch, dim, rows, columns)."""
        patches = features[:, features.shape[1] - self.grid[0] * self.grid[1] :]
        return patches.transpose(1, 2).unflatten(2, self.grid)


def initialize_linear(linear: nn.Linear) -> None:
    """Draw a linear layer's weight as DeiT does, and zero its bias."""
    nn.init.trunc_normal_(linear.weight, std=0.02, a=-2.0, b=2.0)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def plain_settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a constructor's arguments but for ``num_classes``, from the ``locals()`` of its first line."""
    return {name: value for name, value in arguments.items() if name not in ("self", "num_classes", "__class__")}
