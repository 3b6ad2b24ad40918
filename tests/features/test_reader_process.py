"""What a file may say of itself and is not believed: links to other files, and sizes that memory does not hold."""

import h5py
import numpy as np
import pytest
import scipy.io

from features import reader_process
from features.hdf5 import read_head, read_rows, read_sorted

SECRET = np.arange(4, dtype=np.float32)


@pytest.fixture
def outside(tmp_path):
    """A file that no other one may reach into."""
    SECRET.tofile(tmp_path / "secret.bin")
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["rows"] = SECRET.reshape(4, 1)
    return tmp_path


def test_links_to_other_files_are_not_followed(outside):
    with h5py.File(outside / "a.h5", "w") as file:
        file["rows"] = h5py.ExternalLink("secret.h5", "/rows")
        file["soft"] = h5py.SoftLink("/rows")
        file["all"] = h5py.ExternalLink("secret.h5", "/")
    assert read_head(outside / "a.h5", "rows", "all/rows").arrays == {}
    for name in ("rows", "soft", "all/rows"):
        with pytest.raises(OSError, match=name):
            read_sorted(outside / "a.h5", name, np.arange(4))


def test_external_storage_and_virtual_datasets_are_refused(outside):
    with h5py.File(outside / "a.h5", "w") as file:
        file.create_dataset("rows", (4, 1), "f4", external=[(str(outside / "secret.bin"), 0, 16)])
    layout = h5py.VirtualLayout((4, 1), "f4")
    layout[:] = h5py.VirtualSource(outside / "secret.h5", "rows", (4, 1))
    with h5py.File(outside / "b.h5", "w") as file:
        file.create_virtual_dataset("rows", layout)
    for name in ("a.h5", "b.h5"):
        with h5py.File(outside / name) as file:
            assert file["rows"][:].ravel().tolist() == SECRET.tolist(), "HDF5 itself reads it"
        with pytest.raises(OSError, match="'rows' lies in other files"):
            read_rows(outside / name, "rows", np.arange(4), "float32")


def test_a_claim_beyond_what_a_file_can_hold_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("rows", (10**6, 10**6), "f4", chunks=(1, 1000))
        file.create_dataset("image", (10**9,), h5py.string_dtype(), chunks=(1000,))
    with pytest.raises(OSError, match=r"it claims an array of 4,000,000,000,000 bytes in a file of"):
        read_sorted(tmp_path / "a.h5", "rows", np.arange(4))
    with pytest.raises(OSError, match="it claims an array"):
        read_head(tmp_path / "a.h5", "image")


def test_memory_is_limited(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:  # a bomb that stays below the claim: 256 MB of zeros
        file.create_dataset("rows", (1, 2**31), "u1", chunks=(1, 2**31 - 2**20), compression="gzip", compression_opts=1)
        file["fill"] = np.random.default_rng(0).integers(0, 255, 2**25, np.uint8)
    with pytest.raises(OSError):  # noqa: PT011 (what HDF5 says where memory ends)
        read_sorted(tmp_path / "a.h5", "rows", np.arange(1))
    assert read_head(tmp_path / "a.h5").numbers("fill"), "the next question is answered"


def test_a_bomb_of_matlab_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(reader_process, "MAX_FREE", 0)
    monkeypatch.setattr(reader_process, "_limit_memory", lambda size: None)
    scipy.io.savemat(tmp_path / "a.mat", {"feats": np.zeros((1000, 1000))}, do_compression=True)
    assert reader_process.matrices(str(tmp_path / "a.mat"))[0] == {"feats": (1000, 1000)}
    with pytest.raises(ValueError, match="it claims an array of 8,000,000 bytes"):
        reader_process.matrix(str(tmp_path / "a.mat"), "feats")
    monkeypatch.setattr(reader_process, "MAX_FREE", 2**30)
    monkeypatch.setattr(reader_process, "MAX_HELD", 10**6)
    with pytest.raises(ValueError, match="more than are held in memory"):
        reader_process.matrix(str(tmp_path / "a.mat"), "feats")
