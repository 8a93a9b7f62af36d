"""What two or more networks share."""

from lit_models.layers.attention import KeyValueCache, MultiHeadAttention
from lit_models.layers.drop_path import DropPathMode, drop_path_rates, scale_branch
from lit_models.layers.feed_forward import Activation, FeedForward
from lit_models.layers.normalization import LayerNorm, NormOrder, ResidualLayerNorm
from lit_models.layers.patch_embedding import PatchEmbedding
from lit_models.layers.position import LearnedPositions, SinusoidalPositions, resize_positions, sinusoid_table

__all__ = [
    "Activation",
    "DropPathMode",
    "FeedForward",
    "KeyValueCache",
    "LayerNorm",
    "LearnedPositions",
    "MultiHeadAttention",
    "NormOrder",
    "PatchEmbedding",
    "ResidualLayerNorm",
    "SinusoidalPositions",
    "drop_path_rates",
    "resize_positions",
    "scale_branch",
    "sinusoid_table",
]
