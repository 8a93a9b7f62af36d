"""What two or more networks share."""

from lit_models.layers.attention import KeyValueCache, MultiHeadAttention
from lit_models.layers.feed_forward import Activation, FeedForward
from lit_models.layers.normalization import LayerNorm, NormOrder, ResidualLayerNorm
from lit_models.layers.position import LearnedPositions, SinusoidalPositions, sinusoid_table

__all__ = [
    "Activation",
    "FeedForward",
    "KeyValueCache",
    "LayerNorm",
    "LearnedPositions",
    "MultiHeadAttention",
    "NormOrder",
    "ResidualLayerNorm",
    "SinusoidalPositions",
    "sinusoid_table",
]
