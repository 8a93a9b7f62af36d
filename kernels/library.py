"""What the operators of all kernels share: the namespace ``torch.ops.heddle`` and how they refuse what they cannot."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels import hopper

LIBRARY = torch.library.Library("heddle", "FRAGMENT")


def implement(name: str, function: Callable[..., Any]) -> None:
    """Register what an operator does, on the device of its first tensor and with a compiler that is safe there."""

    def run(first: Tensor, *rest: Any) -> Any:
        if not first.is_cuda:
            return function(first, *rest)
        hopper.prepare(first)
        with torch.cuda.device_of(first):
            return function(first, *rest)

    LIBRARY.impl(name, run, "CompositeExplicitAutograd")


def refuse_transforms(function: str) -> None:
    """Raise a ValueError under torch.func's transforms, which cannot look into an operator.

    An autograd.Function that is made for them costs more on every call than the launch of its kernel.
    """
    if torch._C._are_functorch_transforms_active():
        raise ValueError(
            f"{function} does not go through torch.func (vmap, grad, jvp): it takes batches itself, and torch.autograd "
            "differentiates it"
        )


def first_order(function: str, backward: Callable[..., tuple[Tensor, ...]], *inputs: Any) -> tuple[Tensor, ...]:
    """Run a backward that cannot be differentiated, so that trying to raises an error.

    torch's ``once_differentiable`` lets a second backward pass in silence, without its terms, where the gradient that
    arrives is a constant.

    Args:
        function: The public function's name, for the message.
        backward: Returns the gradients.
        inputs: Its arguments; those that the first backward depends on must be among them.
    """
    if torch.is_grad_enabled():
        return _FirstOrder.apply(function, backward, *inputs)
    return backward(*inputs)


class _FirstOrder(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, function: str, backward: Callable[..., tuple[Tensor, ...]], *inputs: Any) -> Any:
        context.function = function
        return backward(*inputs)

    @staticmethod
    def backward(context: Any, *_: Any) -> Any:
        raise RuntimeError(f"{context.function} cannot be differentiated twice: its gradients have none")
