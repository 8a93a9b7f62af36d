"""The names of a DETR's weights in the public layouts.

Hugging Face stores query, key and value apart, under other names on disk than in a model of version 5, and the backbone
as timm names it or as its own ResNet does (the files of revision ``no_timm``). Where norms come before the sublayers
(pre-norm), ours belong to the sublayer before: the encoder's last norm is its last layer's, and the first norms open
the stacks.
"""

import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from itertools import chain

from torch import Tensor

from lit_models.detection.conditional import ConditionalDETR
from lit_models.detection.detr import DETR
from lit_models.pretrained.family import Weights
from lit_models.pretrained.names import to_ours, to_theirs

COUNTER = ".num_batches_tracked"
"""Ending of the names of batch norms' counters, which frozen ones do not have."""
RESNET_BLOCKS: Mapping[str, tuple[tuple[int, ...], bool]] = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
}
"""Blocks of the four stages, and whether they are bottlenecks."""
_STACKS = ("encoder", "decoder")
_OUR_NORMS = {
    "encoder": ("self_attention_norm", "feed_forward_norm"),
    "decoder": ("self_attention_norm", "cross_attention_norm", "feed_forward_norm"),
}


@dataclass(frozen=True)
class Layout:
    """Where a public layout keeps the weights of a DETR.

    Attributes:
        name: Of the source, for messages.
        network: Which of our networks it is.
        around: Their name to ours, of what is outside the layers.
        stacks: Beginning of the names of encoder and decoder.
        layers: Their name to ours within a layer, without norms, by stack.
        norms: Their names of a layer's norms in the order of its sublayers, by stack.
        final_norm: Their name of the norm that ends a stack.
        telling: Names of weights that no other layout has together.
        split: Whether query, key and value are apart.
    """

    name: str
    network: type[DETR]
    around: Mapping[str, str]
    stacks: str
    layers: Mapping[str, Mapping[str, str]]
    norms: Mapping[str, tuple[str, ...]]
    final_norm: str
    telling: frozenset[str]
    split: bool

    def matches(self, names: Set[str]) -> bool:
        """Return whether a file with these names of tensors is of the layout."""
        return self.telling <= names

    def read(self, tensors: Mapping[str, Tensor]) -> Weights:
        """Return weights under this project's names; counters of batch norms are left out.

        Raises:
            ValueError: If one changes what the network computes and has no place in it.
        """
        kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(COUNTER)}
        depths = {stack: depth_of(kept, f"{self.stacks}{stack}.layers") for stack in _STACKS}
        structural = {f"{self.stacks.split('.')[0]}.", *(name.split(".")[0] for name in self.around)}
        return to_ours(kept, self._rows(depths, self.is_pre_norm(kept)), structural)

    def write(self, network: DETR) -> dict[str, Tensor]:
        """Return a network's weights under the names of the layout; of groups of queries, the first group's."""
        state = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith(COUNTER)}
        state["query_embedding.weight"] = state["query_embedding.weight"][: network.num_queries]
        depths = {stack: network.settings[f"{stack}_layers"] for stack in _STACKS}
        rows = self._rows(depths, network.settings["norm_order"] == "pre")
        return to_theirs(state, rows, split="" if self.split else None)

    def is_pre_norm(self, names: Iterable[str]) -> bool:
        """Return whether a norm ends the encoder: only then do the norms come before the sublayers."""
        return f"{self.stacks}encoder.{self.final_norm}.weight" in names

    def _rows(self, depths: Mapping[str, int], pre_norm: bool) -> dict[str, str]:
        rows = dict(self.around)
        for stack in _STACKS:
            theirs, ours = f"{self.stacks}{stack}.layers", f"{stack}_layers"
            rows |= {f"{theirs}.*.{name}": f"{ours}.*.{own}" for name, own in self.layers[stack].items()}
            if not pre_norm:
                pairs = zip(self.norms[stack], _OUR_NORMS[stack], strict=True)
                rows |= {f"{theirs}.*.{name}": f"{ours}.*.{own}" for name, own in pairs}
                continue
            numbers = range(depths[stack])
            before = [f"{theirs}.{number}.{name}" for number in numbers for name in self.norms[stack]]
            after = [f"{ours}.{number}.{name}" for number in numbers for name in _OUR_NORMS[stack]]
            if stack == "decoder":
                after = [*after[:-1], "decoder_norm"]
            ended = [*before, f"{self.stacks}{stack}.{self.final_norm}"]
            rows |= dict(zip(ended, [f"{stack}_input_norm", *after], strict=True))
        if not pre_norm:
            rows[f"{self.stacks}decoder.{self.final_norm}"] = "decoder_norm"
        return rows


