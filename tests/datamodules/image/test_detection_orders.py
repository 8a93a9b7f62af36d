import numpy as np
import pytest

from datamodules.image.detection_orders import DetectionOrder
from datamodules.image.orders import TrainingOrder

RATIOS = np.random.default_rng(0).choice([0.4, 0.6, 0.9, 1.1, 1.4, 1.8, 3.0], 203)


def make(rank=0, world_size=1, groups=3, seed=0, calls=None):
    def aspects(items, epoch):
        if calls is not None:
            calls.append(epoch)
        return np.roll(RATIOS, epoch)[items]  # crops differ from epoch to epoch

    return DetectionOrder(203, 8, seed=seed, groups=groups, aspects=aspects, rank=rank, world_size=world_size)


def test_without_groups_it_is_the_usual_order():
    for rank in range(2):
        usual = TrainingOrder(203, 8, seed=3, rank=rank, world_size=2)
        ours = make(rank, 2, groups=0, seed=3)
        assert len(ours) == len(usual)
        assert all(np.array_equal(*pair) for pair in zip(ours.batches(5), usual.batches(5), strict=True))


@pytest.mark.parametrize("world_size", [1, 3])
def test_groups_visit_the_same_images_in_batches_of_one_aspect(world_size):
    shares = [make(rank, world_size).batches(2) for rank in range(world_size)]
    usual = [TrainingOrder(203, 8, seed=0, rank=rank, world_size=world_size).batches(2) for rank in range(world_size)]
    assert {len(share) for share in shares} == {203 // 8 // world_size}
    visited = [np.sort(np.concatenate([batch for share in either for batch in share])) for either in (shares, usual)]
    assert np.array_equal(*visited) and len(np.unique(visited[0])) == len(visited[0])
    mixed = sum(len(np.unique(np.roll(RATIOS, 2)[batch])) > 1 for share in shares for batch in share)
    assert mixed <= 6  # seven ratios, each in a bin of its own: one batch at each edge


def test_everybody_knows_all_shares():
    orders = [make(rank, 2) for rank in range(2)]
    for epoch in (0, 1, 0, 4):
        for other in orders:
            for rank, share in enumerate(other.everybodys_batches(epoch)):
                assert np.array_equal(np.array(share), np.array(orders[rank].batches(epoch)))


def test_batches_come_in_random_order_and_differ_between_epochs_and_seeds():
    batches = make().batches(0)
    ratios = [np.roll(RATIOS, 0)[batch].mean() for batch in batches]
    assert sorted(ratios) != ratios
    for other in (make().batches(1), make(seed=1).batches(0)):
        assert not np.array_equal(np.array(batches), np.array(other))


def test_an_epoch_is_planned_once():
    calls = []
    order = make(calls=calls)
    for epoch in (0, 1, 0, 1, 2, 1, 2):
        order.batches(epoch)
    assert calls == [0, 1, 2]


def test_too_few_images_are_an_error():
    with pytest.raises(ValueError, match="203 training images make no batch of 80 on each of 3 processes"):
        DetectionOrder(203, 80, seed=0, world_size=3)
