"""Which parameters are decayed, at which rate, under which wrapper."""

import pytest
import torch
from torch import nn

from lit_models.optimization import parameter_groups, set_learning_rates


class Net(nn.Module):
    """Three depths; ``token`` is two-dimensional and named as not decayed."""

    num_layers = 2

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2)
        self.token = nn.Parameter(torch.zeros(1, 4))
        self.scale = nn.Parameter(torch.ones(()))
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 5)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, x):
        return x

    def no_weight_decay(self):
        return {"token"}

    def layer_of(self, name):
        if name.startswith("layers."):
            return int(name.split(".")[1]) + 1
        return 0 if name.startswith(("stem", "token", "scale")) else 3


DECAYED = {"stem.weight", "layers.0.weight", "layers.1.weight", "head.weight"}


def names_of(network, parameters):
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {names[id(parameter)] for parameter in parameters}


class Parallel(nn.Module):
    """What DistributedDataParallel does to names."""

    def __init__(self, module):
        super().__init__()
        self.module = module


WRAPPERS = {
    "bare": lambda network: network,
    "parallel": Parallel,
    "compiled": torch.compile,
    "both": lambda network: Parallel(torch.compile(network)),
    "other way": lambda network: torch.compile(Parallel(network)),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_row_9_no_decay_whatever_the_wrapper(wrapper):
    network = Net()
    groups = parameter_groups(WRAPPERS[wrapper](network))
    decayed = [p for group in groups if "weight_decay" not in group for p in group["params"]]
    kept = [p for group in groups if group.get("weight_decay") == 0.0 for p in group["params"]]
    assert names_of(network, decayed) == DECAYED
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert names_of(network, kept) == trained - DECAYED
    assert len(kept) + len(decayed) == len(trained)
    optimizer = torch.optim.AdamW(groups, lr=1.0, weight_decay=0.05)
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0.0, 0.05]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_layer_decay_is_timms_formula(wrapper):
    network = Net()
    groups = parameter_groups(WRAPPERS[wrapper](network), 0.5)
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    assert set_learning_rates(optimizer, 2.0) == pytest.approx(0.2)
    rates = {}
    for group in optimizer.param_groups:
        rates |= dict.fromkeys(names_of(network, group["params"]), group["lr"])
    for name, rate in rates.items():
        assert rate == pytest.approx(0.2 * 0.5 ** (2 + 1 - network.layer_of(name))), name
    assert rates["head.weight"] == pytest.approx(0.2)
    assert rates["stem.weight"] == pytest.approx(0.2 / 8)


def test_impossible_layer_decay():
    for value in (0.0, -1.0, 1.5):
        with pytest.raises(ValueError, match=f"layer_decay must be above 0 and at most 1, got {value}"):
            parameter_groups(Net(), value)
    network = Net()
    network.num_layers = 0
    with pytest.raises(ValueError, match="layer_decay is 0.5, but Net names no layers"):
        parameter_groups(network, 0.5)
