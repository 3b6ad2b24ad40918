"""The store: written whole, joined by id, read in any order."""

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from features import hdf5
from features.images import store
from features.images.store import FeatureStore, store_name, write_store
from utils import BadInput

ATTRIBUTES: dict[str, str | int] = {"backbone": "resnet18", "digest": "ab", "map": 0}


def write(path: Path, rows: np.ndarray, ids: list[str] | None = None, dtype: str = "float32", block: int = 3) -> None:
    ids = ids or [f"{row}.jpg" for row in range(len(rows))]
    blocks = (rows[start : start + block] for start in range(0, len(rows), block))
    write_store(path, ids, rows.shape[1:], dtype, ATTRIBUTES, blocks)


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(10, 4), (7, 2, 3, 4)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_written_is_read(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    rows = numbers(*shape)
    write(tmp_path / "a.h5", rows, dtype=dtype)
    opened = FeatureStore.open(tmp_path / "a.h5")
    assert opened.ids == [f"{row}.jpg" for row in range(len(rows))]
    assert (opened.shape, opened.dtype, len(opened)) == (shape[1:], dtype, shape[0])
    assert opened.attributes == {**ATTRIBUTES, "format": store.FORMAT}
    read = opened.read(range(len(rows)))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, rows.astype(dtype).astype(np.float32))
    assert opened.read([0], dtype="float16").dtype == np.float16
    assert [file.name for file in tmp_path.iterdir()] == ["a.h5"]


@pytest.mark.parametrize("height", [1, 3, 1000])
def test_rows_are_joined_by_id_in_any_order_with_repeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, height: int
) -> None:
    rows = numbers(40, 5)
    ids = [f"im é {number}" for number in np.random.default_rng(1).permutation(40)]
    write(tmp_path / "a.h5", rows, ids)
    monkeypatch.setattr(hdf5, "BLOCK_BYTES", height * 5 * 4)
    opened = FeatureStore.open(tmp_path / "a.h5")
    asked = [ids[place] for place in (39, 0, 7, 7, 21, 0, 3)]
    np.testing.assert_array_equal(opened.read(opened.rows(asked)), rows[[39, 0, 7, 7, 21, 0, 3]])
    np.testing.assert_array_equal(opened.read([]), np.empty((0, 5)))
    order = np.random.default_rng(2).integers(0, 40, 300)
    np.testing.assert_array_equal(opened.read(order), rows[order])
    assert ids[3] in opened
    assert "other" not in opened


def test_an_image_that_is_not_there_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", numbers(3, 2))
    with pytest.raises(BadInput, match=r"a\.h5: has no feature of 2 of 3 images, the first x\.jpg; .*prep\.py"):
        FeatureStore.open(tmp_path / "a.h5").rows(["1.jpg", "x.jpg", "y.jpg"])
    for rows in ([3], [0, 3], [-1], [-1, 0]):
        with pytest.raises(IndexError, match="of a store of 3"):
            FeatureStore.open(tmp_path / "a.h5").read(rows)


def test_bad_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with pytest.raises(BadInput, match=r"a\.h5: no such feature store; .*prep\.py"):
        FeatureStore.open(path)
    path.write_bytes(b"no HDF5" * 100)
    with pytest.raises(BadInput, match="not an HDF5 file, or damaged"):
        FeatureStore.open(path)
    write(path, numbers(50, 4000))
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(BadInput, match="damaged"):
        FeatureStore.open(path)
    with h5py.File(path, "w") as file:
        file["features"] = numbers(3, 2)
    with pytest.raises(BadInput, match="carries no format"):
        FeatureStore.open(path)
    with h5py.File(path, "a") as file:
        file.attrs["format"] = store.FORMAT
    with pytest.raises(BadInput, match="no dataset 'image'"):
        FeatureStore.open(path)
    write(path, numbers(3, 2))
    with h5py.File(path, "a") as file:
        file.attrs["format"] = 99
    with pytest.raises(BadInput, match="format 99, this program reads format 1"):
        FeatureStore.open(path)
    with h5py.File(path, "a") as file:
        file.attrs["format"] = store.FORMAT
        del file["image"]
        file.create_dataset("image", data=["a", "b"], dtype=h5py.string_dtype())
    with pytest.raises(BadInput, match=r"2 image ids for features of shape \(3, 2\)"):
        FeatureStore.open(path)


