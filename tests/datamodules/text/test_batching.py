import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.text.batching import TokenBatches, round_up

LENGTHS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=200)


def lengths_of(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    source = generator.integers(2, 50, count)
    return source, np.clip(source + generator.integers(-4, 5, count), 1, None)


def as_lists(batches: list[np.ndarray]) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


@settings(max_examples=150, deadline=None)
@given(
    lengths=LENGTHS,
    budget=st.integers(64, 1000),
    multiple=st.sampled_from([1, 4, 8]),
    seed=st.sampled_from([None, 0, 7]),
    epoch=st.integers(0, 3),
)
def test_every_pair_once_and_never_over_budget(
    lengths: list[tuple[int, int]], budget: int, multiple: int, seed: int | None, epoch: int
) -> None:
    source, target = (np.array(side) for side in zip(*lengths, strict=True))
    order = TokenBatches(source, target, batch_tokens=budget, length_multiple=multiple, seed=seed)
    batches = order.batches(epoch)
    assert len(batches) == len(order)
    assert sorted(index for batch in batches for index in batch.tolist()) == list(range(len(lengths)))
    padded = 0
    for batch in batches:
        assert len(batch)
        widths = [-(-int(side[batch].max()) // multiple) * multiple for side in (source, target)]
        assert len(batch) * max(widths) <= budget
        padded += len(batch) * sum(widths)
    if seed is None:
        assert order.padding == pytest.approx(1 - sum(map(sum, lengths)) / padded)


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, world_size=st.integers(1, 5), shuffle=st.booleans())
def test_processes_share_the_same_batches_without_overlap(
    lengths: list[tuple[int, int]], world_size: int, shuffle: bool
) -> None:
    source, target = (np.array(side) for side in zip(*lengths, strict=True))
    common = {"batch_tokens": 64, "seed": 3 if shuffle else None}
    try:
        ranks = [TokenBatches(source, target, **common, rank=r, world_size=world_size) for r in range(world_size)]
    except ValueError as error:
        assert "fewer than" in str(error)
        return
    shares = [as_lists(order.batches(2)) for order in ranks]
    assert [len(share) for share in shares] == [len(order) for order in ranks]
    if shuffle or any(len(batch) > 1 for share in shares for batch in share):
        assert len({len(share) for share in shares}) == 1
    if shuffle:
        whole = as_lists(TokenBatches(source, target, **common).batches(2))
        # Step s of all processes together is a run of the common list.
        assert [batch for step in zip(*shares, strict=True) for batch in step] == whole[
            : len(whole) - len(whole) % world_size
        ]
    else:
        # Evaluation leaves out no line.
        assert sorted(index for share in shares for batch in share for index in batch) == list(range(len(lengths)))


def test_padding_counts_towards_the_budget() -> None:
    # 9 tokens are padded to 16: four rows of the budget, where counting tokens would take seven.
    order = TokenBatches(np.full(8, 9), np.full(8, 3), batch_tokens=64, length_multiple=8)
    assert [len(batch) for batch in order.batches(0)] == [4, 4]
    # The larger side decides, whichever it is.
    order = TokenBatches(np.full(8, 3), np.full(8, 9), batch_tokens=64, length_multiple=8)
    assert [len(batch) for batch in order.batches(0)] == [4, 4]


def test_same_seed_and_epoch_same_batches() -> None:
    source, target = lengths_of(500)
    one, two = (TokenBatches(source, target, batch_tokens=400, seed=5) for _ in range(2))
    two.batches(9)
    assert as_lists(one.batches(1)) == as_lists(two.batches(1))


def test_epochs_and_seeds_differ_in_order_and_content_but_not_in_number() -> None:
    source, target = lengths_of(2000)
    order = TokenBatches(source, target, batch_tokens=400, seed=5)
    other = TokenBatches(source, target, batch_tokens=400, seed=6)
    first, second, third = (as_lists(batches) for batches in (order.batches(0), order.batches(1), other.batches(0)))
    assert len(first) == len(second) == len(third) == len(order)
    for one, two in ((first, second), (first, third)):
        contents = [{tuple(sorted(batch)) for batch in batches} for batches in (one, two)]
        assert len(contents[0] & contents[1]) < len(one) / 10
    # Not sorted by length: the longest rows are spread over the epoch.
    widths = [int(source[batch].max()) for batch in first]
    assert widths != sorted(widths)


def test_evaluation_starts_with_the_longest() -> None:
    source, target = lengths_of(300)
    batches = TokenBatches(source, target, batch_tokens=400).batches(0)
    widths = [-(-int(np.maximum(source[batch], target[batch]).max()) // 8) for batch in batches]
    assert widths == sorted(widths, reverse=True)


def test_items_are_numbers_of_the_split() -> None:
    items = np.array([3, 10, 11])
    order = TokenBatches(np.array([4, 4, 4]), np.array([4, 4, 4]), items=items, batch_tokens=16, seed=0)
    assert sorted(index for batch in order.batches(0) for index in batch.tolist()) == [3, 10, 11]


def test_a_budget_below_the_longest_sentence_names_it() -> None:
    with pytest.raises(ValueError, match=r"budget of 32 tokens.*longest sentence of x: pair 8 has 33 tokens, 40 after"):
        TokenBatches(
            np.array([3, 33]), np.array([3, 3]), items=np.array([1, 7]), batch_tokens=32, length_multiple=8, name="x"
        )


def test_rows_are_not_rounded_beyond_the_longest() -> None:
    assert round_up(np.array([1, 8, 9, 97]), 8, 100).tolist() == [8, 8, 16, 100]


def test_too_few_batches_for_the_processes() -> None:
    with pytest.raises(ValueError, match="fewer than the 4 processes"):
        TokenBatches(np.array([3]), np.array([3]), batch_tokens=32, world_size=4)


def test_padding_is_small_when_lengths_vary() -> None:
    source, target = lengths_of(5000)
    assert TokenBatches(source, target, batch_tokens=2000, length_multiple=1, seed=0).padding < 0.09
    unsorted = 1 - (source.sum() + target.sum()) / (len(source) * (source.max() + target.max()))
    assert unsorted > 0.4
