"""The names of a Swin's weights in each public layout, and what its buffers say.

Microsoft's files and timm's call the layers alike, but a stage of Microsoft's ends with the merging that opens the next
one of timm's and of ours. Hugging Face stores query, key and value apart. torchvision numbers stages and mergings in
one row and gives the keys of V2 a bias that it sets to zero.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from math import isqrt

import torch
from torch import Tensor

from lit_models.pretrained.family import Facts, Size, Weights
from lit_models.pretrained.names import to_ours, to_theirs

BUFFERS = ("relative_position_index", "relative_coords_table", "attn_mask")
"""Endings of the names of what every network makes anew from its windows and its image."""
_BIAS = ".attention.query_key_value.bias"


@dataclass(frozen=True)
class Layout:
    """Where a public layout keeps the weights of a Swin.

    Attributes:
        around: Their name to ours, of what is outside the stages.
        layer: Name of the layers of a stage, ``*`` for their number.
        merging: Name of the merging that opens a stage, from the second on.
        parts: Their name to ours, within a layer.
        structural: Beginnings of names without which the network would compute something else.
        joined_bias: Whether the three biases of V2 are one, with zeros for the keys.
        split: Whether query, key and value are apart.
    """

    around: Mapping[str, str]
    layer: Callable[[int], str]
    merging: Callable[[int], str]
    parts: Mapping[str, str]
    structural: tuple[str, ...]
    joined_bias: bool = False
    split: bool = False

    def read(self, tensors: Mapping[str, Tensor]) -> Weights:
        """Return weights under this project's names; buffers are left out, they are made anew.

        Raises:
            ValueError: If one changes what the network computes and has no place in it.
        """
        kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(BUFFERS)}
        weights = to_ours(kept, self._rows(self.stages(tensors)), self.structural)
        for name, tensor in list(weights.tensors.items()):
            if name.endswith(".attention.logit_scale"):
                weights.tensors[name] = tensor.flatten()
                bias = name.replace(".attention.logit_scale", _BIAS)
                if self.joined_bias and bias in weights.tensors:
                    query, _, value = weights.tensors.pop(bias).chunk(3)
                    for part, piece in (("query", query), ("value", value)):
                        ours = name.replace("logit_scale", f"{part}_bias")
                        weights.tensors[ours], weights.origin[ours] = piece, weights.origin[bias]
        return weights

    def write(self, state: Mapping[str, Tensor], stages: int) -> dict[str, Tensor]:
        """Return a network's weights under the names of the layout, without buffers."""
        theirs = dict(state)
        for name, tensor in state.items():
            if name.endswith(".attention.logit_scale"):
                theirs[name] = tensor[:, None, None]
            if self.joined_bias and name.endswith(".attention.query_bias"):
                value = theirs.pop(name.replace("query_bias", "value_bias"))
                theirs[name.replace(".attention.query_bias", _BIAS)] = torch.cat(
                    [theirs.pop(name), torch.zeros_like(value), value]
                )
        return to_theirs(theirs, self._rows(stages), split="stages." if self.split else None)

    def stages(self, names: Iterable[str]) -> int:
        """Return how many stages have layers."""
        joined = "\n".join(("", *names))
        return next(stage for stage in count() if f"\n{self.beginning(stage)}" not in joined)

    def beginning(self, stage: int) -> str:
        """Return how the names of a stage's layers begin."""
        return self.layer(stage).removesuffix("*")

    def _rows(self, stages: int) -> dict[str, str]:
        rows = dict(self.around)
        for stage in range(stages):
            if stage:
                rows |= {f"{self.merging(stage)}.{part}": f"stages.{stage}.merging.{part}" for part in _MERGING}
            rows |= {
                f"{self.layer(stage)}.{name}": f"stages.{stage}.layers.*.{own}" for name, own in self.parts.items()
            }
        return rows


_MERGING = ("norm", "reduction")
_POSITION_MLP = {f"cpb_mlp.{number}": f"attention.position_mlp.{number}" for number in (0, 2)}
_NUMBERED = {
    "norm1": "attention_norm",
    "attn.qkv": "attention.query_key_value",
    "attn.relative_position_bias_table": "attention.bias_table",
    "attn.logit_scale": "attention.logit_scale",
    "attn.proj": "attention.output",
    "norm2": "feed_forward_norm",
    **{f"attn.{name}": own for name, own in _POSITION_MLP.items()},
}
_OFFICIAL_PARTS = {
    **_NUMBERED,
    "attn.q_bias": "attention.query_bias",
    "attn.v_bias": "attention.value_bias",
    "mlp.fc1": "feed_forward.expand",
    "mlp.fc2": "feed_forward.contract",
}
_TORCHVISION_PARTS = {**_NUMBERED, "mlp.0": "feed_forward.expand", "mlp.3": "feed_forward.contract"}
_EMBEDDING = {"patch_embed.proj": "patch_embedding", "patch_embed.norm": "patch_norm", "norm": "norm"}
_OFFICIAL_STRUCTURE = ("layers.", "patch_embed.", "absolute_pos_embed", "norm")


def _official_layer(stage: int) -> str:
    return f"layers.{stage}.blocks.*"


