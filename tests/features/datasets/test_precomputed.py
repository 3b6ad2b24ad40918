"""Precomputed features: each format gives the same rows for the same images, and what does not match is refused."""

import hashlib
import json
import unicodedata
import zipfile

import h5py
import numpy as np
import pytest
import scipy.io

import features.datasets.vsepp
from features import reader_process
from features.datasets.dataset import Dataset, Image
from features.datasets.precomputed import load_precomputed, read_ids
from features.datasets.readers import read
from features.images.store import write_store
from tests.helpers import karpathy, vsepp, write
from utils import BadInput

IDS = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"]
FEATURES = np.arange(20, dtype=np.float32).reshape(5, 4) / 8


@pytest.fixture
def dataset():
    words = ["train", "train", "train", "val", "test"]
    return Dataset(
        "x", tuple(Image(k, None, w, ("one", "two")) for k, w in zip(IDS, words, strict=True)), (), tuple(IDS)
    )


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(features.datasets.vsepp, "BLOCK_BYTES", 32)  # two rows of four float32 a block


def rows(precomputed):
    blocks = list(precomputed.blocks())
    assert all(block.dtype == precomputed.dtype and block.shape[1:] == precomputed.shape for block in blocks)
    return np.concatenate(blocks)


def save(folder, kind, array, ids=None):
    """Write features as a file of this kind; ids go into it where it can hold them."""
    file = folder / f"features{kind.removesuffix(' v7.3')}"
    if kind == ".npy":
        np.save(file, array)
    elif kind == ".npz":
        arrays = {"features": array} if ids is None else {"features": array, "image": np.array(ids)}
        np.savez(file, allow_pickle=False, **arrays)
    elif kind in (".h5", ".mat v7.3"):
        with h5py.File(file, "w", userblock_size=512 if "mat" in kind else 0) as store:
            store["features" if kind == ".h5" else "feats"] = array  # MATLAB's D×N appears as N×D
            if ids is not None:
                store["image"] = ids
    else:
        scipy.io.savemat(file, {"feats": array.T, "note": "text"})
    return file


KINDS = [".npy", ".npz", ".h5", ".mat", ".mat v7.3"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_in_the_datasets_order(tmp_path, dataset, kind):
    file = save(tmp_path, kind, FEATURES)
    precomputed = load_precomputed(file, dataset)
    assert (precomputed.ids, precomputed.shape, precomputed.dtype) == (IDS, (4,), "float32")
    np.testing.assert_array_equal(rows(precomputed), FEATURES)
    np.testing.assert_array_equal(rows(precomputed), FEATURES)  # blocks() begins anew
    assert len(list(precomputed.blocks())) == 3
    assert precomputed.digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert "has no ids: its 5 rows are taken in" in precomputed.notes[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".txt", ".json"])
