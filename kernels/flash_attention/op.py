"""The public attention functions, their checks, and their operators ``heddle::attention_forward`` and ``_backward``."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kernels.backend import runs_triton
from kernels.dropout import new_seed
from kernels.flash_attention import reference
from kernels.flash_attention.checks import check_dense, check_packed, check_triton
from kernels.library import LIBRARY, first_order, implement

# A tile has at most 256 rows, and their offsets are 32-bit numbers.
FAR = 2**23


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = False,
    key_lengths: Tensor | None = None,
    bias: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Compute ``softmax(query keyᵀ · scale + bias) value`` (Vaswani et al. 2017, section 3.2.1).

    On CUDA tensors this is a Triton kernel that holds neither the scores nor the dropout mask (Dao 2023,
    FlashAttention-2); it takes float16, bfloat16 and float32, the last in TensorFloat-32 if torch's
    ``set_float32_matmul_precision`` allows it, and head_dims that are multiples of 8 from 16 to 256. Under autocast the
    inputs are cast as torch's own attention casts them. Gradients are deterministic, that of a bias too.

    Args:
        query: (batch, heads, query_length, head_dim), floating point, any strides; a contiguous last dimension is read
            in place.
        key: (batch, key_heads, key_length, head_dim); ``key_heads`` divides ``heads`` (grouped-query attention).
        value: (batch, key_heads, key_length, value_head_dim).
        causal: Query ``i`` sees keys up to ``i + key_length - query_length``, so that a block of queries that is
            shorter than the keys sees the whole past, as in cached decoding.
        key_lengths: (batch,) int32 or int64; keys at or after an example's length are not seen. Values above
            ``key_length`` mean all keys.
        bias: Added to the scores, floating point; broadcasts to (batch, heads, query_length, key_length). An entry of
            -inf hides a key.
        dropout_p: Probability of dropping an attention weight, in [0, 1).
        scale: Positive factor of the scores; ``head_dim ** -0.5`` if None.

    Returns:
        (batch, heads, query_length, value_head_dim) in the dtype of ``query``. A query that sees no key gives 0.

    Raises:
        ValueError: If ranks, shapes, dtypes, devices, ``dropout_p`` or ``scale`` do not fit; the message names the
            argument.
    """
    check_dense(query, key, value, key_lengths, bias, dropout_p, scale)
    if not runs_triton(query, "flash_attention"):
        return reference.attention(
            query, key, value, causal=causal, key_lengths=key_lengths, bias=bias, dropout_p=dropout_p, scale=scale
        )
    if bias is not None:
        bias = bias[(None,) * (4 - bias.dim())]
    return _apply(
        query, key, value, bias, key_lengths, None, None, query.shape[2], key.shape[2], causal, dropout_p, scale
    )


def flash_attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    offsets_query: Tensor,
    offsets_key: Tensor,
    max_length_query: int,
    max_length_key: int,
    causal: bool = False,
    dropout_p: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Compute :func:`flash_attention` over sequences packed one after the other, without padding.

    Args:
        query: (query_tokens, heads, head_dim).
        key: (key_tokens, key_heads, head_dim).
        value: (key_tokens, key_heads, value_head_dim).
        offsets_query: (sequences + 1,) int32 or int64 on the device of ``query``: sequence ``s`` has the tokens from
            ``offsets_query[s]`` to before ``offsets_query[s + 1]``. Rising; values outside the tensor are clamped.
        offsets_key: The same of the keys.
        max_length_query: Queries of the longest sequence, at most ``query_tokens``; what a sequence has beyond it is
            left out.
        max_length_key: Keys of the longest sequence, at most ``key_tokens``, likewise.
        causal: As in :func:`flash_attention`, in each sequence.
        dropout_p: As in :func:`flash_attention`.
        scale: As in :func:`flash_attention`.

    Returns:
        (query_tokens, heads, value_head_dim); tokens outside every sequence give 0.

    Raises:
        ValueError: As :func:`flash_attention` does.
    """
    check_packed(query, key, value, offsets_query, offsets_key, max_length_query, max_length_key, dropout_p, scale)
    if not runs_triton(query, "flash_attention_varlen"):
        return reference.packed_attention(
            query,
            key,
            value,
            offsets_query,
            offsets_key,
            max_length_query,
            max_length_key,
            causal=causal,
            dropout_p=dropout_p,
            scale=scale,
        )
    query, key, value = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
    output = _apply(
        query,
        key,
        value,
        None,
        None,
        offsets_query,
        offsets_key,
        max_length_query,
        max_length_key,
        causal,
        dropout_p,
        scale,
    )
    return output[0].transpose(0, 1)


def attention_weights(
    query: Tensor,
    key: Tensor,
    *,
    causal: bool = False,
    key_lengths: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Return the attention weights that :func:`flash_attention` never holds: an explicit slow path for looking at them.

    Args:
        query: As for :func:`flash_attention`.
        key: As for :func:`flash_attention`.
        causal: As for :func:`flash_attention`.
        key_lengths: As for :func:`flash_attention`.
        scale: As for :func:`flash_attention`.

    Returns:
        (batch, heads, query_length, key_length); each row sums to 1, or to 0 if its query sees no key.

    Raises:
        ValueError: As :func:`flash_attention` does.
    """
    check_dense(query, key, key, key_lengths, None, 0.0, scale)
    mask = reference.attention_mask(
        query.shape[2], key.shape[2], causal=causal, key_lengths=key_lengths, device=query.device
    )
    weights = reference.softmax_scores(query, key, mask=mask, scale=scale)
    return weights if mask is None else weights.masked_fill(~mask, 0.0)


