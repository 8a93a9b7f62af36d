"""Hugging Face MarianMTModel (OPUS-MT) weights in the project's Transformer, with equal logits.

Marian is post-norm, scales the embedding by √dim, starts its concatenated sinusoids (with the paper's exponent) at
row 0, adds ``final_logits_bias`` and lets the decoder start with the padding token.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lit_models.translation.transformer import Transformer, TransformerConfig

_ACTIVATIONS = {"swish": "silu", "silu": "silu", "relu": "relu", "gelu": "gelu"}
_ATTENTION = {"self_attn": "self_attention", "encoder_attn": "cross_attention"}


def marian_config(config: Mapping[str, Any]) -> TransformerConfig:
    """Translate the values of a Marian ``config.json``.

    Raises:
        ValueError: If the checkpoint needs what the Transformer does not do; the message names the key.
    """
    if config.get("normalize_before") or config.get("normalize_embedding"):
        raise ValueError("normalize_before and normalize_embedding must be false in a Marian config")
    if not config.get("scale_embedding", False):
        raise ValueError("scale_embedding must be true in a Marian config")
    if not config.get("share_encoder_decoder_embeddings", True):
        raise ValueError("separate source and target embeddings of Marian are not supported")
    for key in ("attention_heads", "ffn_dim"):
        if config[f"encoder_{key}"] != config[f"decoder_{key}"]:
            raise ValueError(f"encoder_{key} {config[f'encoder_{key}']} differs from decoder_{key}")
    activation = config["activation_function"]
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation_function must be one of {', '.join(_ACTIVATIONS)}, got {activation!r}")
    return TransformerConfig(
        dim=config["d_model"],
        feed_forward_dim=config["encoder_ffn_dim"],
        num_heads=config["encoder_attention_heads"],
        encoder_layers=config["encoder_layers"],
        decoder_layers=config["decoder_layers"],
        norm_order="post",
        activation=_ACTIVATIONS[activation],  # type: ignore[arg-type]
        sinusoid_layout="concatenated",
        sinusoid_exponent="paper",
        output_bias=True,
        dropout=config["dropout"],
        attention_dropout=config["attention_dropout"],
        activation_dropout=config["activation_dropout"],
        pad_id=config["pad_token_id"],
        bos_id=config["decoder_start_token_id"],
        eos_id=config["eos_token_id"],
    )


def from_marian(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> Transformer:
    """Build a Transformer with the weights of a ``MarianMTModel``.

    Args:
        state_dict: Of ``MarianMTModel``, any floating dtype; read as float32.
        config: Its ``config.json`` (``model.config.to_dict()``).

    Raises:
        ValueError: If a weight is missing or left over; the message lists the names.
    """
    names = {name for name in state_dict if "embed_positions" not in name}
    renamed: dict[str, Tensor] = {}

    def take(source: str, target: str) -> None:
        if source not in state_dict:
            raise ValueError(f"the Marian checkpoint has no weight {source!r}")
        renamed[target] = state_dict[source].float()
        names.discard(source)

    take("model.shared.weight", "source_embedding.weight")
    renamed["target_embedding.weight"] = renamed["source_embedding.weight"]
    take("final_logits_bias", "output_bias")
    renamed["output_bias"] = renamed["output_bias"].flatten()
    for name in ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"):
        names.discard(name)
    for side in ("encoder", "decoder"):
        for layer in range(config[f"{side}_layers"]):
            _take_layer(f"model.{side}.layers.{layer}", f"{side}_layers.{layer}", side, take, renamed)
    if names:
        raise ValueError(f"the Marian checkpoint has weights without a place: {', '.join(sorted(names))}")
    network = Transformer(marian_config(config), renamed["source_embedding.weight"].shape[0])
    network.load_state_dict(renamed)
    return network


def _take_layer(source: str, target: str, side: str, take: Any, renamed: dict[str, Tensor]) -> None:
    """Rename one layer; the three input projections of an attention become one stacked matrix."""
    for marian, ours in _ATTENTION.items():
        if side == "encoder" and marian == "encoder_attn":
            continue
        for kind in ("weight", "bias"):
            for part in ("q", "k", "v", "out"):
                take(f"{source}.{marian}.{part}_proj.{kind}", f"{target}.{ours}.{part}.{kind}")
            stacked = [renamed.pop(f"{target}.{ours}.{part}.{kind}") for part in ("q", "k", "v")]
            renamed[f"{target}.{ours}.query_key_value.{kind}"] = torch.cat(stacked)
            renamed[f"{target}.{ours}.output.{kind}"] = renamed.pop(f"{target}.{ours}.out.{kind}")
            take(f"{source}.{marian}_layer_norm.{kind}", f"{target}.{ours}_norm.{kind}")
    for kind in ("weight", "bias"):
        take(f"{source}.fc1.{kind}", f"{target}.feed_forward.expand.{kind}")
        take(f"{source}.fc2.{kind}", f"{target}.feed_forward.contract.{kind}")
        take(f"{source}.final_layer_norm.{kind}", f"{target}.feed_forward_norm.{kind}")


def to_marian(network: Transformer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights and the config values of a ``MarianMTModel`` that computes what ``network`` does.

    The position table travels along as ``embed_positions``, so any sinusoidal variant can be expressed.

    Raises:
        ValueError: If Marian has no such network: pre-norm, untied or two vocabularies, learned positions.
    """
    config = network.config
    shared = network.target_embedding is network.source_embedding
    if config.norm_order != "post" or not config.tie_output or not shared or config.positions != "sinusoidal":
        raise ValueError("Marian is post-norm with one tied embedding and sinusoidal positions; this network is not")
    state = {name: value for name, value in network.state_dict().items() if "embedding" not in name}
    bias = state.pop("output_bias", torch.zeros(network.target_vocab_size))
    renamed: dict[str, Tensor] = {
        "model.shared.weight": network.output_weight.detach(),
        "final_logits_bias": bias[None],
    }
    for name, value in state.items():
        renamed.update(_marian_names(name, value))
    for side in ("encoder", "decoder"):
        renamed[f"model.{side}.embed_tokens.weight"] = network.output_weight.detach()
        renamed[f"model.{side}.embed_positions.weight"] = network.source_positions(
            0, config.max_positions, network.output_weight
        )
    renamed["lm_head.weight"] = network.output_weight.detach()
    values = {
        "vocab_size": network.target_vocab_size,
        "d_model": config.dim,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "activation_function": config.activation,
        "max_position_embeddings": config.max_positions,
        "scale_embedding": True,
        "pad_token_id": config.pad_id,
        "decoder_start_token_id": config.bos_id,
        "eos_token_id": config.eos_id,
        "forced_eos_token_id": None,
    }
    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        values |= {
            f"{side}_layers": layers,
            f"{side}_attention_heads": config.num_heads,
            f"{side}_ffn_dim": config.feed_forward_dim,
        }
    return renamed, values


_MARIAN_NAMES = {
    "self_attention": "self_attn",
    "cross_attention": "encoder_attn",
    "self_attention_norm": "self_attn_layer_norm",
    "cross_attention_norm": "encoder_attn_layer_norm",
    "feed_forward_norm": "final_layer_norm",
    "expand": "fc1",
    "contract": "fc2",
    "output": "out_proj",
}


def _marian_names(name: str, value: Tensor) -> dict[str, Tensor]:
    """Rename one weight of a layer, cutting a stacked projection into its three parts."""
    side, layer, *path, kind = name.split(".")
    prefix = f"model.{side.removesuffix('_layers')}.layers.{layer}"
    words = [_MARIAN_NAMES.get(word, word) for word in path if word != "feed_forward"]
    if words[-1] == "query_key_value":
        parts = zip("qkv", value.chunk(3), strict=True)
        return {f"{prefix}.{words[0]}.{part}_proj.{kind}": tensor for part, tensor in parts}
    return {".".join((prefix, *words, kind)): value}
