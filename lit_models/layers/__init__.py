"""What two or more networks share."""

from lit_models.layers.attention import KeyValueCache, MultiHeadAttention, Packing
from lit_models.layers.drop_path import DropPathMode, drop_path_rates, scale_branch
from lit_models.layers.feed_forward import Activation, FeedForward
from lit_models.layers.normalization import LayerNorm, NormOrder, ResidualLayerNorm
from lit_models.layers.patch_embedding import PatchEmbedding
from lit_models.layers.position import LearnedPositions, SinusoidalPositions, resize_positions, sinusoid_table
from lit_models.layers.window_attention import CosineWindowAttention, Padding, WindowAttention

__all__ = [
    "Activation",
    "CosineWindowAttention",
    "DropPathMode",
    "FeedForward",
    "KeyValueCache",
    "LayerNorm",
    "LearnedPositions",
    "MultiHeadAttention",
    "Packing",
    "NormOrder",
    "Padding",
    "PatchEmbedding",
    "ResidualLayerNorm",
    "SinusoidalPositions",
    "WindowAttention",
    "drop_path_rates",
    "resize_positions",
    "scale_branch",
    "sinusoid_table",
]
