"""Google's ViT in ``.npz`` files: vit_jax (the paper's and the AugReg weights) and big_vision, whose names differ.

Kernels are (inputs, outputs), those of attention have the heads as an axis of their own, and big_vision may stack all
layers into one array. https://github.com/google-research/vision_transformer, https://github.com/google-research/big_vision
"""

from collections.abc import Mapping, Set

from torch import Tensor

from lit_models.pretrained.architectures import VISION_TRANSFORMER
from lit_models.pretrained.family import REPRESENTATION, Checkpoint, Facts, Family, Source
from lit_models.pretrained.names import to_ours
from lit_models.pretrained.rules import RULES

_PREFIXES = ("opt.target.", "params.img.", "params.")
_KINDS = {"kernel": "weight", "scale": "weight"}


def _layer(attention: str, norm: str, feed_forward: str) -> dict[str, str]:
    beginning = "Transformer.encoderblock_*."
    parts = {part: f"attention.{part}" for part in ("query", "key", "value")} | {"out": "attention.output"}
    return {
        f"{beginning}LayerNorm_0": "layers.*.attention_norm",
        f"{beginning}{norm}": "layers.*.feed_forward_norm",
        f"{beginning}{feed_forward}.Dense_0": "layers.*.feed_forward.expand",
        f"{beginning}{feed_forward}.Dense_1": "layers.*.feed_forward.contract",
    } | {f"{beginning}{attention}.{name}": f"layers.*.{own}" for name, own in parts.items()}


_NAMES = {
    "cls": "class_token",
    "embedding": "patch_embedding",
    "Transformer.posembed_input.pos_embedding": "positions",
    "pos_embedding": "positions",
    **_layer("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3"),
    **_layer("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0"),
    "Transformer.encoder_norm": "norm",
    "head": "head",
    "pre_logits": REPRESENTATION,
}
_STRUCTURAL = ("Transformer", "embedding", "conv_root", "gn_root", "block", "MAPHead")


def _read(checkpoint: Checkpoint) -> Source:
    tensors = _unstack(_dotted(checkpoint.tensors))
    heads = [
        tensor.shape[-2] for name, tensor in tensors.items() if name.endswith("query.kernel") and tensor.dim() == 3
    ]
    kernels = {_renamed(name): _turned(name, tensor) for name, tensor in tensors.items()}
    weights = to_ours(kernels, _NAMES, _STRUCTURAL)
    representation = weights.drop(REPRESENTATION)
    facts = Facts(num_heads=heads[0] if heads else None)
    return Source("Google ViT", VISION_TRANSFORMER, weights, RULES["google"], facts, representation)


def _dotted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    dotted = {name.replace("/", "."): tensor for name, tensor in tensors.items()}
    prefix = next((prefix for prefix in _PREFIXES if f"{prefix}embedding.kernel" in dotted), "")
    return {name.removeprefix(prefix): tensor for name, tensor in dotted.items() if name.startswith(prefix)}


def _unstack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut big_vision's arrays of all layers into one per layer."""
    parts: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith("Transformer.encoderblock."):
            rest = name.removeprefix("Transformer.encoderblock.")
            parts |= {f"Transformer.encoderblock_{i}.{rest}": part for i, part in enumerate(tensor)}
        else:
            parts[name] = tensor
    return parts


def _renamed(name: str) -> str:
    module, _, kind = name.rpartition(".")
    return f"{module}.{_KINDS.get(kind, kind)}" if module else name


def _turned(name: str, tensor: Tensor) -> Tensor:
    """Turn flax' (inputs, outputs) into torch's (outputs, inputs), heads merged with their width."""
    layer, _, kind = name.rpartition(".")
    part = layer.rpartition(".")[2]
    if part in ("query", "key", "value"):
        return tensor.flatten(1).T if kind == "kernel" else tensor.flatten()
    if kind != "kernel":
        return tensor
    if part == "out":
        return tensor.flatten(0, -2).T
    return tensor.permute(3, 2, 0, 1) if tensor.dim() == 4 else tensor.T


def _matches(names: Set[str]) -> bool:
    return any(name.endswith("embedding/kernel") for name in names) and any("encoderblock" in name for name in names)


GOOGLE = Family("Google ViT (.npz)", _matches, _read)
