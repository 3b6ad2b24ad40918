"""FeatureMaps on demand against FeatureStore.read, kept in memory and read from the file."""

import multiprocessing
import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from features import hdf5
from features.images.maps import MEMORY, FeatureMaps
from features.images.store import FeatureStore, write_store
from utils import BadInput

SHAPE = (2, 3, 5)
ROWS = np.random.default_rng(1).permutation(40)[:30]  # those of a split: any order, not all
BOTH = pytest.mark.parametrize("memory", [MEMORY, 0], ids=["kept", "on demand"])


def write(path: Path, count: int = 40, shape: tuple[int, ...] = SHAPE, dtype: str = "float16") -> FeatureStore:
    maps = np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)
    maps.reshape(count, -1, shape[-1])[::3, 0] = 0  # a position of zeros
    write_store(path, [f"{row}.jpg" for row in range(count)], shape, dtype, {"digest": "ab"}, [maps])
    return FeatureStore.open(path)


@BOTH
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_maps_are_what_the_store_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int, dtype: str, chunk: int
) -> None:
    monkeypatch.setattr(hdf5, "CHUNK_BYTES", chunk * 30 * np.dtype(dtype).itemsize)
    store = write(tmp_path / "a.h5", dtype=dtype)
    plain = store.read(ROWS)
    maps = FeatureMaps(store, ROWS, memory=memory)
    assert (len(maps), maps.shape, maps.fits) == (30, (30, *SHAPE), memory > 0)
    for asked in ([4, 29, 0], [5, 5, 2, 5], range(30), np.random.default_rng(2).integers(0, 30, 300), []):
        rows = np.array(asked, dtype=np.int64)
        taken = maps.take(rows)
        assert taken.dtype == np.float32
        np.testing.assert_array_equal(taken, plain[rows])
    for part in (slice(3, 9), slice(None), slice(28, 50), slice(0, 0), slice(-2, None), slice(None, None, -7)):
        np.testing.assert_array_equal(maps[part], plain[part])
    again = FeatureMaps(store, np.array([3, 3, 1]), memory=memory)
    np.testing.assert_array_equal(again[:], store.read([3, 3, 1]))


@BOTH
def test_every_position_is_normalized_and_zeros_stay_zeros(tmp_path: Path, memory: int) -> None:
    store = write(tmp_path / "a.h5")
    plain = store.read(ROWS)
    norms = np.linalg.norm(plain, axis=3, keepdims=True)
    found = FeatureMaps(store, ROWS, normalize=True, memory=memory)[:]
    assert (norms == 0).any()
    np.testing.assert_allclose(found, plain / np.where(norms == 0, 1, norms), rtol=1e-6)
    np.testing.assert_allclose(FeatureMaps(store, ROWS, normalize=False, memory=memory)[:], plain)


@BOTH
def test_large_maps_are_converted_whole(tmp_path: Path, memory: int) -> None:
    """More numbers than are converted at a time, and numbers that float16 holds with fewer bits."""
    shape = (7, 9, 1111)
    rows = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float16)
    rows.reshape(-1)[:5] = [65504, -65504, 6e-8, -6e-8, 1e-5]
    write_store(tmp_path / "a.h5", ["a", "b", "c"], shape, "float16", {}, [rows])
    maps = FeatureMaps(FeatureStore.open(tmp_path / "a.h5"), np.arange(3), memory=memory)
    np.testing.assert_array_equal(maps.take(np.array([2, 0, 1])), rows[[2, 0, 1]].astype(np.float32))


def test_what_is_kept_fits_into_the_memory(tmp_path: Path) -> None:
    store = write(tmp_path / "a.h5")
    size = 30 * int(np.prod(SHAPE)) * 2
    maps = FeatureMaps(store, ROWS, memory=size)
    assert maps.kept is not None, "read at once, so that processes forked later share it"
    assert (maps.kept.nbytes, maps.kept.dtype) == (size, np.float16)
    (tmp_path / "a.h5").unlink()
    assert maps[:].shape == maps.shape, "what is kept is not read again"
    store = write(tmp_path / "a.h5")
    larger = FeatureMaps(store, ROWS, memory=size - 1)
    larger[:]
    assert larger.kept is None
    assert larger[:0].shape == (0, *SHAPE)
    assert sum(array.nbytes for array in vars(larger).values() if isinstance(array, np.ndarray)) == ROWS.nbytes


