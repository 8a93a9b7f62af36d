"""Attention by this project and by others, each called as its own documentation asks."""

import importlib
import warnings
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments.bench.kernel_case import OURS, Built, Inputs, NotSupported, Provider, compiled
from experiments.bench.kernel_timing import Outputs

if TYPE_CHECKING:
    from experiments.bench.attention import AttentionCase
    from kernels.flash_attention.tuning import Kind, Tile

SCORE_BYTES = 24
"""Bytes per score that a path which holds the scores takes: the kept ones of two sets of inputs and a backward's."""
_HEADERS = {
    SDPBackend.FLASH_ATTENTION: "flash attention kernel not used",
    SDPBackend.CUDNN_ATTENTION: "cudnn attention kernel not used",
    SDPBackend.EFFICIENT_ATTENTION: "memory efficient kernel not used",
}


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor | None, dropout: float
) -> Tensor:
    """Compute attention as one writes it first; ``mask`` is True where a key is visible, (batch, 1, queries, keys)."""
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(dim=-1)
    return (functional.dropout(weights, dropout) if dropout else weights) @ value


def _heddle(case: "AttentionCase", inputs: Inputs) -> Built:
    from kernels import flash_attention

    return Built(
        lambda: (
            flash_attention(
                inputs["query"],
                inputs["key"],
                inputs["value"],
                causal=case.causal,
                key_lengths=inputs["key_lengths"],
                bias=inputs["bias"],
                dropout_p=case.dropout,
            ),
        )
    )


def _plain(case: "AttentionCase", inputs: Inputs, function: Callable[..., Tensor] = plain_attention) -> Built:
    _check_scores_fit(case, inputs)
    names = ("query", "key", "value", "mask", "bias")
    return Built(lambda: (function(*(inputs[name] for name in names), case.dropout),))


def _compile(case: "AttentionCase", inputs: Inputs) -> Built:
    return _plain(case, inputs, compiled(plain_attention))


def _check_scores_fit(case: "AttentionCase", inputs: Inputs) -> None:
    """Refuse before the device runs out of memory, where every score is held."""
    device = inputs["query"].device
    total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 8 * 2**30
    needed = SCORE_BYTES * case.batch * case.heads * case.query_length * case.key_length
    if needed > 0.6 * total:
        raise NotSupported(f"holds every score, about {needed / 1e9:.0f} GB")


def _sdpa(case: "AttentionCase", inputs: Inputs, backend: SDPBackend | None = None) -> Built:
    """Call scaled_dot_product_attention: a mask only where lengths differ, the bias as a floating-point mask."""
    if backend == SDPBackend.MATH:
        _check_scores_fit(case, inputs)
    bias, padded = inputs["bias"], inputs["key_lengths"] is not None
    mask = bias if bias is not None else inputs["mask"] if padded else None
    if bias is not None and (padded or case.causal):
        raise NotSupported("takes either a bias or a mask")
    causal = case.causal and mask is None

    def forward() -> Outputs:
        query, key, value = inputs["query"], inputs["key"], inputs["value"]
        return (
            functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, dropout_p=case.dropout, is_causal=causal
            ),
        )

    if backend is None:
        return Built(forward)
    built = Built(forward, partial(sdpa_kernel, backend))
    _check_backend(built, backend)
    return built


def _check_backend(built: Built, backend: SDPBackend) -> None:
    """Raise NotSupported with torch's own reason if a backend refuses the inputs."""
    with warnings.catch_warnings(record=True) as caught, built.context():
        warnings.simplefilter("always")
        try:
            built.forward()
        except RuntimeError as stop:
            if "vailable kernel" not in str(stop) and "viable backend" not in str(stop):
                raise
            raise NotSupported(sdpa_reason([str(warning.message) for warning in caught], backend)) from stop


def sdpa_reason(messages: list[str], backend: SDPBackend) -> str:
    """Return why torch did not use a backend: what it warned of after naming it."""
    messages = [message.partition(" (Triggered internally")[0].strip() for message in messages]
    header = _HEADERS.get(backend)
    for number, message in enumerate(messages[:-1]):
        if header and message.lower().startswith(header):
            return messages[number + 1]
    return "torch has no such kernel for these inputs"