OFFICIAL = Layout(
    {**_EMBEDDING, "head": "head"},
    _official_layer,
    lambda stage: f"layers.{stage - 1}.downsample",
    _OFFICIAL_PARTS,
    _OFFICIAL_STRUCTURE,
)
TIMM = Layout(
    {**_EMBEDDING, "head.fc": "head"},
    _official_layer,
    lambda stage: f"layers.{stage}.downsample",
    _OFFICIAL_PARTS,
    _OFFICIAL_STRUCTURE,
)
TORCHVISION = Layout(
    {"features.0.0": "patch_embedding", "features.0.2": "patch_norm", "norm": "norm", "head": "head"},
    lambda stage: f"features.{2 * stage + 1}.*",
    lambda stage: f"features.{2 * stage}",
    _TORCHVISION_PARTS,
    ("features.", "norm"),
    joined_bias=True,
)
_QUERY_KEY_VALUE = ("query", "key", "value")
_DISK = {
    "layernorm_before": "attention_norm",
    **{f"attention.self.{part}": f"attention.{part}" for part in _QUERY_KEY_VALUE},
    "attention.output.dense": "attention.output",
    "layernorm_after": "feed_forward_norm",
    "intermediate.dense": "feed_forward.expand",
    "output.dense": "feed_forward.contract",
}
_DISK_V1 = {**_DISK, "attention.self.relative_position_bias_table": "attention.bias_table"}
# The keys of V2 have no bias, so that there is nothing to stack: the other two keep their names.
_V2 = {
    "attention.self.query.bias": "attention.query_bias",
    "attention.self.value.bias": "attention.value_bias",
    "attention.self.logit_scale": "attention.logit_scale",
    **{
        f"attention.self.continuous_position_bias_{name.removeprefix('cpb_')}": own
        for name, own in _POSITION_MLP.items()
    },
}
_MEMORY_V1 = {
    "layernorm_before": "attention_norm",
    **{f"attention.{part[0]}_proj": f"attention.{part}" for part in _QUERY_KEY_VALUE},
    "attention.relative_position_bias.relative_position_bias_table": "attention.bias_table",
    "attention.o_proj": "attention.output",
    "layernorm_after": "feed_forward_norm",
    "mlp.fc1": "feed_forward.expand",
    "mlp.fc2": "feed_forward.contract",
}


def hugging_face(prefix: str, *, version: int, memory: bool) -> Layout:
    """Return Hugging Face's layout.

    Args:
        prefix: Of everything but the head: ``"swin."``, ``"swinv2."`` or, without a head, nothing.
        version: Of Swin.
        memory: The names of V1 in a model of version 5; V2 has one set of names.
    """
    around = {
        f"{prefix}embeddings.patch_embeddings.projection": "patch_embedding",
        f"{prefix}embeddings.norm": "patch_norm",
        f"{prefix}layernorm": "norm",
        "classifier": "head",
    }
    return Layout(
        around,
        lambda stage: f"{prefix}encoder.layers.{stage}.blocks.*",
        lambda stage: f"{prefix}encoder.layers.{stage - 1}.downsample",
        {**_V2, **_DISK} if version == 2 else _MEMORY_V1 if memory else _DISK_V1,
        tuple(
            f"{prefix}{name}"
            for name in ("encoder.", "layernorm", "embeddings.pos", "embeddings.pat", "embeddings.norm")
        ),
        split=True,
    )


def buffer_facts(layout: Layout, tensors: Mapping[str, Tensor], patch_size: int) -> Facts:
    """Return the windows, those that the position MLP was trained with and the image size, as far as buffers tell."""
    windows: list[Size | None] = []
    trained: list[Size | None] = []
    sides = []
    for stage in range(layout.stages(tensors)):
        inside = [name for name in sorted(tensors) if name.startswith(layout.beginning(stage))]
        index, offsets, mask = (
            next((tensors[name] for name in inside if name.endswith(buffer)), None) for buffer in BUFFERS
        )
        window = None
        if offsets is not None and offsets.dim() == 4:
            window = (offsets.shape[1] + 1) // 2, (offsets.shape[2] + 1) // 2
            trained.append(_unit(window, offsets[0, -1, -1]))
        elif index is not None:
            window = (isqrt(isqrt(index.numel())),) * 2
        windows.append(window)
        if mask is not None and mask.dim() == 3:  # of every window and token of the map
            sides.append(isqrt(mask.shape[0] * mask.shape[1]) * patch_size * 2**stage)
    known = None not in windows
    return Facts(
        image_size=(sides[0], sides[0]) if sides else None,
        windows=tuple(windows) if windows and known else None,  # type: ignore[arg-type]
        pretrained_windows=tuple(trained) if known and len(trained) == len(windows) and trained != windows else None,  # type: ignore[arg-type]
    )


def _unit(window: Size, largest: Tensor) -> Size:
    """Return the windows to which offsets are relative, from what became of the largest: log2(1 + 8 · offset) / 3."""
    sides = []
    for side, value in zip(window, largest.tolist(), strict=True):
        scaled = 2 ** (3 * value) - 1  # 8 (side - 1) / (unit - 1); a window of one has nothing to scale
        sides.append(side if side == 1 or not scaled > 0 else 1 + round(8 * (side - 1) / scaled))
    return sides[0], sides[1]