def depth_of(names: Iterable[str], layers: str) -> int:
    """Return how many numbered layers there are below a name."""
    pattern = re.compile(rf"{re.escape(layers)}\.(\d+)\.")
    return 1 + max((int(found[1]) for name in names if (found := pattern.match(name))), default=-1)


def _backbone(prefix: str, stem: Mapping[str, str], stage: str, parts: Mapping[str, str]) -> dict[str, str]:
    """Return the names of a ResNet's weights; ``stage`` has the place of the stage's number, from 1 or from 0."""
    modules = {f"{prefix}{name}": f"backbone.{own}" for name, own in stem.items()}
    for number in range(4):
        beginning = prefix + stage.format(one=number + 1, zero=number)
        modules |= {f"{beginning}.*.{name}": f"backbone.layer{number + 1}.*.{own}" for name, own in parts.items()}
    statistics = {
        f"{name}.{kind}": f"{own}.{kind}" for name, own in modules.items() for kind in ("running_mean", "running_var")
    }
    return modules | statistics


def _timm_backbone(prefix: str) -> dict[str, str]:
    """Return the names of timm's and torchvision's ResNets, which are ours."""
    parts = [*(f"{kind}{number}" for number in (1, 2, 3) for kind in ("conv", "bn")), "downsample.0", "downsample.1"]
    return _backbone(prefix, {"conv1": "conv1", "bn1": "bn1"}, "layer{one}", {part: part for part in parts})


def _transformers_backbone(prefix: str) -> dict[str, str]:
    """Return the names of Hugging Face's own ResNet."""
    kinds = {"convolution": "conv", "normalization": "bn"}
    stem = {f"embedder.embedder.{name}": f"{own}1" for name, own in kinds.items()}
    parts = {f"layer.{number}.{name}": f"{own}{number + 1}" for number in range(3) for name, own in kinds.items()}
    parts |= {"shortcut.convolution": "downsample.0", "shortcut.normalization": "downsample.1"}
    return _backbone(prefix, stem, "encoder.stages.{zero}.layers", parts)


_STACKED = {f"in_proj_{kind}": f"query_key_value.{kind}" for kind in ("weight", "bias")} | {"out_proj": "output"}
_OFFICIAL_FEED_FORWARD = {"linear1": "feed_forward.expand", "linear2": "feed_forward.contract"}


def _attention(theirs: str, ours: str, parts: Mapping[str, str]) -> dict[str, str]:
    return {f"{theirs}{name}": f"{ours}_attention.{own}" for name, own in parts.items()}


_OFFICIAL_ENCODER = _attention("self_attn.", "self", _STACKED) | _OFFICIAL_FEED_FORWARD
OFFICIAL = Layout(
    "official DETR",
    DETR,
    {
        **_timm_backbone("backbone.0.body."),
        "backbone.1.row_embed": "positions.row_embedding",
        "backbone.1.col_embed": "positions.column_embedding",
        "input_proj": "input_projection",
        "query_embed": "query_embedding",
        "class_embed": "class_head",
        "bbox_embed.layers.*": "box_head.layers.*",
    },
    "transformer.",
    {
        "encoder": _OFFICIAL_ENCODER,
        "decoder": _OFFICIAL_ENCODER | _attention("multihead_attn.", "cross", _STACKED),
    },
    {"encoder": ("norm1", "norm2"), "decoder": ("norm1", "norm2", "norm3")},
    "norm",
    frozenset(
        {
            "backbone.0.body.conv1.weight",
            "query_embed.weight",
            "transformer.decoder.layers.0.multihead_attn.in_proj_weight",
        }
    ),
    split=False,
)

