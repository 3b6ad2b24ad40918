"""Every kind of caption file, written here in small, and everything that can be wrong with one."""

import csv
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.datasets.dataset import clean_caption, hash_split
from features.datasets.line_files import numbered_lines
from features.datasets.readers import finder, read, without_ending
from tests.helpers import FLICKR8K, karpathy, vsepp, write
from utils import BadInput

ODD = [
    "एक कुत्ता घास पर दौड़ता है ।",
    "两只狗在草地上奔跑。",
    "a dog 🐕‍🦺 and a family 👨‍👩‍👧‍👦",
    "cafe\u0301 et nai\u0308f",
    "كلب يركض على العشب",
    "one, two, and three",
    'a sign that says "STOP", twice',
    '"left" or "right"',
    "it's 5 o'clock; a | pipe and a # hash",
    "a line separator\u2028within",
]


def tokens(ids, captions=2):
    return "".join(f"{key}#{n}\tview {n} of {key} .\n" for key in ids for n in range(captions))


def lists(folder, names=("train.txt", "val.txt", "test.txt"), ids=(("c", "a"), ("b",), ("d",))):
    for name, part in zip(names, ids, strict=True):
        write(folder / name, "".join(f"{key}\n" for key in part))
    return folder


FLICKR_LISTS = ("Flickr_8k.trainImages.txt", "Flickr_8k.devImages.txt", "Flickr_8k.testImages.txt")
JPGS = (("c.jpg", "a.jpg"), ("b.jpg",), ("d.jpg",))


def splits(dataset):
    return [(image.id, image.split) for image in dataset.images]


def captions(dataset):
    return {image.id: list(image.captions) for image in dataset.images}


def note(dataset, words):
    found = [line for line in dataset.notes if words in line]
    assert found, (words, dataset.notes)
    return found[0]


IN_LIST_ORDER = [("c.jpg", "train"), ("a.jpg", "train"), ("b.jpg", "val"), ("d.jpg", "test")]


# The original Flickr files


