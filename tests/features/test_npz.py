"""Archives of arrays: read without unpickling, and no bomb is unpacked."""

import io
import pickle
import zipfile

import numpy as np
import pytest

from features import reader_process
from features.npz import read_npz


def test_all_arrays_or_those_named(tmp_path):
    np.savez(tmp_path / "a.npz", one=np.ones(2), two=np.zeros((1, 2)))
    assert {name: array.shape for name, array in read_npz(tmp_path / "a.npz").items()} == {"one": (2,), "two": (1, 2)}
    assert list(read_npz(tmp_path / "a.npz", "two")) == ["two"]
    with pytest.raises(KeyError):
        read_npz(tmp_path / "a.npz", "three")


def test_bombs_are_not_unpacked(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", one=np.zeros(10**6))
    monkeypatch.setattr(reader_process, "MAX_FREE", 10**6)
    with pytest.raises(ValueError, match="it claims an array of 8,000,128 bytes in a file of"):
        read_npz(tmp_path / "a.npz")


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


def test_nothing_is_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", one=np.array([Evil()], object))
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("one.npy", pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="allow_pickle"):
        read_npz(tmp_path / "a.npz")
    assert read_npz(tmp_path / "b.npz") == {}, "bytes that are no array are left out"


def test_a_shape_that_lies_is_an_error(tmp_path):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (10**15,)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("one.npy", buffer.getvalue() + b"1234")
    with pytest.raises((ValueError, MemoryError)):
        read_npz(tmp_path / "a.npz")
