"""Attention, normalisation and loss functions: the only names that the rest of the project uses.

Everything here needs torch (and Triton on a GPU) and nothing else, so that the functions, their tests and their
benchmarks run on a bare image. Import from this package, never from the modules below it.
"""

from kernels.backend import use_backend
from kernels.dropout import dropout
from kernels.flash_attention.op import attention_weights, flash_attention, flash_attention_varlen
from kernels.layer_norm.op import add_layer_norm, layer_norm, rms_norm
from kernels.linear_cross_entropy.op import linear_cross_entropy
from kernels.window_attention.op import window_attention

__all__ = [
    "add_layer_norm",
    "attention_weights",
    "dropout",
    "flash_attention",
    "flash_attention_varlen",
    "layer_norm",
    "linear_cross_entropy",
    "rms_norm",
    "use_backend",
    "window_attention",
]
