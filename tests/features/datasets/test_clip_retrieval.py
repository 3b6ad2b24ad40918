"""clip-retrieval's folder, written as its own writer does and read by embedding-reader: captions, images, sentences."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import prep
import train
from features.datasets import clip_retrieval
from features.datasets.precomputed import load_precomputed
from features.datasets.readers import read
from features.prepared import Prepared
from features.text.sentences import sentence_encoder
from tests.helpers import CLIP_DIM, QUICK, call, clip_pairs, write_clip_folder
from training import fill_bank
from utils import BadInput

pandas = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")


SPLITS = [("train", "train", "val", "test")[n % 4] for n in range(16) for _ in range(2)]


def test_rows_of_one_image_are_its_captions(tmp_path, monkeypatch):
    monkeypatch.setattr(clip_retrieval, "ROWS_PER_BLOCK", 5)
    pairs = clip_pairs(16)
    of_image, of_text = write_clip_folder(tmp_path, pairs, split=SPLITS)
    dataset = read("folder", tmp_path, None)
    assert [image.id for image in dataset.images] == [f"{n // 10}/{n}.jpg" for n in range(16)]
    assert dataset.images[11].captions == ("a dog 11 runs, 0", "a dog 11 runs, 1")
    assert [image.split for image in dataset.images] == SPLITS[::2]
    precomputed = load_precomputed(tmp_path, dataset)
    expected = np.array([of_image[f"/data/photographs/{image.id}"] for image in dataset.images], np.float16)
    np.testing.assert_array_equal(np.concatenate(list(precomputed.blocks())), expected)
    clip = clip_retrieval.open_clip_folder(tmp_path)
    blocks = list(clip.sentence_features(dataset))
    assert max(map(len, blocks)) == 5
    np.testing.assert_array_equal(np.concatenate(blocks), of_text)


def test_its_own_library_reads_the_same_rows(tmp_path):
    embedding_reader = pytest.importorskip("embedding_reader")
    write_clip_folder(tmp_path, clip_pairs(16), split=SPLITS)
    clip = clip_retrieval.open_clip_folder(tmp_path)
    for name, arrays in (("img_emb", clip.images), ("text_emb", clip.texts)):
        reader = embedding_reader.EmbeddingReader(
            str(tmp_path / name),
            file_format="parquet_npy",
            metadata_folder=str(tmp_path / "metadata"),
            meta_columns=["image_path", "caption"],
        )
        (batch,) = reader(batch_size=100, start=0, end=reader.count)
        np.testing.assert_array_equal(batch[0], np.concatenate(arrays))
        assert batch[1]["caption"].tolist() == clip.captions


def test_blank_captions_and_keys_of_tars(tmp_path):
    pairs = [("000000000", "a dog"), ("000000000", "  "), ("000000000", None), ("000000000", "two\n dogs")]
    pairs += [(f"00000000{n}", f"a cat {n}") for n in range(1, 8)] + [("000000009", None)]
    _, of_text = write_clip_folder(tmp_path, pairs)
    dataset = read("folder", tmp_path, None, split_ratio=(1, 1, 1))
    assert dataset.images[0].captions == ("a dog", "two dogs")
    assert any("1 images without a caption left out, the first 000000009" in note for note in dataset.notes)
    rows = np.concatenate(list(clip_retrieval.open_clip_folder(tmp_path).sentence_features(dataset)))
    np.testing.assert_array_equal(rows, of_text[[0, 3, *range(4, 11)]])


def test_prepared_and_trained_on_its_sentence_features(tmp_path, monkeypatch, capsys):
    pairs = clip_pairs(40)
    _, of_text = write_clip_folder(tmp_path / "laion", pairs, split=(SPLITS * 3)[:80])
    data = ["--data", tmp_path / "data"]
    assert call(monkeypatch, prep, "folder", "--captions", tmp_path / "laion", *data) == 0
    assert "take them with train.py and --set text.encoder=precomputed:laion" in capsys.readouterr().err
    prepared = Prepared(tmp_path / "data/folder")
    assert prepared.stores() == ["laion"]
    assert prepared.text_stores() == ["precomputed-laion"]
    train_rows = [row for row in prepared.rows if row["split"] == "train"]
    wanted = [n for n, (path, _) in enumerate(pairs) if any(path.endswith(f"/{row['image']}") for row in train_rows)]
    for pooling in ("mean", "cls", "last"):
        features = prepared.sentence_features("train", "precomputed:laion", pooling)
        np.testing.assert_array_equal(features, of_text[wanted].astype(np.float32))
    stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "data/folder").glob("*.h5")}
    assert call(monkeypatch, prep, "folder", *data) == 0
    assert stamps == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "data/folder").glob("*.h5")}
    text = ["text.branch=encoder", "text.encoder=precomputed:laion", "training.min_steps=0"]
    runs = ["--runs", tmp_path / "runs", "--data", tmp_path / "data/folder"]
    monkeypatch.setattr(fill_bank, "MIN_IMAGES", 1)
    assert call(monkeypatch, train, "strong", *runs, *QUICK, *text) == 0
    assert "no new sentence can be read (precomputed:laion: sentence features that came without" in (
        capsys.readouterr().err
    )
    with pytest.raises(BadInput, match="came without their encoder"):
        sentence_encoder("precomputed:laion")
    # another folder under the same name is refused
    write_clip_folder(tmp_path / "other/laion", clip_pairs(40), split=(SPLITS * 3)[:80], dtype=np.float32)
    assert call(monkeypatch, prep, "folder", "--captions", tmp_path / "other/laion", *data) == 2
    assert "was made from another file" in capsys.readouterr().err


def test_its_image_features_with_captions_of_another_file(tmp_path):
    of_image, _ = write_clip_folder(tmp_path / "clip", clip_pairs(8, "/x"), texts=False)
    with pytest.raises(BadInput, match="metadata: has no caption; name a caption file"):
        read("folder", tmp_path / "clip", None)
    lines = [f"{n}.jpg,a cat,{('train', 'val', 'test', 'train')[n % 4]}" for n in reversed(range(8))]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption,split", *lines]))
    dataset = read("folder", tmp_path / "captions.csv", None)
    (block,) = load_precomputed(tmp_path / "clip", dataset).blocks()
    np.testing.assert_array_equal(block[0], of_image["/x/0/7.jpg"].astype(np.float16))


def zeros(shape, dtype=np.float16):
    return lambda path: np.save(path, np.zeros(shape, dtype))


def table(change):
    return lambda path: change(pandas.read_parquet(path)).to_parquet(path)


DAMAGES = [
    ("img_emb/img_emb_1.npy", Path.unlink, "part 1 is not in both, it and metadata"),
    ("text_emb/text_emb_0.npy", zeros((3, CLIP_DIM)), r"text_emb_0.npy: holds \(3, 6\) float16 for 7 rows"),
    ("img_emb/img_emb_0.npy", zeros((7, CLIP_DIM), np.int64), "there must be one row of floats"),
    ("img_emb/img_emb_0.npy", zeros((7, CLIP_DIM + 1)), "rows of different size"),
    ("img_emb/img_emb_0.npy", zeros((7, 0)), "there must be one row of floats"),
    ("img_emb/img_emb_0.npy", lambda path: np.save(path, np.array([{}] * 7), allow_pickle=True), "not a .npy array"),
    ("metadata/metadata_0.parquet", lambda path: os.truncate(path, 900), "cannot be read, or cut short"),
    ("metadata/metadata_0.parquet", table(lambda rows: rows.drop(columns="image_path")), "has no column image_path"),
    (
        "metadata/metadata_0.parquet",
        table(lambda rows: rows.replace("/data/photographs/0/0.jpg", "../0.jpg")),
        r"row 1 names the image '../0.jpg', outside the image folder",
    ),
    ("metadata", shutil.rmtree, "holds no metadata_0.parquet"),
]


@pytest.mark.parametrize(("name", "damage", "sentence"), DAMAGES)
def test_what_does_not_match_ends_in_a_sentence(tmp_path, name, damage, sentence):
    write_clip_folder(tmp_path, clip_pairs(16), split=SPLITS)
    damage(tmp_path / name)
    with pytest.raises(BadInput, match=sentence) as error:
        clip_retrieval.open_clip_folder(tmp_path).source()
    assert "\n" not in str(error.value)


def test_a_folder_without_a_row_ends_in_a_sentence(tmp_path):
    write_clip_folder(tmp_path, clip_pairs(3))
    for path in tmp_path.rglob("*.npy"):
        np.save(path, np.load(path)[:0])
    pandas.read_parquet(tmp_path / "metadata/metadata_0.parquet")[:0].to_parquet(
        tmp_path / "metadata/metadata_0.parquet"
    )
    with pytest.raises(BadInput, match="metadata: has no caption"):
        read("folder", tmp_path, None)


def test_sentence_features_that_are_not_finite_are_named(tmp_path):
    write_clip_folder(tmp_path, clip_pairs(16), split=SPLITS)
    rows = np.load(tmp_path / "text_emb/text_emb_1.npy")
    rows[3, 2] = np.nan
    np.save(tmp_path / "text_emb/text_emb_1.npy", rows)
    dataset = read("folder", tmp_path, None)
    with pytest.raises(BadInput, match="row 11 of text_emb is not finite"):
        list(clip_retrieval.open_clip_folder(tmp_path).sentence_features(dataset))


def test_without_pyarrow_a_sentence_names_the_package(tmp_path, monkeypatch):
    write_clip_folder(tmp_path, clip_pairs(16))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(BadInput, match="need a package; pip install pyarrow"):
        read("folder", Path(tmp_path), None)