def _apply(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    key_lengths: Tensor | None,
    offsets_query: Tensor | None,
    offsets_key: Tensor | None,
    max_query: int,
    max_key: int,
    causal: bool,
    dropout_p: float,
    scale: float | None,
) -> Tensor:
    """Run the Triton path on (batch, heads, length, head_dim), or (1, heads, tokens, head_dim) with offsets."""
    check_triton(query, value)
    device = query.device
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    query, key, value = (_addressable(tensor) for tensor in (query, key, value))
    key_lengths, offsets_query, offsets_key = (
        None if tensor is None else tensor.contiguous() for tensor in (key_lengths, offsets_query, offsets_key)
    )
    if bias is not None and max(bias.stride()[2:]) >= FAR:
        bias = bias.contiguous()
    seed = new_seed(device) if dropout_p > 0.0 else None
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    # torch.compile takes no tensor twice: not x three times, nor one tensor of offsets for queries and keys.
    if key is query:
        key = key.view_as(key)
    if value is key or value is query:
        value = value.view_as(value)
    if offsets_key is not None and offsets_key is offsets_query:
        offsets_key = offsets_key.view_as(offsets_key)
    tensors = (query, key, value, bias, key_lengths, offsets_query, offsets_key, seed)
    return _Attention.apply(*tensors, max_query, max_key, causal, dropout_p, scale)


def _addressable(tensor: Tensor) -> Tensor:
    """Return a tensor whose last dimension is contiguous and whose tiles the kernels can address with 32 bits."""
    return tensor if tensor.stride(-1) == 1 and tensor.stride(-2) < FAR else tensor.contiguous()


INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? bias, Tensor? key_lengths, Tensor? offsets_query, "
    "Tensor? offsets_key, Tensor? seed, SymInt max_query, SymInt max_key, bool causal, float dropout_p, float scale"
)
LIBRARY.define(f"attention_forward({INPUTS}) -> (Tensor, Tensor)")
LIBRARY.define(
    f"attention_backward(Tensor grad_output, Tensor output, Tensor lse, bool[4] needed, {INPUTS}) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, *inputs: Any) -> Tensor:
        output, lse = torch.ops.heddle.attention_forward(*inputs)
        context.save_for_backward(*inputs[:8], output, lse)
        context.settings = inputs[8:]
        return output

    @staticmethod
    def backward(context: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        needed = context.needs_input_grad[:4]
        *inputs, output, lse = context.saved_tensors
        grads = first_order(
            "flash_attention",
            torch.ops.heddle.attention_backward,
            grad_output,
            output.detach(),
            lse,
            needed,
            *inputs,
            *context.settings,
        )
        return *(grad if wanted else None for grad, wanted in zip(grads, needed, strict=True)), *(None,) * 9


def rows_first(shape: tuple[int, ...], like: Tensor, packed: bool) -> Tensor:
    """Return a tensor (batch, heads, length, head_dim) that lies in memory as (batch, length, heads, head_dim).

    Merging its heads for the output projection is then a view. Packed sequences may leave rows unwritten: these are 0.
    """
    batch, heads, length, head_dim = shape
    make = torch.zeros if packed else torch.empty
    return make((batch, length, heads, head_dim), dtype=like.dtype, device=like.device).transpose(1, 2)


def _forward(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Implement ``heddle::attention_forward``."""
    output, lse = _forward_fake(query, key, value, *rest)
    if output.numel() == 0 or key.numel() == 0:
        return output.zero_(), lse.fill_(float("inf"))
    from kernels.flash_attention import forward

    forward.attention_forward(_problem(query, key, value, *rest), output, lse)
    return output, lse


@torch.library.register_fake("heddle::attention_forward", lib=LIBRARY)
def _forward_fake(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    output = rows_first((*query.shape[:3], value.shape[3]), query, packed=rest[2] is not None)
    return output, torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)


def _problem(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, *rest: Any) -> Any:
    from kernels.flash_attention.problem import Problem

    if bias is not None:
        bias = bias.expand(*query.shape[:3], key.shape[2])
    return Problem(query, key, value, bias, *rest)


def _backward(
    grad_output: Tensor, output: Tensor, lse: Tensor, needed: list[bool], *inputs: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Implement ``heddle::attention_backward``: gradients of query, key, value and bias, empty where not needed."""
    query, key, value, bias = inputs[:4]
    grads = list(_backward_fake(grad_output, output, lse, needed, *inputs))
    if output.numel() == 0 or key.numel() == 0:
        return tuple(grad.zero_() for grad in grads)
    from kernels.flash_attention import backward

    grad_output = _addressable(grad_output)
    problem = _problem(*inputs)
    delta = torch.empty_like(lse)
    backward.backward_query(problem, output, lse, grad_output, delta, grads[0] if needed[0] else None)
    if needed[1] or needed[2]:
        grad_key = grads[1] if needed[1] else torch.empty_like(key)
        grad_value = grads[2] if needed[2] else torch.empty_like(value)
        backward.backward_key_value(problem, lse, grad_output, delta, grad_key, grad_value)
    if needed[3]:
        if bias.shape[3] == key.shape[2]:
            grads[3] = backward.backward_bias(problem, lse, grad_output, delta, tuple(bias.shape), bias.dtype)
        else:
            # The same number added to every score of a row changes no weight.
            grads[3].zero_()
    return tuple(grads)


@torch.library.register_fake("heddle::attention_backward", lib=LIBRARY)
def _backward_fake(
    grad_output: Tensor, output: Tensor, lse: Tensor, needed: list[bool], *inputs: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    query, key, value, bias = inputs[:4]
    packed = inputs[5] is not None
    return (
        rows_first(query.shape, query, packed) if needed[0] else query.new_empty(0),
        rows_first(key.shape, key, packed) if needed[1] else query.new_empty(0),
        rows_first(value.shape, value, packed) if needed[2] else query.new_empty(0),
        torch.empty(bias.shape, dtype=bias.dtype, device=bias.device) if needed[3] else query.new_empty(0),
    )


implement("attention_forward", _forward)
implement("attention_backward", _backward)


@register_flop_formula(torch.ops.heddle.attention_forward)
def _forward_flops(query: torch.Size, key: torch.Size, value: torch.Size, *rest: Any, **_: Any) -> int:
    """Count the two products as torch counts those of its own attention: whole, whatever a mask leaves out."""
    max_key = rest[6]
    return 2 * query[0] * query[1] * query[2] * max_key * (query[3] + value[3])


@register_flop_formula(torch.ops.heddle.attention_backward)
def _backward_flops(
    grad_output: torch.Size, output: torch.Size, lse: torch.Size, needed: list[bool], *inputs: Any, **_: Any
) -> int:
    """Count five products, three over head_dim and two over value_head_dim; the second look at the scores is ours."""
    query, _, value = inputs[:3]
    return 2 * query[0] * query[1] * query[2] * inputs[9] * (3 * query[3] + 2 * value[3])