def total(maps: FeatureMaps, row: int) -> float:
    return float(maps.take(np.array([row, 0]))[0].sum())


@BOTH
def test_forked_processes_read_for_themselves(tmp_path: Path, memory: int) -> None:
    store = write(tmp_path / "a.h5", count=20, shape=(7, 7, 1280))
    maps = FeatureMaps(store, np.arange(20), normalize=True, memory=memory)
    expected = [total(maps, row) for row in range(20)]  # opened before the fork
    torch.rand(600, 600) @ torch.rand(600, 600)  # threads that the fork does not take along
    with multiprocessing.get_context("fork").Pool(3) as pool:
        found = pool.starmap_async(total, [(maps, row) for row in range(20)] * 3, chunksize=1)
        assert found.get(timeout=100) == expected * 3  # pickled on the way
    assert [total(maps, row) for row in range(20)] == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@BOTH
def test_a_fork_may_use_what_its_parent_opened(tmp_path: Path, memory: int) -> None:
    store = write(tmp_path / "a.h5", count=20, shape=(7, 7, 1280))
    maps = FeatureMaps(store, np.arange(20), memory=memory)
    expected = maps[:]
    context = multiprocessing.get_context("fork")
    answers = context.Queue()

    def ask() -> None:  # the maps of the parent themselves: a forked process is given them without pickling
        answers.put(all(np.array_equal(maps.take(np.array([row])), expected[[row]]) for row in range(20)))

    children = [context.Process(target=ask) for _ in range(3)]
    for child in children:
        child.start()
    for row in reversed(range(20)):
        np.testing.assert_array_equal(maps.take(np.array([row])), expected[[row]])
    assert [answers.get(timeout=100) for _ in children] == [True] * 3
    for child in children:
        child.join()


@BOTH
def test_maps_are_pickled_without_what_they_hold(tmp_path: Path, memory: int) -> None:
    maps = FeatureMaps(write(tmp_path / "a.h5", count=300), np.arange(300), normalize=True, memory=memory)
    expected = maps[:]
    pickled = pickle.dumps(maps)
    assert len(pickled) < expected.nbytes / 2
    np.testing.assert_array_equal(pickle.loads(pickled)[:], expected)


@BOTH
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, memory: int) -> None:
    path = tmp_path / "a.h5"
    store = write(path)
    message = r"a\.h5: cannot be read .*prep\.py and `fresh`"
    path.unlink()
    with pytest.raises(BadInput, match=message):
        FeatureMaps(store, ROWS, memory=memory)[:]
    path.write_bytes(b"no HDF5" * 1000)
    with pytest.raises(BadInput, match=message):
        FeatureMaps(store, ROWS, memory=memory)[:]
    write(path, count=50)
    with pytest.raises(BadInput, match=r"a\.h5: was made anew while it was in use; repeat the command"):
        FeatureMaps(store, ROWS, memory=memory)[:]


def test_a_file_cut_short_in_use_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    maps = FeatureMaps(write(path), ROWS, memory=0)
    maps[:1]
    os.truncate(path, path.stat().st_size // 4)
    with pytest.raises(BadInput, match=r"a\.h5: cannot be read \(cut short\)"):
        maps[:]


def test_packed_or_other_stores_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    store = write(path)
    rows = store.read(range(40), "float16")
    for layout in ({"compression": "gzip"}, {"chunks": (4, 1, 3, 5)}, {}):
        with h5py.File(path, "a") as file:
            del file["features"]
            file.create_dataset("features", data=rows, **layout)
        with pytest.raises(BadInput, match=r"a\.h5: is packed or laid out otherwise .*prep\.py and `fresh`"):
            FeatureMaps(FeatureStore.open(path), ROWS)[:]
    with pytest.raises(BadInput, match=r"v\.h5: holds no spatial maps; make them with prep\.py and `map`"):
        FeatureMaps(write(tmp_path / "v.h5", shape=(4,)), ROWS)


@BOTH
def test_rows_that_are_not_there_are_refused(tmp_path: Path, memory: int) -> None:
    store = write(tmp_path / "a.h5")
    for rows in ([40], [-1]):
        with pytest.raises(IndexError):
            FeatureMaps(store, np.array(rows), memory=memory)
    for rows in ([30], [0, -1]):
        with pytest.raises(IndexError):
            FeatureMaps(store, ROWS, memory=memory).take(np.array(rows))
