import pickle
from pathlib import Path

import numpy as np
import pytest

from datamodules.text.binary import Sequences, SequenceWriter, smallest_dtype


@pytest.mark.parametrize(("largest", "dtype"), [(65_535, np.uint16), (65_536, np.uint32)])
def test_ids_survive_at_the_limits_of_their_type(tmp_path: Path, largest: int, dtype: type) -> None:
    assert smallest_dtype(largest) == dtype
    rows = [[0, largest], [], [1, 2, 3]]
    with SequenceWriter(tmp_path / "x", smallest_dtype(largest)) as writer:
        writer.write_ids(rows[:2])
        writer.write_ids(rows[2:])
    found = Sequences(tmp_path / "x", smallest_dtype(largest))
    assert len(found) == 3
    assert found.lengths().tolist() == [2, 0, 3]
    bounds = found.offsets
    assert [found.values[bounds[i] : bounds[i + 1]].tolist() for i in range(3)] == rows


def test_ids_beyond_the_type_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(OverflowError), SequenceWriter(tmp_path / "x", np.dtype(np.uint16)) as writer:
        writer.write_ids([[65_536]])


def test_text_survives(tmp_path: Path) -> None:
    lines = ["grün\u2028und", "", "日本"]
    with SequenceWriter(tmp_path / "x", np.dtype(np.uint8)) as writer:
        writer.write_text(lines)
    found = Sequences(tmp_path / "x", np.dtype(np.uint8))
    assert [found.text(number) for number in range(3)] == lines


def test_pickle_holds_the_path_and_not_the_data(tmp_path: Path) -> None:
    with SequenceWriter(tmp_path / "x", np.dtype(np.uint16)) as writer:
        writer.write_ids([list(range(1000))] * 100)
    found = Sequences(tmp_path / "x", np.dtype(np.uint16))
    pickled = pickle.dumps(found)
    assert len(pickled) < 1000
    np.testing.assert_array_equal(pickle.loads(pickled).values, found.values)


def test_nothing_but_empty_sequences(tmp_path: Path) -> None:
    with SequenceWriter(tmp_path / "x", np.dtype(np.uint16)) as writer:
        writer.write_ids([[], []])
    assert Sequences(tmp_path / "x", np.dtype(np.uint16)).lengths().tolist() == [0, 0]


def test_truncated_values_are_named(tmp_path: Path) -> None:
    with SequenceWriter(tmp_path / "x", np.dtype(np.uint16)) as writer:
        writer.write_ids([[1, 2, 3]])
    (tmp_path / "x.bin").write_bytes(b"\0\0")
    with pytest.raises(ValueError, match=r"x\.bin has 2 bytes instead of 6"):
        Sequences(tmp_path / "x", np.dtype(np.uint16))