@pytest.mark.parametrize(
    ("rows", "ids", "message"),
    [
        (numbers(3, 2), ["a", "b"], "do not fit 2 images"),
        (numbers(3, 2), ["a", "b", "c", "d"], "3 rows for 4 images"),
        (numbers(3, 2), ["a", "b", "a"], "image a stands twice"),
        (np.array([[1.0], [np.nan]], np.float32), ["a", "b"], "feature of image b is not finite in float16"),
        (np.array([[1.0, 2.0], [1.0, np.inf]], np.float32), ["a", "b"], "feature of image b is not finite in float16"),
        (np.array([[0], [1], [2], [3], [np.inf]], np.float32), list("abcde"), "feature of image e is not finite"),
        (np.array([[1.0], [70000.0]], np.float32), ["a", "b"], "image b is not finite in float16; .*float32"),
    ],
)
def test_a_failed_write_leaves_the_old_store(tmp_path: Path, rows: np.ndarray, ids: list[str], message: str) -> None:
    path = tmp_path / "a.h5"
    write(path, numbers(2, 2))
    before = path.read_bytes()
    with pytest.raises(BadInput, match=message):
        write(path, rows, ids, dtype="float16")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_rows_of_another_shape_or_type_or_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"do not fit 2 images with rows of \(3,\)"):
        write_store(tmp_path / "a.h5", ["a", "b"], (3,), "float32", {}, [numbers(2, 2)])
    with pytest.raises(BadInput, match="float16 or float32, not int8"):
        write(tmp_path / "a.h5", numbers(2, 2), dtype="int8")
    with pytest.raises(BadInput, match="no image"):
        write_store(tmp_path / "a.h5", [], (3,), "float32", {}, [])
    with pytest.raises(BadInput, match=r"a\.h5: cannot be written .*disk"):
        write(tmp_path / "nowhere" / "a.h5", numbers(2, 2))


def test_a_full_disk_is_noticed_before_hdf5_meets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.h5"
    write(path, numbers(2, 2))
    before = path.read_bytes()
    asked = []

    def full(descriptor: int, start: int, size: int) -> None:
        asked.append(size)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(BadInput, match=r"a\.h5: cannot be written \(No space left on device\); .*disk"):
        write(path, numbers(300, 2000))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    write(path, numbers(300, 2000))
    assert path.stat().st_size <= asked[0] < 1.5 * path.stat().st_size


@pytest.mark.parametrize(("count", "letters"), [(1, 1), (3000, 300)])
def test_the_room_that_is_reserved_holds_the_ids_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, letters: int
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(os, "posix_fallocate", lambda descriptor, start, size: asked.append(size))
    write(tmp_path / "a.h5", numbers(count, 1), [f"{row:0{letters}}" for row in range(count)], block=1000)
    assert (tmp_path / "a.h5").stat().st_size <= asked[0]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("inception_v3", None, False, 1), "inception_v3"),
        (("efficientnet_lite0", None, True, 1), "efficientnet_lite0.map"),
        (("vgg19", None, False, 10), "vgg19.crops10"),
        (("timm:resnet10t.a1_in1k", None, False, 1), "timm-resnet10t.a1_in1k"),
        (("resnet50", "layer3", True, 1), "resnet50.layer3.map"),
        (("timm:hf-hub:some/one", None, False, 1), "timm-hf-hub-some-one"),
        (("vgg19", None, False, 1, 6), "vgg19.views6"),
        (("vgg19", None, False, 10, 1, 320), "vgg19.size320.crops10"),
        (("resnet50", "layer3", True, 1, 1, 288), "resnet50.layer3.size288.map"),
        (("resnet50", None, False, 1, 2, 288), "resnet50.size288.views2"),
    ],
)
def test_the_file_name_tells_the_features(arguments: Any, name: str) -> None:
    assert store_name(*arguments) == name


@pytest.mark.parametrize(
    ("shape", "views", "grid"), [((5,), 1, ()), ((3, 5), 3, ()), ((1, 5), 1, ()), ((2, 4, 5), 1, (2, 4))]
)
def test_a_row_is_a_vector_views_or_a_map(
    tmp_path: Path, shape: tuple[int, ...], views: int, grid: tuple[int, ...]
) -> None:
    rows = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float16)
    write_store(tmp_path / "a.h5", list("abcd"), shape, "float16", {}, [rows])
    store = FeatureStore.open(tmp_path / "a.h5")
    assert (store.views, store.grid) == (views, grid)
    np.testing.assert_array_equal(store.read([2, 0], "float16"), rows[[2, 0]])


def test_a_store_of_more_dimensions_is_none(tmp_path: Path) -> None:
    shape = (2, 3, 4, 5)
    write_store(tmp_path / "a.h5", ["a"], shape, "float32", {}, [np.zeros((1, *shape), np.float32)])
    with pytest.raises(BadInput, match=r"features of shape \(1, 2, 3, 4, 5\)"):
        FeatureStore.open(tmp_path / "a.h5")


def test_a_store_that_does_not_say_what_made_it_trains_nothing(tmp_path: Path) -> None:
    write_store(tmp_path / "a.h5", ["a"], (2,), "float32", {}, [np.ones((1, 2), np.float32)])
    with pytest.raises(BadInput, match="does not say which weights made it; make it again"):
        _ = FeatureStore.open(tmp_path / "a.h5").digest