def test_every_kind_with_an_id_list(tmp_path, dataset, kind, suffix):
    order = [3, 0, 4, 1, 2]
    ids = [*(IDS[n] for n in order), "stranger.jpg"]
    listed = write(tmp_path / f"ids{suffix}", ids if suffix == ".json" else "\n".join(ids).replace(".jpg", "") + "\n")
    file = save(tmp_path, kind, np.concatenate([FEATURES[order], FEATURES[:1]]))
    precomputed = load_precomputed(file, dataset, listed)
    np.testing.assert_array_equal(rows(precomputed), FEATURES)
    assert precomputed.notes == (f"1 images in {file.name} that are not in the dataset left out",)
    assert precomputed.digest == hashlib.sha256(file.read_bytes() + listed.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", [".npz", ".h5"])
def test_ids_in_the_file(tmp_path, dataset, kind):
    precomputed = load_precomputed(save(tmp_path, kind, FEATURES[::-1], IDS[::-1]), dataset)
    np.testing.assert_array_equal(rows(precomputed), FEATURES)
    assert precomputed.notes == ()


@pytest.mark.parametrize("kind", KINDS)
def test_repeated_once_per_caption(tmp_path, dataset, kind):
    precomputed = load_precomputed(save(tmp_path, kind, np.repeat(FEATURES, 2, axis=0)), dataset)
    np.testing.assert_array_equal(rows(precomputed), FEATURES)
    assert precomputed.notes[1] == f"features{kind[:4].strip()} repeats rows: 10 of them for 5 images, one each is kept"


def test_repeated_by_an_id_list(tmp_path, dataset):
    file = save(tmp_path, ".h5", np.concatenate([FEATURES, FEATURES]))
    listed = write(tmp_path / "ids.txt", "\n".join(IDS + IDS))
    np.testing.assert_array_equal(rows(load_precomputed(file, dataset, listed)), FEATURES)


def test_repeats_that_differ_are_refused(tmp_path, dataset):
    array = np.repeat(FEATURES, 2, axis=0)
    array[7, 2] += 1
    with pytest.raises(BadInput, match=r"features.npy: row 8 differs from row 7, though both are d.jpg"):
        load_precomputed(save(tmp_path, ".npy", array), dataset)


@pytest.mark.parametrize("kind", [".npy", ".npz", ".h5"])
def test_spatial_maps(tmp_path, dataset, kind):
    maps = np.arange(5 * 2 * 3 * 4, dtype=np.float16).reshape(5, 2, 3, 4)
    precomputed = load_precomputed(save(tmp_path, kind, maps), dataset)
    assert (precomputed.shape, precomputed.dtype) == ((2, 3, 4), "float16")
    np.testing.assert_array_equal(rows(precomputed), maps)


@pytest.mark.parametrize("dtype", ["float64", "int16", "uint8", ">f4"])
def test_other_numbers_become_float32(tmp_path, dataset, dtype):
    precomputed = load_precomputed(save(tmp_path, ".npy", (FEATURES * 8).astype(dtype)), dataset)
    assert precomputed.dtype == "float32"
    np.testing.assert_array_equal(rows(precomputed), FEATURES * 8)


def test_the_only_array_counts_whatever_its_name(tmp_path, dataset):
    np.savez(tmp_path / "one.npz", FEATURES)
    with h5py.File(tmp_path / "one.h5", "w") as store:
        store["deep/fc7"], store["nothing"] = FEATURES, h5py.Empty("f")
    with zipfile.ZipFile(tmp_path / "one.npz", "a") as archive:
        archive.writestr("notes.txt", "of the features")
    scipy.io.savemat(tmp_path / "one.mat", {"fc7": FEATURES.T})
    for name in ("one.npz", "one.h5", "one.mat"):
        np.testing.assert_array_equal(rows(load_precomputed(tmp_path / name, dataset)), FEATURES)


@pytest.mark.parametrize("restval", [True, False])
@pytest.mark.parametrize("kind", [".mat", ".mat v7.3", ".npy"])
def test_mat_beside_karpathys_file_with_and_without_restval(tmp_path, kind, restval):
    captions = write(tmp_path / "dataset_flickr8k.json", karpathy())
    dataset = read("flickr8k", captions, None, restval=restval)
    precomputed = load_precomputed(save(tmp_path, kind, FEATURES), dataset)
    kept = [0, 1, 2, 3, 4] if restval else [0, 1, 3, 4]
    assert precomputed.ids == [f"{n}.jpg" for n in kept]
    np.testing.assert_array_equal(rows(precomputed), FEATURES[kept])


def test_mat_keeps_the_files_order_when_lists_give_the_dataset_another(tmp_path):
    captions = write(tmp_path / "dataset_flickr8k.json", karpathy())
    for name, ids in (("train.txt", "4\n1\n2\n"), ("val.txt", "3\n"), ("test.txt", "0\n")):
        write(tmp_path / name, ids)
    dataset = read("flickr8k", captions, None, splits=tmp_path)
    order = [4, 1, 2, 3, 0]
    assert [image.id for image in dataset.images] == [f"{n}.jpg" for n in order]
    precomputed = load_precomputed(save(tmp_path, ".mat", FEATURES), dataset)
    assert "in the order of the caption file, the first as 0.jpg" in precomputed.notes[0]
    np.testing.assert_array_equal(rows(precomputed), FEATURES[order])
    in_order = load_precomputed(save(tmp_path, ".npy", FEATURES), dataset)
    assert "in the dataset's order, the first as 4.jpg" in in_order.notes[0]
    np.testing.assert_array_equal(rows(in_order), FEATURES)


@pytest.mark.parametrize("repeat", [1, 2])
def test_vsepp_folder(tmp_path, repeat):
    folder = vsepp(tmp_path / "pre", repeat)
    dataset = read("coco", folder, None)
    precomputed = load_precomputed(folder, dataset)
    assert precomputed.ids == [image.id for image in dataset.images]
    expected = [np.arange(n * 3, dtype=np.float32).reshape(n, 3) for n in (4, 2, 3)]
    np.testing.assert_array_equal(rows(precomputed), np.concatenate(expected))


def test_vsepp_image_whose_captions_are_blank_takes_no_row(tmp_path):
    folder = vsepp(tmp_path / "pre")
    write(folder / "train_caps.txt", "a\nb\n\n \nc\nd\ne\nf\n")
    dataset = read("coco", folder, None)
    precomputed = load_precomputed(folder, dataset)
    assert precomputed.ids[:3] == ["train-000000", "train-000002", "train-000003"]
    np.testing.assert_array_equal(rows(precomputed)[1], [6, 7, 8])


# What does not match


@pytest.mark.parametrize("kind", KINDS)
def test_counts_that_do_not_match(tmp_path, dataset, kind):
    with pytest.raises(BadInput, match=r"features\S+: has 3 rows, but the dataset has 5 images, 10 captions; .*`ids`"):
        load_precomputed(save(tmp_path, kind, FEATURES[:3]), dataset)


def test_ids_that_do_not_match(tmp_path, dataset):
    file = save(tmp_path, ".npy", FEATURES)
    with pytest.raises(BadInput, match=r"ids.txt: 2 ids for the 5 rows of features.npy"):
        load_precomputed(file, dataset, write(tmp_path / "ids.txt", "a.jpg\nb.jpg\n"))
    with pytest.raises(BadInput, match=r"features.npy: has no row for 2 images of the dataset, the first d.jpg"):
        load_precomputed(file, dataset, write(tmp_path / "ids.txt", "a\nb\nc\nx\ny\n"))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("kind", KINDS)
def test_values_that_are_not_finite(tmp_path, dataset, kind, value):
    array = FEATURES.astype(np.float64)
    array[3, 1] = value
    with pytest.raises(BadInput, match=r"features\S+: the features of d.jpg are not all finite"):
        rows(load_precomputed(save(tmp_path, kind, array), dataset))


def test_nan_in_a_repeated_row_is_called_by_its_name(tmp_path, dataset):
    array = np.repeat(FEATURES, 2, axis=0)
    array[6:8, 0] = np.nan
    with pytest.raises(BadInput, match=r"the features of d.jpg are not all finite"):
        rows(load_precomputed(save(tmp_path, ".npy", array), dataset))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(5),
        np.zeros((5, 2, 2)),
        np.zeros((0, 4)),
        np.zeros((5, 0)),
        np.array([["a"] * 4] * 5),
        np.zeros((5, 4), bool),
        np.zeros((5, 4), complex),
        np.array([[None] * 4] * 5),
    ],
)
def test_arrays_that_are_no_features(tmp_path, dataset, array):
    for name, write_it in (("a.npy", np.save), ("a.npz", np.savez)):
        write_it(tmp_path / name, array)
        with pytest.raises(BadInput, match=name):
            load_precomputed(tmp_path / name, dataset)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_damaged_files(tmp_path, dataset, kind, damage):
    file = save(tmp_path, kind, FEATURES)
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"image,caption\n" * 20}[damage])
    with pytest.raises(BadInput, match=file.name) as error:
        rows(load_precomputed(file, dataset))
    assert "\n" not in str(error.value)