def flickr8k(folder):
    write(folder / "Flickr8k.token.txt", tokens(["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "d.jpg.1"]))
    return lists(folder, FLICKR_LISTS, JPGS)


def test_original_flickr8k_files(tmp_path):
    dataset = read("flickr8k", flickr8k(tmp_path), tmp_path)
    assert dataset.name == "flickr8k"
    assert splits(dataset) == IN_LIST_ORDER
    assert captions(dataset)["b.jpg"] == ["view 0 of b.jpg .", "view 1 of b.jpg ."]
    assert dataset.images[0].path == tmp_path / "c.jpg"
    assert dataset.source_ids == ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "d.jpg.1")
    assert "2 images in no split list left out, 1 of them not named like an image file (d.jpg.1)" in note(
        dataset, "left out"
    )


def test_token_file_by_itself_finds_the_lists_beside_it_or_those_named(tmp_path):
    folder = flickr8k(tmp_path / "one")
    assert splits(read("flickr8k", folder / "Flickr8k.token.txt", None)) == IN_LIST_ORDER
    alone = write(tmp_path / "two" / "Flickr8k.token.txt", tokens(["a.jpg", "b.jpg", "c.jpg", "d.jpg"]))
    dataset = read("flickr8k", alone, None, splits=folder)
    assert splits(dataset) == IN_LIST_ORDER
    assert dataset.images[0].path is None


def test_entities_lists_match_with_or_without_endings(tmp_path):
    token = write(tmp_path / "results_20130124.token", tokens(["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"], 3))
    assert splits(read("flickr30k", token, None, lists(tmp_path / "bare"))) == IN_LIST_ORDER
    assert splits(read("flickr30k", tmp_path, None, lists(tmp_path / "jpg", ids=JPGS))) == IN_LIST_ORDER
    bare = write(tmp_path / "own.csv", "image,caption\n" + "".join(f"{key},view of {key}\n" for key in "abcd"))
    dataset = read("folder", bare, None, tmp_path / "jpg")
    assert [image.id for image in dataset.images] == ["c", "a", "b", "d"]


def test_a_listed_image_without_captions_is_counted(tmp_path):
    token = write(tmp_path / "x.token", tokens(["a.jpg", "b.jpg", "d.jpg"]))
    dataset = read("flickr30k", token, None, lists(tmp_path))
    assert note(dataset, "no caption") == "1 listed images have no caption in x.token, the first c"
    assert len(dataset.images) == 3


def test_pipes_with_the_published_broken_line(tmp_path):
    text = "image_name| comment_number| comment\n" + "".join(
        f"{key}.jpg| 0| A view | of {key} .\n{key}.jpg| 1| Another .\n" for key in "abc"
    )
    write(tmp_path / "results.csv", text + "d.jpg| 4   A dog walks here .\n")
    dataset = read("flickr30k", tmp_path, None, lists(tmp_path / "lists"))
    assert captions(dataset)["a.jpg"] == ["A view | of a .", "Another ."]
    assert captions(dataset)["d.jpg"] == ["A dog walks here ."]
    assert note(dataset, "mended") == "1 lines without their second '|' mended, the first 8"


def test_kaggle_with_comment_numbers(tmp_path):
    text = "image_name,comment_number,comment\n" + "".join(f'{key}.jpg,0, One, "two" .\n' for key in "abc")
    file = write(tmp_path / "captions.txt", text + "d.jpg, 4   A dog, walking .,\n")
    dataset = read("flickr30k", file, None, lists(tmp_path / "lists"))
    assert captions(dataset)["a.jpg"] == ['One, "two" .']
    assert captions(dataset)["d.jpg"] == ["A dog, walking ."]


def test_kaggle_takes_all_after_the_first_comma_and_unquotes_what_is_quoted(tmp_path):
    lines = ["a.jpg,A dog , a cat .", 'b.jpg,"A ""big"" dog, running"', 'c.jpg,"A" or "B"', 'd.jpg,He says "hi"']
    write(tmp_path / "captions.txt", "\r\n".join(["image,caption", *lines, ""]))
    dataset = read("flickr8k", tmp_path, None, lists(tmp_path / "lists"))
    assert captions(dataset) == {
        "c.jpg": ['"A" or "B"'],
        "a.jpg": ["A dog , a cat ."],
        "b.jpg": ['A "big" dog, running'],
        "d.jpg": ['He says "hi"'],
    }


# JSON


@pytest.mark.parametrize("name", ["flickr8k", "flickr30k", "coco"])
def test_karpathy(tmp_path, name):
    write(tmp_path / f"dataset_{name}.json", karpathy(name))
    dataset = read(name, tmp_path, tmp_path)
    assert [image.split for image in dataset.images] == ["test", "train", "train", "val", "train"]
    assert dataset.images[3].captions == ("View 3.", "a view")
    assert note(dataset, "restval") == "1 restval images joined to train"
    without = read(name, tmp_path, tmp_path, restval=False)
    assert [image.id for image in without.images] == ["0.jpg", "1.jpg", "3.jpg", "4.jpg"]
    assert note(without, "restval") == "1 restval images left out"
    assert without.source_ids == tuple(f"{n}.jpg" for n in range(5))


def test_karpathy_coco_looks_into_the_folder_of_the_year_first(tmp_path):
    value = karpathy("coco")
    for entry in value["images"]:
        entry["filepath"] = "val2014"
    file = write(tmp_path / "dataset_coco.json", value)
    write(tmp_path / "images" / "val2014" / "1.jpg", "")
    paths = {image.id: image.path for image in read("coco", file, tmp_path / "images").images}
    assert paths["1.jpg"] == tmp_path / "images" / "val2014" / "1.jpg"
    assert paths["2.jpg"] == tmp_path / "images" / "2.jpg"


def coco(first, count, captions=2):
    images = [{"id": n, "file_name": f"{n:012d}.jpg"} for n in range(first, first + count)]
    rows = [{"id": n, "image_id": row["id"], "caption": f"view {n}"} for n in range(captions) for row in images]
    return {"info": {}, "images": images, "annotations": rows}


@pytest.mark.parametrize("year", [2014, 2017])
@pytest.mark.parametrize("place", [".", "annotations"])
def test_coco_pair(tmp_path, year, place):
    train = write(tmp_path / place / f"captions_train{year}.json", coco(0, 40))
    val = write(tmp_path / place / f"captions_val{year}.json", coco(100, 5, captions=7))
    write(tmp_path / f"val{year}" / "000000000100.jpg", "")
    dataset = read("coco", tmp_path, tmp_path)
    assert len(dataset.images) == 45
    assert {image.split for image in dataset.images[:40]} == {"train", "val"}
    assert dataset.images[3].split == hash_split(dataset.images[3].id, (80, 10, 0))
    assert {image.split for image in dataset.images[40:]} == {"test"}
    assert len(dataset.images[-1].captions) == 7
    assert dataset.images[40].path == tmp_path / f"val{year}" / "000000000100.jpg"
    assert dataset.images[41].path == tmp_path / "000000000101.jpg"
    assert f"captions_val{year}.json is test" in note(dataset, "split into train and val by a hash")
    assert (
        note(dataset, "drawn 80/10")
        == f"drawn 80/10: {dataset.count('train')} train, {dataset.count('val')} val images"
    )
    for file in (train, val):
        assert read("coco", file, tmp_path) == dataset


def test_coco_alone_is_drawn_into_three(tmp_path):
    file = write(tmp_path / "captions_train2014.json", coco(0, 60))
    dataset = read("coco", file, None, split_ratio=(60, 20, 20))
    assert [image.split for image in dataset.images] == [hash_split(i.id, (60, 20, 20)) for i in dataset.images]
    assert "hash of the image id, 60/20/20" in note(dataset, "no split given")


def test_lists_go_before_splits_in_the_file(tmp_path):
    value = karpathy()
    for entry, key in zip(value["images"], "abcde", strict=True):
        entry["filename"] = f"{key}.jpg"
    file = write(tmp_path / "dataset_flickr8k.json", value)
    dataset = read("flickr8k", file, None, lists(tmp_path))
    assert splits(dataset) == IN_LIST_ORDER
    assert not any("restval" in line for line in dataset.notes)


# folder


def rows(delimiter, quote):
    for n, key in enumerate("abcd"):
        yield delimiter.join([f"x/{key}.png", quote(f"A view, of {key}")])
        yield delimiter.join([f"x/{key}.png", quote(f'Another "{n}"')])


def csv_quote(text):
    return '"' + text.replace('"', '""') + '"'


@pytest.mark.parametrize(
    ("name", "header", "delimiter", "quote"),
    [
        ("captions.csv", "image,caption", ",", csv_quote),
        ("captions.csv", "\ufeffImage, Caption", ",", csv_quote),
        ("metadata.csv", "file_name;text", ";", csv_quote),
        ("captions.tsv", "Filename\tSentence", "\t", str),
        ("captions.tsv", "file\tcaptions", "\t", csv_quote),
        ("captions.txt", "file\ttext", "\t", str),
    ],
)
def test_tables(tmp_path, name, header, delimiter, quote):
    text = "\n".join([header, *rows(delimiter, quote)])
    write(tmp_path / name, text)
    for source in (tmp_path, tmp_path / name):
        dataset = read("folder", source, tmp_path, lists(tmp_path / "lists", ids=(("x/b", "x/a"), ("x/c",), ("x/d",))))
        assert captions(dataset)["x/d.png"] == ["A view, of d", 'Another "3"']
        assert dataset.images[0].path == tmp_path / "x" / "b.png"


def test_split_column_and_its_words(tmp_path):
    words = ["train", "Validation", "TEST", "dev", "val"]
    text = "split,caption,image\n" + "".join(f"{word},view,{n}.jpg\n" for n, word in enumerate(words))
    dataset = read("folder", write(tmp_path / "own.csv", text + ",a second view,0.jpg\n"), None)
    assert [image.split for image in dataset.images] == ["train", "val", "test", "val", "val"]
    assert dataset.images[0].captions == ("view", "a second view")
    assert dataset.notes == ()


def test_json_lines_and_json_lists(tmp_path):
    entries = [
        {"image": "a.jpg", "caption": "one", "split": "train"},
        {"image": "a.jpg", "captions": ["two", "three"]},
        {"image": "b.jpg", "captions": ["four"], "split": "dev"},
        {"image": "c.jpg", "caption": "five", "split": "test"},
    ]
    one = write(tmp_path / "captions.jsonl", "\n".join(map(json.dumps, entries)))
    two = write(tmp_path / "captions.json", entries)
    three = write(tmp_path / "captions.txt", one.read_text())
    for file in (one, two, three, tmp_path):
        dataset = read("folder", file, None)
        assert captions(dataset) == {"a.jpg": ["one", "two", "three"], "b.jpg": ["four"], "c.jpg": ["five"]}
    assert "captions read from captions.jsonl" in note(read("folder", tmp_path, None), "beside it")


def test_small_splits_that_are_drawn_are_warned_of(tmp_path, capsys):
    for count, warned in ((80, True), (800, False)):
        text = "image,caption\n" + "".join(f"{n}.jpg,view {n}\n" for n in range(count))
        dataset = read("folder", write(tmp_path / "own.csv", text), None)
        counts = ", ".join(f"{dataset.count(split)} {split}" for split in ("train", "val", "test"))
        said = capsys.readouterr().err
        assert (f"own.csv: small splits are drawn, {counts}: with fewer than 50 images to rank" in said) == warned
        assert ("give more images, or another `split_ratio`" in said) == warned
    given = "image,caption,split\n" + "".join(f"{n}.jpg,view {n},{s}\n" for n, s in enumerate(("train", "val", "test")))
    read("folder", write(tmp_path / "own.csv", given), None)
    assert capsys.readouterr().err == "", "splits that are given are the giver's"


def test_without_splits_a_hash_draws_them_and_says_so(tmp_path):
    file = write(tmp_path / "own.csv", "image,caption\n" + "".join(f"{n}.jpg,view {n}\n" for n in range(80)))
    dataset = read("folder", file, None)
    assert [image.split for image in dataset.images] == [hash_split(image.id) for image in dataset.images]
    counts = [dataset.count(split) for split in ("train", "val", "test")]
    assert dataset.notes == (
        "no split given: drawn by a hash of the image id, 80/10/10: "
        f"{counts[0]} train, {counts[1]} val, {counts[2]} test images",
    )


def test_blank_captions_are_left_out(tmp_path):
    token = write(tmp_path / "x.token", tokens(["a.jpg", "b.jpg", "c.jpg", "d.jpg"]) + "a.jpg#2\t \n")
    dataset = read("flickr30k", token, None, lists(tmp_path))
    assert note(dataset, "blank captions") == "1 blank captions left out"


# Any language


def check_odd(folder, sentences):
    keys = list("abcd")
    wanted = [clean_caption(sentence) for sentence in sentences]
    split = dict(zip(keys, ("train", "train", "val", "test"), strict=True))
    write(folder / "t.token", "".join(f"{k}.jpg#{n}\t{s}\n" for k in keys for n, s in enumerate(sentences)))
    with open(folder / "t.csv", "w", encoding="utf-8", newline="") as table:
        csv.writer(table).writerows([["image", "caption"], *([f"{k}.jpg", s] for k in keys for s in sentences)])
    rows = [{"image": f"{k}.jpg", "captions": sentences, "split": split[k]} for k in keys]
    write(folder / "t.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    sentence = [{"raw": s} for s in sentences]
    write(
        folder / "t.json",
        {"images": [{"filename": f"{k}.jpg", "split": split[k], "sentences": sentence} for k in keys]},
    )
    for name, file in (("flickr30k", "t.token"), ("folder", "t.csv"), ("folder", "t.jsonl"), ("flickr8k", "t.json")):
        dataset = read(name, folder / file, None, folder if file.endswith(("csv", "token")) else None)
        assert list(dataset.images[-1].captions) == wanted, file


def test_ids_may_have_folders_and_are_the_shortest_way_to_say_them(tmp_path):
    text = GOOD.replace("a.jpg", "./x//a.jpg") + "x/a.jpg,y,train\n"
    dataset = read("folder", write(tmp_path / "own.csv", text), tmp_path)
    assert captions(dataset)["x/a.jpg"] == ["x", "y"]
    assert dataset.images[0].path == tmp_path / "x" / "a.jpg"


def test_any_language(tmp_path):
    check_odd(lists(tmp_path), ODD)


CHARACTERS = st.characters(exclude_categories=("Cs", "Cc"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sentences=st.lists(st.text(CHARACTERS, min_size=1).filter(clean_caption), min_size=1, max_size=4))
def test_any_text(tmp_path, sentences):
    check_odd(lists(tmp_path), sentences)


# VSE++


@pytest.mark.parametrize("repeat", [1, 2])
def test_vsepp(tmp_path, repeat):
    dataset = read("coco", vsepp(tmp_path / "pre", repeat), None)
    assert [image.id for image in dataset.images][:5] == [
        *(f"train-{n:06d}" for n in range(4)),
        "val-000000",
    ]
    assert [dataset.count(split) for split in ("train", "val", "test")] == [4, 2, 3]
    assert dataset.images[1].captions == ("train 1 2", "train 1 3")
    assert dataset.images[1].path is None
    assert len(dataset.notes) == (0 if repeat == 1 else 3)


def test_vsepp_reads_the_whole_test_split_of_coco(tmp_path):
    folder = vsepp(tmp_path / "pre")
    np.save(folder / "testall_ims.npy", np.ones((5, 3), np.float32))
    write(folder / "testall_caps.txt", "a view\n" * 15)
    dataset = read("coco", folder, None)
    assert dataset.count("test") == 5
    assert "testall_ims.npy is the test split" in note(dataset, "testall")


# Bad input: one sentence that names the file


def bad(tmp_path, name, content):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


GOOD = "image,caption,split\na.jpg,x,train\nb.jpg,x,val\nc.jpg,x,test\n"
ONE_KARPATHY = '{"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "x"}]}]}'


@pytest.mark.parametrize(
    ("dataset", "file", "content", "words"),
    [
        ("flickr8k", "x.token.txt", "", "empty"),
        ("flickr8k", "x.token.txt", " \n\n", "empty"),
        ("flickr8k", "x.token.txt", "a.jpg#0\tone\nb.jpg#0\ttwo\nc.jp", "line 3 .* cut short"),
        ("flickr8k", "x.token.txt", "a.jpg\tone\n", "line 1 "),
        ("flickr8k", "x.txt", "a.jpg\nb.jpg\n", "not a caption file of flickr8k"),
        ("flickr8k", "x.txt", b"a.jpg#0\tone\nb.jpg#0\tcaf\xe9\n", "line 2 .* UTF-8"),
        ("folder", "x.csv", b"\xef\xbb\xbfimage,caption\na.jpg,caf\xe9\n", r"line 2 .*byte 26.*save it as UTF-8"),
        ("flickr8k", "x.jpg", b"\xff\xd8\xff\xe0 JFIF", "JPEG"),
        ("folder", "x.xlsx", b"PK\x03\x04 xl", "spreadsheet"),
        ("folder", "x.csv", "image,caption\n".encode("utf-16"), "UTF-16.*save it as UTF-8"),
        ("flickr8k", "x.bin", b"ab\0\0cd", "binary"),
        ("flickr30k", "results.csv", "image_name| comment_number| comment\na.jpg| 0| x\nb.jpg| 0", "line 3"),
        ("flickr30k", "results.csv", "image_name| comment_number| comment\n", "holds no image"),
        ("flickr8k", "captions.txt", "image,caption\na.jpg,x\nb.jp", "line 3"),
        ("flickr8k", "d.json", ONE_KARPATHY[:40], "cut short"),
        ("flickr8k", "d.json", ONE_KARPATHY, "val split has no image"),
        ("flickr8k", "d.json", ONE_KARPATHY.replace("train", "trane"), "split 'trane'"),
        ("flickr8k", "d.json", ONE_KARPATHY.replace("sentences", "words"), "no list of sentences"),
        ("flickr8k", "d.json", ONE_KARPATHY.replace("raw", "row"), "without raw text"),
        ("flickr8k", "d.json", ONE_KARPATHY.replace("a.jpg", "../a.jpg"), "outside the image folder"),
        ("flickr8k", "d.json", ONE_KARPATHY.replace('"x"', r'"\ud83d"'), "half a character"),
        ("flickr8k", "d.json", ONE_KARPATHY.replace('"x"', "7"), "not text"),
        ("flickr8k", "d.json", '{"a": 1}', "neither Karpathy's"),
        ("flickr8k", "d.json", '"text"', "neither Karpathy's"),
        ("flickr8k", "d.json", '{"images": []}', "holds no image"),
        ("flickr8k", "d.json", '{"images": [3]}', "no list of objects"),
        pytest.param("flickr8k", "d.json", "[" * 100_000, "JSON", id="deep"),
        (
            "coco",
            "c.json",
            {"images": [], "annotations": [{"image_id": 1, "caption": "x"}]},
            "1 annotations name images",
        ),
        ("coco", "c.json", {"images": [{"id": 1, "file_name": "a"}], "annotations": [{"bbox": 1}]}, "no caption"),
        ("coco", "c.json", {"images": [{"id": 1, "file_name": "a"}] * 2, "annotations": []}, "twice"),
        ("coco", "c.json", {"images": [{"id": [1]}], "annotations": []}, "names no image"),
        ("coco", "c.json", {"annotations": []}, "no list of objects named images"),
        ("coco", "c.json", {"images": [{"id": 1, "file_name": "a"}], "annotations": []}, "split drawn|no image"),
        ("folder", "x.csv", "image,title\na.jpg,x\n", "image and a caption column"),
        ("folder", "x.csv", "image,caption,split\na.jpg,x\n", "line 2 has 2 of 3"),
        ("folder", "x.csv", "image,caption\na.jpg,x, y\n", "line 2 has 3 columns"),
        ("folder", "x.csv", 'image,caption\na.jpg,"x\n', "not proper CSV"),
        pytest.param("folder", "x.csv", f"image,caption\na.jpg,{'x' * 200_000}\n", "not proper CSV", id="long"),
        ("folder", "x.csv", GOOD + "d.jpg,x,\n", "1 images have no split"),
        ("folder", "x.csv", GOOD + "d.jpg,x,tset\n", "line 5 has the split 'tset'"),
        ("folder", "x.csv", GOOD + "a.jpg,x,test\n", "line 5 puts a.jpg"),
        ("folder", "x.csv", GOOD.replace("test", "train"), "test split has no image"),
        ("folder", "x.csv", GOOD + ",x,train\n", "names no image"),
        ("folder", "x.csv", GOOD + "/etc/a.jpg,x,train\n", "outside the image folder"),
        ("folder", "x.csv", GOOD + "C:\\a.jpg,x,train\n", "outside the image folder"),
        ("folder", "x.csv", GOOD + "x/../../a.jpg,x,train\n", "outside the image folder"),
        ("folder", "x.csv", GOOD + "./,x,train\n", "line 5 names a folder"),
        ("folder", "x.csv", GOOD + "a\0.jpg,x,train\n", "binary|cannot be a file name"),
        ("folder", "x.csv", GOOD + f"{'a' * 300}.jpg,x,train\n", "cannot be a file name"),
        ("folder", "x.csv", "image,caption\na.jpg,x\n", "leaves"),
        ("folder", "x.jsonl", '{"image": "a.jpg", "caption": "x"}\n{"image": "b', "line 2 is not JSON"),
        ("folder", "x.jsonl", '["a.jpg", "x"]\n', "not an object"),
        ("folder", "x.jsonl", '{"caption": "x"}\n', "names no image"),
        ("folder", "x.jsonl", '{"image": "a.jpg"}\n', '"caption"'),
        ("folder", "x.jsonl", '{"image": "a.jpg", "caption": "x", "split": 1}\n', "split that is not text"),
        ("folder", "x.jsonl", '{"image": "a.jpg", "captions": [["x"]]}\n', "not text"),
    ],
)
def test_bad_files(tmp_path, dataset, file, content, words):
    path = bad(tmp_path, file, json.dumps(content) if isinstance(content, dict) else content)
    with pytest.raises(BadInput, match=f"(?s){words}") as error:
        read(dataset, path, None)
    assert file in str(error.value)
    assert "\n" not in str(error.value)


def test_coco_pair_with_a_bad_half_names_that_half(tmp_path):
    write(tmp_path / "captions_train2014.json", coco(0, 40))
    write(tmp_path / "captions_val2014.json", json.dumps(coco(50, 4))[:-20])
    with pytest.raises(BadInput, match=r"captions_val2014.json: not JSON, or cut short"):
        read("coco", tmp_path, None)
    write(tmp_path / "captions_val2014.json", coco(0, 4))
    with pytest.raises(BadInput, match=r"captions_val2014.json: image 1, .* twice"):
        read("coco", tmp_path, None)


def test_bad_paths_and_flags(tmp_path):
    file = write(tmp_path / "own.csv", GOOD)
    (tmp_path / "nothing").mkdir()
    for name, captions_at, images, words in [
        ("flickr9k", file, None, "did you mean flickr8k"),
        ("folder", tmp_path / "gone.csv", None, "gone.csv: no such file"),
        ("folder", file, tmp_path / "gone", "gone: no such folder; .*`images`"),
        ("folder", file, file, "own.csv: no such folder; .*`images`"),
        ("flickr8k", tmp_path / "nothing", None, "nothing: holds none of Flickr8k.token.txt"),
    ]:
        with pytest.raises(BadInput, match=words):
            read(name, captions_at, images)
    ratios: list[Any] = [(80, 10, 0), (-1, 1, 1), (float("nan"), 1, 1), (80, 10)]
    for ratio in ratios:
        with pytest.raises(BadInput, match="`split_ratio`"):
            read("folder", file, None, split_ratio=ratio)


def test_bad_lists(tmp_path):
    token = write(tmp_path / "x.token", tokens(["a.jpg", "b.jpg", "c.jpg", "d.jpg"]))
    for name, names, ids, words in [
        ("gone", ("train.txt", "val.txt"), (("a",), ("b",)), "test.txt: no such file"),
        ("flickr", FLICKR_LISTS[:2], (("a",), ("b",)), "Flickr_8k.testImages.txt: no such file"),
        ("twice", FLICKR_LISTS, (("a",), ("b",), ("c", "a")), "testImages.txt: line 2, a, is in the train list too"),
        ("strange", FLICKR_LISTS, (("x",), ("y",), ("z",)), "strange: its lists name none of the 4 images"),
        ("lacking", FLICKR_LISTS, (("a",), ("b",), ("z",)), "x.token: the test split has no image"),
        ("climbing", FLICKR_LISTS, (("a",), ("b",), ("../z",)), "testImages.txt: line 1 names .* outside"),
    ]:
        with pytest.raises(BadInput, match=words):
            read("flickr30k", token, None, lists(tmp_path / name, names, ids))
    with pytest.raises(BadInput, match=r"nowhere: no such folder; .*`splits`"):
        read("flickr30k", token, None, tmp_path / "nowhere")
    write(tmp_path / "lacking" / FLICKR_LISTS[2], "")
    with pytest.raises(BadInput, match=r"testImages.txt: is empty"):
        read("flickr30k", token, None, tmp_path / "lacking")


def test_bad_vsepp(tmp_path):
    folder = vsepp(tmp_path / "pre")
    with pytest.raises(BadInput, match=r"pre: a VSE\+\+ folder brings its own splits; .*`splits`"):
        read("coco", folder, None, lists(tmp_path))
    write(folder / "dev_caps.txt", "one\ntwo\nthree\n")
    with pytest.raises(BadInput, match=r"dev_ims.npy: has the shape .* dev_caps.txt has 3 captions"):
        read("coco", folder, None)
    (folder / "dev_caps.txt").unlink()
    with pytest.raises(BadInput, match=r"dev_caps.txt: no such file"):
        read("coco", folder, None)
    (folder / "train_ims.npy").write_bytes((folder / "train_ims.npy").read_bytes()[:-5])
    with pytest.raises(BadInput, match=r"train_ims.npy: not a .npy array, or cut short"):
        read("coco", folder, None)


def test_ids_with_and_without_endings():
    assert [without_ending(key) for key in ("a.jpg", "a.JPEG", "a", "a.jpg.1", "x.y/a")] == [
        "a",
        "a",
        "a",
        "a.jpg.1",
        "x.y/a",
    ]
    find = finder(["a.jpg", "b", "c.png"])
    assert [find(key) for key in ("a.jpg", "a", "b.jpg", "c.jpg", "a.jpg.1")] == ["a.jpg", "a.jpg", "b", None, None]


@pytest.mark.skipif(not FLICKR8K.is_dir(), reason="the images of Flickr8k are missing")
def test_the_real_flickr8k():
    dataset = read("flickr8k", FLICKR8K, FLICKR8K / "images")
    assert [dataset.count(split) for split in ("train", "val", "test")] == [6000, 1000, 1000]
    assert sum(len(image.captions) for image in dataset.images) == 40_000
    assert len(dataset.source_ids) == 8_000 + 91 + 1
    assert "92 images in no split list left out, 1 of them not named like an image file (" in note(dataset, "left out")
    assert isinstance(dataset.images[-1].path, Path)
    assert dataset.images[-1].path.is_file()


def test_a_file_in_either_form_of_unicode_is_the_image_that_is_meant(tmp_path):
    composed, split = normalize("NFC", "café.jpg"), normalize("NFD", "café.jpg")
    rows = [f"{composed},one,train", "b.jpg,two,val", f"{split.replace('c', 'd')},three,test"]
    file = write(tmp_path / "captions.csv", "\n".join(["image,caption,split", *rows]))
    (tmp_path / split).write_text("its image")
    (tmp_path / composed.replace("c", "d")).write_text("its image")
    dataset = read("folder", file, tmp_path)
    assert [image.id for image in dataset.images] == [composed, "b.jpg", split.replace("c", "d")]
    paths = [image.path.name for image in dataset.images if isinstance(image.path, Path)]
    assert paths == [split, "b.jpg", composed.replace("c", "d")]
    find = finder([composed, split.replace("c", "d")])
    assert find(split) == find(split.removesuffix(".jpg")) == composed
    assert find(normalize("NFC", "dafé")) == split.replace("c", "d")


@pytest.mark.parametrize("name", ["captions.csv", "captions.jsonl", "dataset_coco.json"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(BadInput, match=rf"{name}: cannot be read \(a pipe or a device, not a file\)"):
        read("folder", tmp_path / name, None)


def test_captions_are_told_apart_as_they_are_read():
    assert clean_caption("caf\u00e9") == clean_caption("cafe\u0301")
    assert clean_caption("a\0 dog\x1b[2J\x9b runs\x7f") == "a dog [2J runs"


def test_lines_are_split_as_they_are_asked_for():
    """A list of all of them takes 20 times the text."""
    text = "ab\n" * 10**6 + "\ncd"
    tracemalloc.start()
    lines = numbered_lines(text)
    assert [next(lines) for _ in range(3)] == [(1, "ab"), (2, "ab"), (3, "ab")]
    assert tracemalloc.get_traced_memory()[1] < 10**5
    tracemalloc.stop()
    assert [number for number, line in lines][-1] == 10**6 + 2
