"""This project's DETRs in the public layouts."""

from typing import Any, Literal

from torch import Tensor

from lit_models.detection.backbone import ResNetBackbone
from lit_models.detection.conditional import ConditionalDETR
from lit_models.detection.detr import DETR
from lit_models.pretrained.detr_layouts import OFFICIAL, RESNET_BLOCKS, hugging_face

_TRANSFORMERS_POSITIONS = 50


def detector_to_official(network: DETR) -> dict[str, Tensor]:
    """Return the state dict of the official DETR that computes what a network does; its files hold it as ``"model"``.

    Raises:
        ValueError: If the layout has no place for the network.
    """
    _check(network)
    if isinstance(network, ConditionalDETR):
        raise ValueError("the official DETR's layout is for DETR, not for ConditionalDETR")
    return OFFICIAL.write(network)


def detector_to_huggingface(
    network: DETR, *, layout: Literal["disk", "memory"] = "disk", timm: bool = True
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights and the config values of the Hugging Face model that computes what a network does.

    Of a ``DETR`` it is a ``DetrForObjectDetection``, or with norms before the sublayers a
    ``TableTransformerForObjectDetection``; of a ``ConditionalDETR`` a ``ConditionalDetrForObjectDetection``, with the
    first group of queries.

    Args:
        network: The detector.
        layout: Names of the files on the Hub (``"disk"``, for ``save_file``) or of a model of version 5 (``"memory"``,
            for ``load_state_dict``).
        timm: Whether the backbone is timm's, as in most files, or Hugging Face's own (revision ``no_timm``).

    Raises:
        ValueError: If Hugging Face has no such network.
    """
    _check(network)
    settings, conditional = network.settings, isinstance(network, ConditionalDETR)
    pre_norm, dilation = settings["norm_order"] == "pre", settings["backbone"]["dilation"]
    if pre_norm and (conditional or not timm or settings["positions"] == "learned"):
        raise ValueError(
            "Hugging Face has norm_order='pre' in its Table Transformer alone: DETR, timm, positions='sine'"
        )
    if dilation and not timm:
        raise ValueError("Hugging Face's own ResNet has no dilation: give timm=True")
    if settings["positions"] == "learned" and settings["position_length"] != _TRANSFORMERS_POSITIONS:
        raise ValueError(f"Hugging Face's learned positions have position_length={_TRANSFORMERS_POSITIONS}")
    # The Table Transformer has the same names in memory as on disk.
    memory = layout == "memory" and not pre_norm
    state = hugging_face(ConditionalDETR if conditional else DETR, memory=memory, timm=timm).write(network)
    family, model = ("conditional_detr", "ConditionalDetr") if conditional else ("detr", "Detr")
    if pre_norm:
        family, model = "table-transformer", "TableTransformer"
    return state, {
        "architectures": [f"{model}ForObjectDetection"],
        "model_type": family,
        **_config(network),
        **_backbone_config(settings["backbone"]["name"], timm),
    }


def _check(network: DETR) -> None:
    """Raise a ValueError if no public layout has the network's backbone."""
    if not isinstance(network, DETR):
        raise ValueError(f"the layout is for DETR and ConditionalDETR, not for {type(network).__name__}")
    if not isinstance(network.backbone, ResNetBackbone) or network.backbone.settings["group_norm"] is not None:
        raise ValueError("the public layouts of DETR have a ResNet with batch norms as their backbone")


def _config(network: DETR) -> dict[str, Any]:
    settings = network.settings
    stacks = ("encoder", "decoder")
    return {
        "d_model": settings["dim"],
        "num_queries": network.num_queries,
        "num_labels": network.num_classes,
        **{f"{stack}_layers": settings[f"{stack}_layers"] for stack in stacks},
        **{f"{stack}_attention_heads": settings["num_heads"] for stack in stacks},
        **{f"{stack}_ffn_dim": settings["feed_forward_dim"] for stack in stacks},
        "dropout": settings["dropout"],
        "attention_dropout": settings["dropout"],
        "activation_dropout": settings["dropout"],
        "activation_function": "relu",
        "position_embedding_type": settings["positions"],
        "dilation": settings["backbone"]["dilation"],
        # With True transformers computes something else.
        "auxiliary_loss": False,
    }


def _backbone_config(name: str, timm: bool) -> dict[str, Any]:
    if timm:
        return {"use_timm_backbone": True, "backbone": name, "use_pretrained_backbone": False}
    blocks, bottleneck = RESNET_BLOCKS[name]
    width = 256 if bottleneck else 64
    return {
        "use_timm_backbone": False,
        "backbone_config": {
            "model_type": "resnet",
            "layer_type": "bottleneck" if bottleneck else "basic",
            "embedding_size": 64,
            "hidden_sizes": [width * 2**stage for stage in range(4)],
            "depths": list(blocks),
            "out_features": ["stage4"],
        },
    }
