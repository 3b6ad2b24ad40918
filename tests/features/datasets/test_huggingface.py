"""What `datasets` saves to disk, and Parquet files: read as datasets and indexed, with nothing unpacked or loaded."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prep
from features import parquet
from features.datasets.readers import read
from features.images.decode import Unreadable, read_image
from features.images.files import Cell, Span, image_file, open_image_file
from features.images.tables import image_column, table_schema
from features.prepared import Prepared
from retrieval.build import build_index
from retrieval.index import Index
from retrieval.sources import gather
from tests.helpers import FakeRun, call, hugging_face, small_jpeg, write_tars
from utils import BadInput

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

SPLITS = [("train", "train", "val", "test")[n % 4] for n in range(12)]


def read_saved(path, **more):
    return read("huggingface", path, path, **more)


def painted(folder, number):
    return (folder / f"painted/{number}.png").read_bytes()


def check(dataset, folder, numbers):
    for number, image in zip(numbers, dataset.images, strict=True):
        assert image.captions == (f"a dog {number}", "the red car")
        assert open_image_file(image.path).read() == painted(folder, number)
        assert image_file(str(image.path)) == image.path


def test_a_saved_dataset_with_a_column_of_splits(tmp_path):
    hugging_face(tmp_path, range(12), split=SPLITS).save_to_disk(tmp_path / "saved", num_shards=2)
    dataset = read_saved(tmp_path / "saved")
    check(dataset, tmp_path, range(12))
    assert [image.id for image in dataset.images[5:7]] == [
        "data-00000-of-00002.arrow/5/5.png",
        "data-00001-of-00002.arrow/0/6.png",
    ]
    assert [image.split for image in dataset.images] == SPLITS
    assert all(isinstance(image.path, Span) for image in dataset.images)
    assert dataset.notes == ()


def test_a_dict_names_the_splits_and_train_is_divided_where_there_is_no_val(tmp_path):
    parts = {"train": range(30), "validation": range(30, 34), "test": range(34, 40)}
    saved = {name: hugging_face(tmp_path, numbers) for name, numbers in parts.items()}
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "three")
    dataset = read_saved(tmp_path / "three")
    check(dataset, tmp_path, range(40))
    assert [dataset.count(split) for split in ("train", "val", "test")] == [30, 4, 6]
    assert dataset.images[31].id == "validation/data-00000-of-00001.arrow/1/31.png"
    del saved["validation"]
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "two")
    dataset = read_saved(tmp_path / "two")
    assert dataset.count("test") == 6
    assert dataset.count("train") + dataset.count("val") == 30
    assert dataset.count("val") > 0
    datasets.DatasetDict(train=saved["train"]).save_to_disk(tmp_path / "one")
    dataset = read_saved(tmp_path / "one", split_ratio=(1, 1, 1))
    assert "no split given: drawn by a hash" in dataset.notes[0]


@pytest.mark.parametrize("rows", [3, 100])
def test_parquet_files_with_bytes_in_them(tmp_path, rows, monkeypatch):
    monkeypatch.setattr(parquet, "CELLS_PER_BLOCK", 2)
    whole = hugging_face(tmp_path, range(12), split=SPLITS)
    whole.save_to_disk(tmp_path / "saved")  # the images of the first are paths alone
    embedded = datasets.load_from_disk(str(tmp_path / "saved"))
    for number, part in enumerate(("train", "validation")):
        embedded.shard(2, number, contiguous=True).to_parquet(
            tmp_path / f"files/data/{part}-00000-of-00001.parquet", batch_size=rows
        )
    dataset = read_saved(tmp_path / "files")
    check(dataset, tmp_path, range(12))
    assert [image.split for image in dataset.images] == SPLITS
    cells = [image.path for image in dataset.images]
    assert all(isinstance(cell, Cell) for cell in cells)
    for number in np.random.default_rng(0).integers(0, 12, 30).tolist():  # in any order, too
        assert cells[number].read() == painted(tmp_path, number)
    dataset = read_saved(tmp_path / "files/data/train-00000-of-00001.parquet")
    assert [image.id for image in dataset.images][:2] == [
        "train-00000-of-00001.parquet/0/0.png",
        "train-00000-of-00001.parquet/1/1.png",
    ]


def test_karpathys_restval_joins_train_unless_it_shall_not(tmp_path):
    words = ["restval" if split == "train" else split for split in SPLITS]
    words[0] = "train"
    hugging_face(tmp_path, range(12), split=words).save_to_disk(tmp_path / "saved")
    assert read_saved(tmp_path / "saved").count("train") == 6
    assert read_saved(tmp_path / "saved", restval=False).count("train") == 1


def table_of(path, images, **columns):
    """A Parquet file, or an Arrow stream, of a plain column of bytes."""
    table = pa.table({"image": pa.array(images, pa.binary()), **columns})
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
            writer.write_table(table)
    return path


def test_rows_without_an_image_and_images_that_are_paths(tmp_path):
    hugging_face(tmp_path, range(12), split=SPLITS).to_parquet(tmp_path / "paths.parquet")
    dataset = read_saved(tmp_path / "paths.parquet")
    with pytest.raises(Unreadable, match="its bytes are not in the file"):  # no path in it is opened
        read_image(dataset.images[0].path)
    image = painted(tmp_path, 0)
    plain = table_of(tmp_path / "plain.parquet", [image] * 3, text=["a", "b", "c"], split=["train", "val", "test"])
    dataset = read_saved(plain)
    assert [image.captions for image in dataset.images] == [("a",), ("b",), ("c",)]
    assert dataset.images[2].path.read() == image
    with pytest.raises(Unreadable, match="it has no row 3"):
        read_image(Cell(plain, "image", 3))
    saved = datasets.Dataset.from_dict({"image": [None, None], "caption": ["a", "b"]})
    saved.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "nothing")
    with pytest.raises(BadInput, match="holds no image"):
        read_saved(tmp_path / "nothing")


def test_what_is_none_ends_in_a_sentence(tmp_path):
    hugging_face(tmp_path, range(12)).save_to_disk(tmp_path / "saved")
    arrow = tmp_path / "saved/data-00000-of-00001.arrow"
    whole = arrow.read_bytes()
    for size in (0, 100, 3000, len(whole) // 2):
        arrow.write_bytes(whole[:size])
        with pytest.raises(BadInput, match="cannot be read, or cut short") as error:
            read_saved(tmp_path / "saved")
        assert "\n" not in str(error.value)
    arrow.unlink()
    with pytest.raises(BadInput, match="cannot be read"):
        read_saved(tmp_path / "saved")
    lists: tuple[Any, ...] = ([], ["../a.arrow"], ["/etc/passwd"], [3], {})
    for names in lists:
        (tmp_path / "saved/state.json").write_text(json.dumps({"_data_files": [{"filename": n} for n in names]}))
        with pytest.raises(BadInput, match="does not list _data_files beside it"):
            read_saved(tmp_path / "saved")
    (tmp_path / "saved/state.json").write_text("{")
    with pytest.raises(BadInput, match="not JSON, or cut short"):
        read_saved(tmp_path / "saved")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds neither what save_to_disk writes nor Parquet files"):
        read_saved(tmp_path / "empty")
    bare = table_of(tmp_path / "bare.parquet", [b"x"], label=[1])
    with pytest.raises(BadInput, match="has the columns image, label; it needs one of images"):
        read_saved(bare)
    packed = table_of(tmp_path / "packed.arrow", [os.urandom(50), b"x" * 5000], caption=["a", "b"])
    with pytest.raises(BadInput, match="is compressed"):
        read_saved(packed)
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(BadInput, match="cannot be read"):
        read_saved(tmp_path / "text.parquet")


def test_offsets_that_point_anywhere_are_noticed(tmp_path):
    path = tmp_path / "a.arrow"
    table = pa.table({"image": pa.array([b"first", b"second"], pa.binary()), "caption": ["a", "b"]})
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)
    raw = path.read_bytes()
    offsets = np.array([0, 5, 11], np.int32).tobytes()
    assert raw.count(offsets) == 1
    path.write_bytes(raw.replace(offsets, np.array([0, 5, 2**30], np.int32).tobytes()))
    with pytest.raises(BadInput, match="cannot be read"):
        read_saved(path)


def test_which_column_holds_the_images(tmp_path):
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [("features", pa.binary()), ("photo", struct), ("img", pa.binary()), ("image", pa.string())]
    assert image_column(pa.schema(fields)) == "photo"
    assert image_column(pa.schema([fields[0], fields[2]])) == "img"
    assert image_column(pa.schema([fields[0], fields[3]])) is None
    hugging_face(tmp_path, range(2)).rename_column("image", "seen").to_parquet(tmp_path / "a.parquet")
    assert image_column(table_schema(tmp_path / "a.parquet")) == "seen"


def test_prepared_and_indexed_where_they_lie(tmp_path, monkeypatch, capsys):
    hugging_face(tmp_path, range(12), split=SPLITS).save_to_disk(tmp_path / "saved")
    embedded = datasets.load_from_disk(str(tmp_path / "saved"))
    embedded.to_parquet(tmp_path / "tables/all.parquet")
    monkeypatch.chdir(tmp_path)
    tiny = ["--backbone", "timm:test_resnet", "--weights", "random"]
    rows = []
    for name, workers in (("saved", 0), ("tables", 2)):
        args = ["huggingface", "--images", name, "--name", name, "--workers", workers]
        assert call(monkeypatch, prep, *args, *tiny) == 0, capsys.readouterr().err
        data = Prepared(Path("data") / name)
        store = data.store("timm-test_resnet")
        rows.append(store.read(store.rows([row["image"] for row in data.rows])))
        run = FakeRun(tmp_path)
        build_index(run, [data.folder], tmp_path / f"{name}.index")
        index: Any = Index.open(tmp_path / f"{name}.index")
        (row,) = index.true_rows("a dog 3")
        assert index.thumbnail(row) == small_jpeg(tmp_path / "painted/3.png")
    np.testing.assert_array_equal(rows[0], rows[1])
    # the files themselves, without captions
    folder = tmp_path / "mixed"
    write_tars(folder, count=4)
    os.rename(tmp_path / "tables/all.parquet", folder / "all.parquet")
    os.rename(tmp_path / "saved/data-00000-of-00001.arrow", folder / "data.arrow")
    pq.write_table(pa.table({"key": ["000000000"], "caption": ["a dog"]}), folder / "00000.parquet")  # img2dataset's
    pq.write_table(pa.table({"key": ["000000000"]}), folder / "other.parquet")
    report = build_index(run, [folder], tmp_path / "mixed.index")
    assert report.images == 4 + 12 + 12
    assert report.unreadable == [("other.parquet", "has no column of images; leave it out")]
    assert len(run.embedded) == 12 + 12, "each content is embedded once for each index"
    index = Index.open(tmp_path / "mixed.index")
    assert str(index.path(index.row_of("all.parquet/7/7.png"))).endswith("all.parquet#column=image.bytes&row=7")
    assert index.thumbnail(index.row_of("all.parquet/7/7.png")) == index.thumbnail(index.row_of("data.arrow/7/7.png"))
    with pytest.raises(BadInput, match="has no column of images"):
        gather([folder / "00000.parquet"], run)
