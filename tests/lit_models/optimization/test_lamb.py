"""LAMB by its formula, and its state."""

import pytest
import torch

from lit_models.optimization import Lamb


def test_first_step_is_the_papers():
    weight = torch.nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
    bias = torch.nn.Parameter(torch.randn(3, dtype=torch.float64))
    optimizer = Lamb(
        [{"params": [weight]}, {"params": [bias], "weight_decay": 0.0}], lr=0.1, weight_decay=0.2, max_grad_norm=None
    )
    before = (weight.detach().clone(), bias.detach().clone())
    weight.grad, bias.grad = torch.randn_like(weight), torch.randn_like(bias)
    optimizer.step()
    # After one step the corrected moments are the gradient and its square.
    direction = weight.grad / (weight.grad.abs() + 1e-6) + 0.2 * before[0]
    torch.testing.assert_close(weight.detach(), before[0] - 0.1 * before[0].norm() / direction.norm() * direction)
    torch.testing.assert_close(bias.detach(), before[1] - 0.1 * bias.grad / (bias.grad.abs() + 1e-6))


def test_state_resumes_exactly():
    def run(optimizer, weight, seeds):
        for seed in seeds:
            weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
            optimizer.step()

    straight = torch.nn.Parameter(torch.ones(4, 4))
    run(Lamb([straight]), straight, range(6))
    broken = torch.nn.Parameter(torch.ones(4, 4))
    first = Lamb([broken])
    run(first, broken, range(3))
    resumed = torch.nn.Parameter(broken.detach().clone())
    second = Lamb([resumed])
    second.load_state_dict(first.state_dict())
    run(second, resumed, range(3, 6))
    assert torch.equal(resumed, straight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr must be at least 0.0, got -1.0"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\] must be in \[0, 1\), got 1.0"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0.0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be above 0 or null, got 0.0"),
    ],
)
def test_impossible_values_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Lamb([torch.nn.Parameter(torch.ones(2))], **settings)
