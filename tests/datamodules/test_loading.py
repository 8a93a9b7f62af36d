import gc
import multiprocessing
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from datamodules.loading import ResumableLoader, keyed_seed


class Numbers:
    """An order of batches of two of ten items, another in each epoch."""

    def __len__(self) -> int:
        return 5

    def batches(self, epoch: int) -> list[np.ndarray]:
        return list(np.random.default_rng(epoch).permutation(10).reshape(5, 2))


class Reader:
    """Returns the items, the epoch and a number drawn for each item."""

    def read_batch(self, indices: np.ndarray, epoch: int) -> torch.Tensor:
        drawn = [keyed_seed(7, epoch, int(index)) % 1000 for index in indices]
        return torch.tensor([[epoch, int(index), number] for index, number in zip(indices, drawn, strict=True)])


def make_loader(workers: int = 0) -> ResumableLoader[torch.Tensor]:
    return ResumableLoader(Reader(), Numbers(), num_workers=workers)


def read(loader: ResumableLoader[torch.Tensor], count: int | None = None) -> list[list[list[int]]]:
    """Reads one pass, or its first batches."""
    batches = []
    for batch in loader:
        batches.append(batch.tolist())
        if len(batches) == count:
            break
    return batches


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_batches(workers: int) -> None:
    alone, many = make_loader(), make_loader(workers)
    for _ in range(3):
        assert read(many) == read(alone)


def test_every_pass_is_the_next_epoch() -> None:
    loader = make_loader()
    passes = [read(loader) for _ in range(3)]
    assert [batches[0][0][0] for batches in passes] == [0, 1, 2]
    assert [item for item in passes[0]] != passes[1]
    assert all(sorted(row[1] for batch in batches for row in batch) == list(range(10)) for batches in passes)
    loader.set_epoch(1)
    assert read(loader) == passes[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_continues_where_the_last_one_ended(workers: int) -> None:
    whole = make_loader()
    expected = [batch for _ in range(3) for batch in read(whole)]
    loader = make_loader(workers)
    cut_short = read(loader, 2)
    # Two batches are missing from the first pass: the second reaches into the next epoch, and is as long as any.
    assert cut_short + read(loader) == expected[:7]
    assert loader.state_dict() == {"epoch": 1, "position": 2, "batches": 5}


@pytest.mark.parametrize(("workers", "consumed"), [(2, 2), (2, 5), *((0, consumed) for consumed in range(1, 11))])
def test_resuming_continues_with_the_next_batch(workers: int, consumed: int) -> None:
    whole = make_loader()
    expected = [batch for _ in range(3) for batch in read(whole)]
    first = make_loader(workers)
    seen = []
    while len(seen) < consumed:
        seen += read(first, consumed - len(seen))
    # Workers have read ahead by now; only what was handed out counts.
    state = first.state_dict()
    second = make_loader(workers)
    second.load_state_dict(state)
    while len(seen) < 15:
        seen += read(second)
    assert seen == expected
    assert second.state_dict() == {"epoch": 3, "position": 0, "batches": 5}


def test_an_evaluation_sees_the_same_batches_every_time() -> None:
    loader = ResumableLoader(Reader(), Numbers(), restart=True)
    first = read(loader, 2)
    assert read(loader, 2) == first
    assert read(loader)[:2] == first
    stopped = read(loader, 3)
    resumed = ResumableLoader(Reader(), Numbers(), restart=True)
    resumed.load_state_dict(loader.state_dict())
    assert stopped + read(resumed) == read(resumed)


def test_iterators_that_are_never_read_move_nothing() -> None:
    loader = make_loader()
    iter(loader)
    iter(loader)
    assert loader.state_dict() == {"epoch": 0, "position": 0, "batches": 5}
    loader.load_state_dict({"epoch": 3, "position": 2, "batches": 5})
    iter(loader)
    assert len(read(loader)) == 3


def test_a_position_among_other_batches_is_refused_aloud() -> None:
    loader = make_loader()
    with pytest.warns(UserWarning, match="after 4 of 9 batches of epoch 2, but an epoch now has 5"):
        loader.load_state_dict({"epoch": 2, "position": 4, "batches": 9})
    assert read(loader)[0][0][0] == 3


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    read(make_loader())
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_in_a_reference_cycle_end_at_once() -> None:
    loader = make_loader(2)
    iterator = iter(loader)
    next(iterator)
    cycle: list[Any] = [loader, iterator]
    cycle.append(cycle)
    del loader, iterator
    before = time.perf_counter()
    del cycle
    gc.collect()
    assert not multiprocessing.active_children()
    # torch waits 5 seconds for a worker that does not answer.
    assert time.perf_counter() - before < 4


def test_keyed_seeds_differ() -> None:
    seeds = {keyed_seed(seed, epoch, item) for seed in range(3) for epoch in range(3) for item in range(100)}
    assert len(seeds) == 900
    assert keyed_seed(1, 2, 3) != keyed_seed(3, 2, 1)
    assert all(0 <= seed < 2**32 - 1 for seed in seeds)


class Recorder(pl.LightningModule):
    """Notes every batch and lets its weight depend on their order."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[list[int]]] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch.tolist())
        return (self.weight - batch[:, 2].float().mean()).abs() * (1 + self.weight)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def fit(directory: Path, steps: int, workers: int, checkpoint: str | None = None, **settings: Any) -> Recorder:
    module = Recorder()
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=directory,
        **settings,
    )
    trainer.fit(module, make_loader(workers), ckpt_path=checkpoint, weights_only=True)
    trainer.save_checkpoint(directory / "last.ckpt", weights_only=False)
    return module


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("workers", "stop"), [(0, 1), (0, 3), (0, 5), (0, 6), (0, 10), (2, 3), (2, 5)])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, workers: int, stop: int) -> None:
    whole = fit(tmp_path, 12, 0)
    first = fit(tmp_path, stop, workers)
    second = fit(tmp_path, 12, workers, str(tmp_path / "last.ckpt"))
    assert first.seen + second.seen == whole.seen
    assert torch.equal(second.weight, whole.weight)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_limited_epochs_resume_too(tmp_path: Path) -> None:
    whole = fit(tmp_path, 8, 0, limit_train_batches=3)
    assert [batch[0][0] for batch in whole.seen] == [0, 0, 0, 0, 0, 1, 1, 1]
    first = fit(tmp_path, 4, 0, limit_train_batches=3)
    second = fit(tmp_path, 8, 0, str(tmp_path / "last.ckpt"), limit_train_batches=3)
    assert first.seen + second.seen == whole.seen
