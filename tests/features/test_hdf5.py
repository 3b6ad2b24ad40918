"""HDF5 files of rows: what is read of them and how they lie there, for any size of a block."""

import h5py
import numpy as np
import pytest

from features import hdf5
from features.hdf5 import Head, atomic_hdf5, read_rows, rows_bytes, write_rows
from features.reader_process import CALLS
from utils import BadInput

ROWS = np.arange(200, dtype=np.float32).reshape(100, 2)  # 8 bytes a row


def chunks_of(path):
    with atomic_hdf5(path, rows_bytes(100, (2,), "float32")) as file:
        write_rows(file, "rows", ROWS.shape, "float32", [ROWS[:60], ROWS[60:]])
        return file["rows"].chunks


def test_a_slice_is_read_unless_most_of_it_would_be_thrown_away(tmp_path, monkeypatch):
    chunks_of(tmp_path / "a.h5")
    asked, get = [], h5py.Dataset.__getitem__

    def watching(self, key):
        asked.append(key[0] if isinstance(key[0], slice) else key[0].tolist())
        return get(self, key)

    def ask_here(path, call, *arguments, data=b""):
        return CALLS[call](str(path), *arguments, *([data] if data else []))

    monkeypatch.setattr(h5py.Dataset, "__getitem__", watching)
    monkeypatch.setattr(hdf5, "ask", ask_here)
    monkeypatch.setattr(hdf5, "read_head", lambda path: Head({}, {"rows": (ROWS.shape, ROWS.dtype)}, {}))
    monkeypatch.setattr(hdf5, "BLOCK_BYTES", 20 * 8)
    rows = np.array([27, 20, 48, 0, 7, 99, 40, 95, 91])
    np.testing.assert_array_equal(read_rows(tmp_path / "a.h5", "rows", rows, "float32"), ROWS[rows])
    assert asked == [slice(0, 8), slice(20, 28), [40, 48], slice(91, 100)], "a block of 20 rows at a time"
    asked.clear()
    monkeypatch.setattr(hdf5, "BLOCK_BYTES", 4)
    np.testing.assert_array_equal(read_rows(tmp_path / "a.h5", "rows", np.array([1, 0]), "float32"), ROWS[[1, 0]])
    assert asked == [slice(0, 1), slice(1, 2)], "one row, where a row is larger than a block"


@pytest.mark.parametrize(("chunk_bytes", "rows"), [(4, 1), (47, 5), (10**6, 100)])
def test_whole_rows_lie_in_a_chunk(tmp_path, monkeypatch, chunk_bytes, rows):
    monkeypatch.setattr(hdf5, "CHUNK_BYTES", chunk_bytes)
    assert chunks_of(tmp_path / "a.h5") == (rows, 2)


def test_of_a_long_complaint_the_first_line_is_told(tmp_path):
    with pytest.raises(BadInput, match=r"cannot be written \(one\); "), atomic_hdf5(tmp_path / "a.h5", 10):
        raise RuntimeError("one\ntwo")
