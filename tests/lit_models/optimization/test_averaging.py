"""The mean of weights: its formula, its precision, and what it refuses."""

import pytest
import torch

from lit_models.optimization import average_state_dicts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_mean_in_the_own_dtype(dtype):
    generator = torch.Generator().manual_seed(3)
    states = [{"w": torch.randn(3, 4, generator=generator).to(dtype)} for _ in range(5)]
    expected = torch.stack([state["w"].double() for state in states]).mean(0).to(dtype)
    averaged = average_state_dicts(states)["w"]
    assert averaged.dtype == dtype
    assert torch.equal(averaged, expected)


def test_sums_do_not_lose_small_differences_and_do_not_overflow():
    assert average_state_dicts([{"w": torch.tensor([60000.0]).half()}] * 20)["w"].item() == 60000.0
    states = [{"w": torch.tensor([1.0 + 2**-20 * (number % 2)])} for number in range(1000)]
    assert average_state_dicts(states)["w"].item() == 1.0 + 2**-21


def test_tied_weights_stay_tied_and_untied_ones_apart():
    states = []
    for number in range(2):
        shared = torch.full((2, 2), float(number))
        states.append({"source": shared, "target": shared, "other": shared.clone(), "turned": shared.T})
    averaged = average_state_dicts(states)
    assert averaged["source"] is averaged["target"]
    assert len({averaged[name].data_ptr() for name in ("source", "other", "turned")}) == 3
    assert all(value.eq(0.5).all() for value in averaged.values())
    # Tied in one state only: the values differ, so they may not share.
    states[1]["target"] = torch.full((2, 2), 5.0)
    averaged = average_state_dicts(states)
    assert averaged["source"].eq(0.5).all() and averaged["target"].eq(2.5).all()


def test_the_states_are_left_as_they_were():
    one, two = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    averaged = average_state_dicts([{"w": one}, {"w": two}])
    assert one.eq(0).all() and two.eq(1).all()
    alone = average_state_dicts([{"w": one, "n": torch.tensor(3)}])
    assert alone["w"].data_ptr() != one.data_ptr() and alone["n"].item() == 3
    assert averaged["w"].eq(0.5).all()


def test_integers_must_agree():
    same = [{"n": torch.tensor([1, 2]), "m": torch.tensor([True])} for _ in range(3)]
    assert average_state_dicts(same)["n"].tolist() == [1, 2]
    same[2]["n"] = torch.tensor([1, 3])
    with pytest.raises(ValueError, match="n holds no floating-point numbers, and state 3"):
        average_state_dicts(same)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"a": torch.zeros(2)}, "same names: b"),
        ({"a": torch.zeros(2), "b": torch.zeros(1), "c": torch.zeros(1)}, "same names: c"),
        ({"a": torch.zeros(3), "b": torch.zeros(1)}, r"a \(float32 \[2\] and float32 \[3\]\)"),
        ({"a": torch.zeros(2), "b": torch.zeros(1).half()}, r"b \(float32 \[1\] and float16 \[1\]\)"),
    ],
)
def test_other_networks_are_refused(other, message):
    with pytest.raises(ValueError, match=message):
        average_state_dicts([{"a": torch.zeros(2), "b": torch.zeros(1)}, other])


def test_nothing_is_refused():
    with pytest.raises(ValueError, match="no weights to average"):
        average_state_dicts([])