_SPLIT = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}
# Conditional DETR projects content and position apart, on disk outside the modules of attention.
_APART = {
    "q_content_proj": "query_content",
    "q_pos_proj": "query_position",
    "k_content_proj": "key_content",
    "k_pos_proj": "key_position",
    "v_proj": "value",
}
_APART_ON_DISK = {
    "qcontent_proj": "query_content",
    "qpos_proj": "query_position",
    "kcontent_proj": "key_content",
    "kpos_proj": "key_position",
    "v_proj": "value",
}


def hugging_face(network: type[DETR], *, memory: bool, timm: bool) -> Layout:
    """Return a layout of Hugging Face's.

    Args:
        network: ``DETR`` or ``ConditionalDETR``.
        memory: The names in a model of version 5; else those on disk.
        timm: The backbone as timm names it; else as Hugging Face's own ResNet does.
    """
    output, mlp = ("o_proj", "mlp.") if memory else ("out_proj", "")
    backbone = "model.backbone.model." if memory else "model.backbone.conv_encoder.model."
    around = {
        **(_timm_backbone(backbone) if timm else _transformers_backbone(backbone)),
        # The second two are those of version 4 and of the Table Transformer.
        **{f"model.position_embedding.{axis}_embeddings": f"positions.{axis}_embedding" for axis in ("row", "column")},
        "model.backbone.position_embedding.row_embeddings": "positions.row_embedding",
        "model.backbone.position_embedding.column_embeddings": "positions.column_embedding",
        "model.input_projection": "input_projection",
        "model.query_position_embeddings": "query_embedding",
        "class_labels_classifier": "class_head",
        "bbox_predictor.layers.*": "box_head.layers.*",
    }
    feed_forward = {f"{mlp}fc1": "feed_forward.expand", f"{mlp}fc2": "feed_forward.contract"}
    encoder = _attention("self_attn.", "self", _SPLIT | {output: "output"}) | feed_forward
    stem = "conv1" if timm else "embedder.embedder.convolution"
    if network is DETR:
        first = "encoder_attn.q_proj"
        decoder = encoder | _attention("encoder_attn.", "cross", _SPLIT | {output: "output"})
    else:
        around |= {
            "model.decoder.query_scale.layers.*": "place_scale.layers.*",
            "model.decoder.ref_point_head.layers.*": "reference_head.layers.*",
        }
        starts = ("self_attn.", "encoder_attn.") if memory else ("sa_", "ca_")
        apart, place = (_APART, "q_pos_sine_proj") if memory else (_APART_ON_DISK, "qpos_sine_proj")
        first = "encoder_attn.q_content_proj" if memory else "ca_qcontent_proj"
        decoder = feed_forward | _attention(starts[0], "self", apart)
        decoder |= _attention(starts[1], "cross", apart | {place: "query_place"})
        decoder |= {f"self_attn.{output}": "self_attention.output", f"encoder_attn.{output}": "cross_attention.output"}
    return Layout(
        f"Hugging Face {'DETR' if network is DETR else 'Conditional DETR'}",
        network,
        around,
        "model.",
        {"encoder": encoder, "decoder": decoder},
        {
            "encoder": ("self_attn_layer_norm", "final_layer_norm"),
            "decoder": ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
        },
        "layernorm",
        frozenset({f"{backbone}{stem}.weight", f"model.decoder.layers.0.{first}.weight"}),
        split=True,
    )


HUGGING_FACE = tuple(
    hugging_face(network, memory=memory, timm=timm)
    for network, memory, timm in chain.from_iterable(
        [(network, memory, timm) for memory in (False, True) for timm in (True, False)]
        for network in (DETR, ConditionalDETR)
    )
)
