"""LAMB: Adam whose step is as long as the layer's weights ask for."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lit_models.checks import check_at_least, check_probability


class Lamb(Optimizer):
    r"""LAMB (You et al. 2020, https://arxiv.org/abs/1904.00962), as DeiT III uses it.

    With Adam's step :math:`u = \hat m / (\sqrt{\hat v} + \epsilon) + \lambda w` of a tensor w, the weights change by
    :math:`-\eta \frac{\|w\|}{\|u\|} u`; the ratio is 1 where either norm is 0, and for groups that are not decayed
    (norms and biases), as in timm and NVIDIA's FusedLAMB. All gradients together are first cut to a norm.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate η.
        betas: Decay rates of the two moments.
        eps: ε.
        weight_decay: λ.
        max_grad_norm: The gradients of all groups are scaled down to this norm; None leaves them.

    Raises:
        ValueError: If a number is impossible.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        max_grad_norm: float | None = 1.0,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            check_at_least(name, value, 0.0)
        for index, beta in enumerate(betas):
            check_probability(f"betas[{index}]", beta)
        if max_grad_norm is not None and max_grad_norm <= 0:
            raise ValueError(f"max_grad_norm must be above 0 or null, got {max_grad_norm}")
        self.max_grad_norm = max_grad_norm
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step.

        Args:
            closure: Computes the loss and its gradients anew.

        Returns:
            What the closure returns.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        shrink = self._shrink()
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            if trained:
                self._step_group(group, trained, shrink)
        return loss

    def _shrink(self) -> Tensor | None:
        """Return what all gradients are divided by, at least 1: a scalar on their device."""
        if self.max_grad_norm is None:
            return None
        groups = self.param_groups
        gradients = [parameter.grad for group in groups for parameter in group["params"] if parameter.grad is not None]
        if not gradients:
            return None
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        return (norm / self.max_grad_norm).clamp(min=1.0)

    def _step_group(self, group: dict[str, Any], trained: list[Tensor], shrink: Tensor | None) -> None:
        for parameter in trained:
            state = self.state[parameter]
            if not state:
                state.update(step=0, mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
            state["step"] += 1
        means, squares = ([self.state[parameter][name] for parameter in trained] for name in ("mean", "square"))
        gradients: list[Tensor] = [parameter.grad for parameter in trained if parameter.grad is not None]
        if shrink is not None:
            gradients = list(torch._foreach_div(gradients, shrink))
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        # A parameter that had no gradient for a while has made fewer steps than the others.
        steps = [self.state[parameter]["step"] for parameter in trained]
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, [(1 - beta2**step) ** 0.5 for step in steps])
        torch._foreach_add_(roots, group["eps"])
        updates = list(torch._foreach_div(means, [1 - beta1**step for step in steps]))
        torch._foreach_div_(updates, roots)
        if group["weight_decay"]:
            torch._foreach_add_(updates, trained, alpha=group["weight_decay"])
            torch._foreach_mul_(updates, _trust_ratios(trained, updates))
        torch._foreach_add_(trained, updates, alpha=-group["lr"])


def _trust_ratios(weights: list[Tensor], updates: list[Tensor]) -> list[Tensor]:
    """Return the norm of each weight by that of its update, 1 where either is 0."""
    own, steps = torch.stack(torch._foreach_norm(weights)), torch.stack(torch._foreach_norm(updates))
    return list(torch.where((own > 0) & (steps > 0), own / steps, 1.0).unbind())
