"""Webdataset tars as a dataset: prepared, indexed and shown with nothing unpacked."""

import io
import os
import random
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prep
from features.datasets.readers import read
from features.datasets.webdataset import find_tars, read_webdataset
from features.images.files import Span
from features.prepared import Prepared
from retrieval.build import build_index
from retrieval.index import Index
from retrieval.sources import gather
from retrieval.web.images import large_jpeg, version_of
from tests.helpers import FakeRun, call, paint, small_jpeg, write, write_tars
from utils import BadInput


def add(path, **files):
    """A tar of files named by their keywords, with a full stop for each double underscore."""
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name.replace("__", "."))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def read_tars(path, **more):
    return read("webdataset", path, path, **more)


def test_samples_become_a_dataset(tmp_path):
    folder = write_tars(tmp_path / "shards")
    dataset = read_tars(folder)
    assert [image.id for image in dataset.images] == [f"{n // 5:05}.tar/{n:09}.png" for n in range(12)]
    assert [image.split for image in dataset.images] == ["train", "train", "val", "test"] * 3
    assert dataset.images[7].captions == ("a dog 7", "the red car")
    for number, image in enumerate(dataset.images):
        assert image.path.read() == (tmp_path / f"painted/{number}.png").read_bytes()
    assert dataset.notes == ()


def test_a_caption_from_the_text_beside_the_image_and_a_split_by_hash(tmp_path):
    folder = write_tars(tmp_path / "shards", count=40, each=40, splits=False)
    image = (tmp_path / "painted/0.png").read_bytes()
    add(folder / "more.tar", a__png=image, a__txt="only\n text ", b__png=image, b__json='{"caption": null}', b__txt="b")
    dataset = read_tars(folder)
    captions = {image.id: image.captions for image in dataset.images}
    assert captions["more.tar/a.png"] == ("only text",)
    assert captions["more.tar/b.png"] == ("b",)
    assert captions["00000.tar/000000003.png"] == ("a dog 3", "the red car")
    assert "no split given: drawn by a hash of the image id" in dataset.notes[0]


def test_what_cannot_be_read_of_a_sample_is_left_out_and_counted(tmp_path):
    folder = write_tars(tmp_path / "shards", count=8, each=8)
    image = (tmp_path / "painted/0.png").read_bytes()
    odd = {"a__png": image, "a__json": "{cut", "b__png": image, "b__json": "[1]", "c__txt": "a caption of no image"}
    odd |= {"d__png": image, "d__txt": b"\xff\xfe", "e__png": image, "e__txt": "x" * 2**21, "notes__md": "no sample"}
    odd |= {"f__png": image, "f__json": '{"caption": "kept", "split": "test"}', "g__png": image, "g__json": "{}"}
    add(folder / "odd.tar", **odd)
    sentence = (
        r"1 images have no split while others have one, the first odd\.tar/g\.png; give .* three lists by `splits`"
    )
    with pytest.raises(BadInput, match=sentence):
        read_tars(folder)
    names = [f"00000.tar/{number:09}.png" for number in range(3)]
    for part, name in zip(("train", "val", "test"), names, strict=True):
        write(tmp_path / f"lists/{part}.txt", name)
    assert [image.id for image in read_tars(folder, splits=tmp_path / "lists").images] == names
    del odd["g__png"], odd["g__json"]
    add(folder / "odd.tar", **odd)
    dataset = read_tars(folder)
    assert len(dataset.images) == 9
    assert dataset.images[-1].captions == ("kept",)
    (note,) = dataset.notes
    assert note.startswith("5 files in tars left out, the first odd.tar/a.png (line 1: Expecting property name")


def test_names_with_full_stops_and_files_apart_are_named_and_counted(tmp_path):
    folder = write_tars(tmp_path / "shards", count=8, each=8)
    image = (tmp_path / "painted/0.png").read_bytes()
    add(folder / "dotted.tar", **{"v1__2/a__png": image, "v1__2/a__txt": "kept", "a__b__PNG": image, "__c__jpg": image})
    add(folder / "sorted.tar", a__png=image, b__png=image, a__json='{"caption": "a dog"}', b__txt="a cat")
    source = read_webdataset(folder)
    assert source.captions["dotted.tar/v1.2/a.png"] == ["kept"]
    assert source.notes == [
        "4 files in tars left out, the first dotted.tar/a.b.PNG (its ending begins at the first full stop, as "
        "webdataset has it, and is no image's)"
    ]
    with pytest.raises(
        BadInput, match=r"no image with a caption \(2 files .*/a\.json \(no image of its key stands beside"
    ):
        read_tars(folder / "sorted.tar")


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"a__png": b"x", "a__json": '{"caption": ["a dog", 5]}'}, "odd.tar, a.png, has a caption that is not text"),
        ({"a__png": b"x", "a__json": '{"caption": "a dog", "split": "dev2"}'}, "has the split 'dev2'"),
        ({"a__png": b"x", "a__json": '{"caption": "a dog", "split": 3}'}, "has a split that is not text"),
        ({"a__txt": "a dog"}, "holds no image"),
    ],
)
def test_bad_samples_end_in_a_sentence(tmp_path, files, sentence):
    with pytest.raises(BadInput, match=sentence):
        read_tars(add(tmp_path / "odd.tar", **files))