def test_paths_and_names_that_are_wrong(tmp_path, dataset):
    np.savez(tmp_path / "two.npz", one=FEATURES, two=FEATURES)
    write(tmp_path / "a.txt", "text")
    write(tmp_path / "bad.json", "[1, 2")
    write(tmp_path / "numbers.json", "[1, 2]")
    for name, words in [
        ("gone.npy", "gone.npy: no such file"),
        ("a.txt", "a.txt: features cannot be read from .txt"),
        ("two.npz", "two.npz: holds one, two; name the array of features 'features'"),
        (".", "is a folder without train_ims.npy"),
    ]:
        with pytest.raises(BadInput, match=words):
            load_precomputed(tmp_path / name, dataset)
    for name, words in [
        ("bad.json", "bad.json: not JSON"),
        ("numbers.json", "not a JSON list"),
        ("x.txt", "x.txt: no such"),
    ]:
        with pytest.raises(BadInput, match=words):
            read_ids(tmp_path / name)
    assert read_ids(write(tmp_path / "ids.json", json.dumps(IDS))) == IDS


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_zeros_is_called_by_its_name(tmp_path, dataset, kind):
    array = FEATURES + 1
    array[3] = 0
    with pytest.raises(BadInput, match=rf"features of {IDS[3]} are all zero, and have no direction; compute that row"):
        rows(load_precomputed(save(tmp_path, kind, array), dataset))


def test_features_of_a_store_of_ours_keep_what_made_them(tmp_path, dataset):
    about: dict[str, str | int] = {
        "backbone": "resnet50",
        "layer": "avgpool",
        "digest": "weights",
        "transform": "t",
        "weights": "w",
    }
    about |= {"file": "", "map": 0, "crops": 1, "engine": "torch", "precision": "float32"}
    write_store(tmp_path / "a.h5", IDS[::-1], (4,), "float32", about, [FEATURES])
    precomputed = load_precomputed(tmp_path / "a.h5", dataset)
    assert precomputed.about == {**about, "format": 1}
    assert precomputed.digest == "weights"
    np.testing.assert_array_equal(rows(precomputed), FEATURES[::-1])
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file.attrs["digest"]
    other = load_precomputed(tmp_path / "a.h5", dataset)
    assert other.about == {}, "not a store, whatever it calls itself"
    assert other.digest == hashlib.sha256((tmp_path / "a.h5").read_bytes()).hexdigest()


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path, dataset, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", features=np.zeros((5, 10**5), np.float32))
    monkeypatch.setattr(reader_process, "MAX_FREE", 10**6)
    with pytest.raises(BadInput, match=r"a\.npz: not a \.npz archive, or cut short \(it claims an array of 2,000,"):
        load_precomputed(tmp_path / "a.npz", dataset)


def test_ids_in_either_form_of_unicode_find_their_row(tmp_path):
    composed, split = unicodedata.normalize("NFC", "é.jpg"), unicodedata.normalize("NFD", "é.jpg")
    images = tuple(Image(key, None, "train", ("one",)) for key in (composed, "b.jpg"))
    (tmp_path / "ids.txt").write_text(f"b.jpg\n{split}\n")
    np.save(tmp_path / "a.npy", FEATURES[:2])
    precomputed = load_precomputed(tmp_path / "a.npy", Dataset("x", images), tmp_path / "ids.txt")
    np.testing.assert_array_equal(rows(precomputed), FEATURES[[1, 0]])
