import numpy as np
import pytest

from datamodules.image.orders import EvaluationOrder, TrainingOrder


def test_training_visits_every_image_once_and_leaves_out_the_last_incomplete_batch():
    order = TrainingOrder(103, 10, seed=0)
    batches = order.batches(0)
    assert len(order) == len(batches) == 10
    assert all(len(batch) == 10 for batch in batches)
    seen = np.concatenate(batches)
    assert len(set(seen.tolist())) == 100 and seen.max() < 103


def test_the_order_is_a_function_of_seed_and_epoch():
    def first(seed, epoch):
        return TrainingOrder(500, 50, seed=seed).batches(epoch)[0].tolist()

    assert first(0, 0) == first(0, 0)
    assert first(0, 0) != first(0, 1) and first(0, 0) != first(1, 0)


@pytest.mark.parametrize("copies", [1, 3])
def test_processes_share_an_order(copies):
    orders = [TrainingOrder(600, 16, seed=3, copies=copies, rank=rank, world_size=4) for rank in range(4)]
    assert {len(order) for order in orders} == {(600 if copies == 1 else 512) // 4 // 16}
    items = [item for order in orders for batch in order.batches(5) for item in batch.tolist()]
    assert len(items) == len(set(items))


# Row 2 of the usual mistakes: no repeated augmentation on one process, or an epoch that gets three times as long.
@pytest.mark.parametrize("world_size", [1, 4])
def test_repeated_augmentation_keeps_the_length_of_an_epoch_and_visits_a_third_of_the_images(world_size):
    images = 1000
    orders = [
        TrainingOrder(images, 4, seed=0, copies=3, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    items = np.concatenate([np.concatenate(order.batches(0)) for order in orders])
    assert len(items) == images // 256 * 256  # DeiT: len // 256 * 256 / world
    visited, counts = np.unique(items % images, return_counts=True)
    assert len(visited) == -(-len(items) // 3)
    assert (counts == 3).sum() >= len(visited) - 1
    assert set(items // images) == {0, 1, 2}


def test_repeated_augmentation_agrees_with_the_published_sampler():
    # What DeiT's RASampler does, step by step: repeat each three times, every world_size-th from rank, cut.
    world_size, images = 4, 700
    shuffled = [
        int(item)
        for order in zip(
            *(
                np.concatenate(TrainingOrder(images, 1, seed=7, rank=rank, world_size=world_size).batches(2))
                for rank in range(world_size)
            ),
            strict=True,
        )
        for item in order
    ]
    repeated = [image for image in shuffled for _ in range(3)]
    for rank in range(world_size):
        expected = repeated[rank::world_size][: images // 256 * 256 // world_size]
        order = TrainingOrder(images, 8, seed=7, copies=3, rank=rank, world_size=world_size)
        assert (np.concatenate(order.batches(2)) % images).tolist() == expected


def test_copies_of_an_image_go_to_different_processes():
    batches = [TrainingOrder(300, 32, seed=1, copies=3, rank=rank, world_size=4).batches(0)[0] for rank in range(4)]
    for batch in batches:
        assert len(set((batch % 300).tolist())) == len(batch)


def test_few_images_make_an_epoch_of_repeated_augmentation_too():
    assert len(TrainingOrder(100, 10, seed=0, copies=3)) == 10


def test_shards_are_read_a_few_at_a_time():
    bounds = np.arange(0, 1001, 100)
    order = TrainingOrder(1000, 50, seed=0, bounds=bounds, shards_together=2)
    batches = order.batches(0)
    assert sorted(np.concatenate(batches)) == list(range(1000))
    groups = [set((np.concatenate(batches[start : start + 4]) // 100).tolist()) for start in range(0, 20, 4)]
    assert all(len(group) == 2 for group in groups)
    assert len(set((batches[0] // 100).tolist())) == 2  # mixed within a group
    assert order.batches(1)[0].tolist() != batches[0].tolist()


# Row 16: a distributed evaluation that counts the images twice with which it pads.
@pytest.mark.parametrize(("images", "world_size"), [(10, 1), (103, 4), (96, 4), (7, 3)])
def test_evaluation_visits_every_image_once_over_all_processes(images, world_size):
    orders = [EvaluationOrder(images, 8, rank=rank, world_size=world_size) for rank in range(world_size)]
    items = np.concatenate([batch for order in orders for batch in order.batches(0)])
    assert items.tolist() == list(range(images))
    lengths = [len(order) for order in orders]
    assert max(lengths) - min(lengths) <= 1
    assert all(len(order) == len(order.batches(3)) for order in orders)


def test_too_few_images():
    with pytest.raises(ValueError, match="30 training images make no batch of 32; lower batch_size"):
        TrainingOrder(30, 32, seed=0)
    with pytest.raises(ValueError, match="on each of 4 processes"):
        TrainingOrder(100, 32, seed=0, world_size=4)
    with pytest.raises(ValueError, match="2 images cannot be shared among 3 processes"):
        EvaluationOrder(2, 8, world_size=3)