def test_tars_are_named_by_folder_file_or_pattern(tmp_path, monkeypatch):
    for name in ("00000.tar", "00001.tar", "00002.tar", "deep/00000.tar", ".hidden.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        add(tmp_path / name, **{f"{name[0]}__png": b"x", f"{name[0]}__json": '{"caption": "a", "split": "train"}'})
    monkeypatch.chdir(tmp_path)

    def names(pattern):
        return [path.relative_to(tmp_path).as_posix() for path in find_tars(tmp_path / pattern)]

    assert names("") == ["00000.tar", "00001.tar", "00002.tar", "deep/00000.tar"]
    assert names("00001.tar") == ["00001.tar"]
    assert names("0000[12].tar") == names("{00001..00002}.tar") == ["00001.tar", "00002.tar"]
    assert names("*.tar") == ["00000.tar", "00001.tar", "00002.tar"]
    assert [path.as_posix() for path in find_tars(Path("{0..1}{0..1}00{0..1}.tar"))] == ["00000.tar", "00001.tar"]
    for pattern, sentence in (("{5..9}.tar", "names no tar"), ("{1..999999999999}.tar", "more than 100,000 tars")):
        with pytest.raises(BadInput, match=sentence):
            find_tars(Path(pattern))


def test_a_damaged_tar_ends_a_preparation_in_one_sentence(tmp_path, monkeypatch, capsys):
    folder = write_tars(tmp_path / "shards")
    os.truncate(folder / "00001.tar", (folder / "00001.tar").stat().st_size // 2)
    command = ["webdataset", "--images", folder, "--data", tmp_path / "data", "--workers", 0]
    assert call(monkeypatch, prep, *command) == 2
    said = capsys.readouterr().err
    assert f"{folder}/00001.tar: cut short" in said
    assert said.count("\n") == 1


def test_prepared_remembered_and_indexed_without_unpacking(tmp_path, monkeypatch, capsys):
    folder = write_tars(tmp_path / "shards")
    monkeypatch.chdir(tmp_path)
    tiny = ["--backbone", "timm:test_resnet", "--weights", "random", "--workers", 0]
    assert call(monkeypatch, prep, "webdataset", "--images", "shards/*.tar", *tiny) == 0
    data = Prepared("data/webdataset")
    assert len(data.store("timm-test_resnet")) == 12
    span = data.path_of(data.rows[3])
    assert isinstance(span, Span)
    assert span.read() == (tmp_path / "painted/3.png").read_bytes()
    assert span.file == folder / "00000.tar"
    before = {path.name: path.read_bytes() for path in Path("data/webdataset").glob("*.json*")}
    capsys.readouterr()
    assert call(monkeypatch, prep, "webdataset", *tiny, "--map") == 0
    assert f"remembered: --images '{folder}/*.tar'\n" in capsys.readouterr().err
    assert set(data.stores()) == {"timm-test_resnet", "timm-test_resnet.map"}
    assert before == {path.name: path.read_bytes() for path in Path("data/webdataset").glob("*.json*")}
    assert call(monkeypatch, prep, "webdataset", "--captions", "shards", *tiny) == 2
    assert "--captions shards: those of webdataset are in its files" in capsys.readouterr().err
    assert call(monkeypatch, prep, "webdataset", "--name", "other") == 2
    assert "--images is missing: name the files of webdataset" in capsys.readouterr().err
    # features are those of the files that the images once were
    from features.images.backbones import load
    from features.images.extract import features_of

    backbone = load("timm:test_resnet", weights="random")
    paths = [tmp_path / f"painted/{number}.png" for number in range(12)]
    plain = np.stack([row for _, row in features_of(paths, backbone)])
    store = data.store("timm-test_resnet")
    ids = [row["image"] for row in data.rows]
    np.testing.assert_array_equal(store.read(store.rows(ids)), plain)
    # an index of the prepared folder reads the images of the tars
    run = FakeRun(tmp_path)
    report = build_index(run, [Path("data/webdataset")], tmp_path / "index")
    assert (report.images, report.unreadable) == (12, [])
    index: Any = Index.open(tmp_path / "index")
    row = index.row_of("00000.tar/000000003.png")
    assert index.thumbnail(row) == small_jpeg(tmp_path / "painted/3.png")
    assert index.true_rows("a dog 3") == [row]


def test_an_index_of_tars_is_brought_up_to_date(tmp_path):
    folder, run = write_tars(tmp_path / "shards"), FakeRun(tmp_path)
    paint(folder / "00002/beside.png", 99)
    os.truncate(folder / "00001.tar", (folder / "00001.tar").stat().st_size // 2)
    with tarfile.open(folder / "00002.tar", "a") as tar:
        for name in ("../up.png", "link.png"):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = (tarfile.SYMTYPE if name[0] == "l" else tarfile.REGTYPE), "/etc/passwd"
            tar.addfile(info, io.BytesIO(b""))
        twice = tar.getmembers()[1]
        tar.addfile(twice, io.BytesIO(b"x" * twice.size))
        broken = tarfile.TarInfo("broken.png")
        broken.size = 100
        tar.addfile(broken, io.BytesIO(b"x" * 100))
    settle(folder)
    report = build_index(run, [folder], tmp_path / "index")
    index: Any = Index.open(tmp_path / "index")
    reasons = dict(report.unreadable)
    assert reasons.pop("00001.tar").startswith("cut short")
    assert reasons == {
        "00002.tar/../up.png": "its name leads out of the tar",
        "00002.tar/link.png": "a link or a device, not a file",
        "00002.tar/000000010.png": "its name stands in the file twice",
        "00002.tar/broken.png": "not an image, or of a format that is not read",
    }
    assert len(index) == report.images == report.new
    whole = sum(image.startswith("00001.tar/") for image in index.ids)
    assert len(index) == 5 + whole + 2 + 1
    assert 0 < whole < 5
    row = index.row_of("00002.tar/000000011.png")
    assert index.path(row).read() == (tmp_path / "painted/11.png").read_bytes()
    assert index.thumbnail(row) == small_jpeg(tmp_path / "painted/11.png")
    assert (large_jpeg(index.path(row)) or b"")[:2] == b"\xff\xd8"
    first = version_of(index.path(row))
    # the shard comes whole at last, and another one has moved
    write_tars(folder, splits=True)
    shutil.move(folder / "00000.tar", folder / "moved.tar")
    settle(folder)
    embedded = len(run.embedded)
    report = build_index(run, [folder], tmp_path / "index")
    assert report.unreadable == []
    assert (report.images, report.moved, report.removed) == (13, 5, 0)
    assert len(run.embedded) - embedded == 5 - whole
    index = Index.open(tmp_path / "index")
    assert version_of(index.path(index.row_of("00002.tar/000000011.png"))) != first
    assert build_index(run, [folder], tmp_path / "index").kept == 13


def settle(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (10**9, 10**9))


def test_tars_are_named_beside_files_and_by_themselves(tmp_path):
    folder = write_tars(tmp_path / "shards", count=4, each=2)
    paint(tmp_path / "x.png", 50)
    source = gather([folder / "00001.tar", tmp_path / "x.png"], FakeRun(tmp_path))
    assert [entry.id for entry in source.entries] == ["00001.tar/000000002.png", "00001.tar/000000003.png", "x.png"]
    add(tmp_path / "empty.tar", a__txt="no image")
    with pytest.raises(BadInput, match="no image found"):
        gather([tmp_path / "empty.tar"], FakeRun(tmp_path))
    (tmp_path / "none.tar").write_bytes(b"\x1f\x8b" + b"x" * 600)
    with pytest.raises(BadInput, match="compressed with gzip"):
        gather([tmp_path / "none.tar"], FakeRun(tmp_path))


def test_listing_takes_no_memory_that_grows_with_the_images(tmp_path):
    from tracemalloc import get_traced_memory, start, stop

    from features.images.tars import members

    peaks = []
    for count in (300, 3000):
        path = add(tmp_path / f"{count}.tar", **{f"{n:06}__png": random.Random(n).randbytes(40) for n in range(count)})
        start()
        assert sum(1 for _ in members(path)) == count
        peaks.append(get_traced_memory()[1])
        stop()
    assert peaks[1] < 1.2 * peaks[0]