def _flex(case: "AttentionCase", inputs: Inputs) -> Built:
    if case.dropout:
        raise NotSupported("has no dropout")
    if inputs["query"].device.type != "cuda":
        raise NotSupported("has no backward on a CPU")
    attend = compiled(_flex_with_bias if case.bias else _flex_without_bias)
    names = ("query", "key", "value", "bias") if case.bias else ("query", "key", "value")
    block_mask = _block_mask(case, inputs["key_lengths"], str(inputs["query"].device))
    return Built(lambda: (attend(*(inputs[name] for name in names), block_mask),))


def _flex_without_bias(query: Tensor, key: Tensor, value: Tensor, block_mask: Any) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(query, key, value, block_mask=block_mask)


def _flex_with_bias(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, block_mask: Any) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    def add_bias(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return score + bias[0, head, row, column]

    return flex_attention(query, key, value, score_mod=add_bias, block_mask=block_mask)


@lru_cache(maxsize=2)
def _block_mask(case: "AttentionCase", key_lengths: Tensor | None, device: str) -> Any:
    """Return which blocks are visible; one for all sets of inputs, since each new mask would be compiled anew."""
    from torch.nn.attention.flex_attention import create_block_mask

    shift = case.key_length - case.query_length

    def visible(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        seen = column <= row + shift if case.causal else column >= 0
        return seen if key_lengths is None else seen & (column < key_lengths[batch])

    if not case.causal and key_lengths is None:
        return None
    batch = None if key_lengths is None else case.batch
    return create_block_mask(visible, batch, None, case.query_length, case.key_length, device=device)


def _flash_package(case: "AttentionCase", inputs: Inputs, module: str, has_dropout: bool) -> Built:
    """Call flash_attn_func, whose tensors are (batch, length, heads, head_dim)."""
    try:
        attend = importlib.import_module(module).flash_attn_func
    except Exception as stop:  # a package built for another torch fails in many ways
        raise NotSupported(f"{module} is not installed") from stop
    if case.bias:
        raise NotSupported("has no bias")
    if inputs["key_lengths"] is not None:
        raise NotSupported("takes packed tokens, not a padded batch")
    if case.dropout and not has_dropout:
        raise NotSupported("has no dropout")
    options = {"dropout_p": case.dropout} if has_dropout else {}

    def forward() -> Outputs:
        query, key, value = (inputs[name].transpose(1, 2) for name in ("query", "key", "value"))
        output = attend(query, key, value, causal=case.causal, **options)
        return ((output[0] if isinstance(output, tuple) else output).transpose(1, 2),)

    return Built(forward)


PROVIDERS: dict[str, Provider] = {
    OURS: _heddle,
    "sdpa": _sdpa,
    "sdpa-flash": partial(_sdpa, backend=SDPBackend.FLASH_ATTENTION),
    "sdpa-cudnn": partial(_sdpa, backend=SDPBackend.CUDNN_ATTENTION),
    "sdpa-efficient": partial(_sdpa, backend=SDPBackend.EFFICIENT_ATTENTION),
    "sdpa-math": partial(_sdpa, backend=SDPBackend.MATH),
    "plain": _plain,
    "compile": _compile,
    "flex": _flex,
    "flash-attn-2": partial(_flash_package, module="flash_attn", has_dropout=True),
    "flash-attn-3": partial(_flash_package, module="flash_attn_interface", has_dropout=False),
}


def tile_providers(kinds: Iterable["Kind"]) -> dict[str, Provider]:
    """Return this project's attention with the tiles that it chooses, and with every tile that a kernel can have.

    Args:
        kinds: Kernels as ``kernels.flash_attention.tuning`` names them.
    """
    from kernels.flash_attention import tuning

    tiles = [(kind, tile) for kind in kinds for tile in tuning.candidates(kind)]
    return {OURS: _heddle, **{_tile_name(kind, tile): partial(_tiled, kind=kind, tile=tile) for kind, tile in tiles}}


def _tile_name(kind: str, tile: "Tile") -> str:
    return f"{kind} {tile.block_queries}x{tile.block_keys} warps {tile.num_warps} stages {tile.num_stages}"


def _tiled(case: "AttentionCase", inputs: Inputs, kind: "Kind", tile: "Tile") -> Built:
    from kernels.flash_attention import tuning

    if kind == "backward_bias" and not case.bias:
        raise NotSupported("has no bias")
    return Built(_heddle(case, inputs).forward, partial(tuning.forced, kind, tile))
