"""The index folder: strings in one file, builds that notice what changed by content, and kills at any moment."""

import os
import shutil
import time
from typing import Any

import numpy as np
import pytest

from features.images import decode
from retrieval import build as indexing
from retrieval import index
from retrieval.build import build_index
from retrieval.index import META, Index, Strings, write_strings
from retrieval.searcher import Searcher
from retrieval.sources import gather
from tests.helpers import FakeRun, paint, small_jpeg
from utils import BadInput, lock_folder

OLD = 10**9  # seconds: a time of change that can be relied on


def strings_of(tmp_path, values):
    write_strings(tmp_path / "strings.bin", values)
    return Strings(index.map_file(tmp_path / "strings.bin"))


def test_strings_of_any_kind_come_back(tmp_path):
    values = sorted(["", "a", "a", "b\nc", "ü", "犬", "😀", os.fsdecode(b"\xff.jpg"), "\ud800"])
    strings = strings_of(tmp_path, values)
    assert strings[:] == values == list(strings)
    assert strings[-1] == values[-1]
    for text in {*values, "aa", "zz", "\uffff"}:
        rows = strings.rows_of(text)
        assert [i for i, value in enumerate(values) if value == text] == list(rows)
    with pytest.raises(IndexError):
        strings[len(values)]
    assert len(Strings.empty()) == len(strings_of(tmp_path, [])) == 0


def test_strings_cut_short_are_noticed(tmp_path):
    write_strings(tmp_path / "strings.bin", ["one", "two"])
    whole = (tmp_path / "strings.bin").read_bytes()
    for size in (4, 20, len(whole) - 1):
        with pytest.raises(ValueError, match=r".+"):
            Strings(whole[:size])


@pytest.fixture
def images(tmp_path):
    """Seven images in a tree, none changed of late."""
    for number in range(5):
        paint(tmp_path / "images" / f"{number}.png", number)
    paint(tmp_path / "images/more/5.PNG", 5)
    paint(tmp_path / "images/more/deep/6.png", 6)
    paint(tmp_path / "images/.hidden.png", 7)
    paint(tmp_path / "images/.folder/8.png", 8)
    (tmp_path / "images/notes.txt").write_text("no image")
    (tmp_path / "images/more/loop").symlink_to(tmp_path / "images")
    settle(tmp_path / "images")
    return tmp_path / "images"


def settle(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (OLD, OLD))


def contents(folder):
    """All that a searcher sees of an index, whatever its generation."""
    found = Index.open(folder)
    names = ("embeddings", "ids", "paths", "captions", "caption_embeddings", "known", "known_rows")
    columns = {name: [np.asarray(value).tolist() for value in getattr(found, name)] for name in names}
    rows = [(row["digest"].tolist(), int(row["size"]), int(row["mtime"])) for row in found.rows]
    return columns, rows, [found.thumbnail(row) for row in range(len(found))]


def build(run, folder, *images, **more):
    return build_index(run, list(images), folder, **more)


def counts(built):
    return built.new, built.changed, built.moved, built.removed, built.kept


def check(folder, run, root):
    """Every row of an index is what embedding its file says."""
    found = Index.open(folder)
    assert list(found.ids) == sorted(found.ids)
    fresh = FakeRun(run.root, run.similarity)
    for row, image in enumerate(found.ids):
        (wanted,) = fresh.embed_images([root / image])
        np.testing.assert_array_equal(found.embeddings[row], wanted)
        assert found.path(row) == root / image
        assert found.thumbnail(row) == small_jpeg(root / image)
    own = found.meta.names()
    assert {path.name for path in folder.iterdir()} == own, "nothing of an earlier generation is left"
    return found


def test_a_tree_is_indexed_and_repeating_does_nothing(tmp_path, images):
    run = FakeRun(tmp_path)
    built = build(run, tmp_path / "index", images)
    assert counts(built) == (7, 0, 0, 0, 0)
    assert built.counts() == "7 new, 0 changed, 0 moved, 0 removed, 0 kept"
    found = check(tmp_path / "index", run, images)
    assert list(found.ids) == ["0.png", "1.png", "2.png", "3.png", "4.png", "more/5.PNG", "more/deep/6.png"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "index").iterdir()}
    assert counts(build(run, tmp_path / "index", images)) == (0, 0, 0, 0, 7)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "index").iterdir()} == before
    assert len(run.embedded) == 7


def test_what_changed_is_noticed_by_content(tmp_path, images):
    run = FakeRun(tmp_path)
    build(run, tmp_path / "index", images)
    run.embedded.clear()
    (images / "0.png").unlink()  # removed
    paint(images / "1.png", 11)  # changed
    (images / "2.png").rename(images / "more/two.png")  # moved
    os.utime(images / "3.png", (OLD + 5, OLD + 5))  # touched only
    paint(images / "new.png", 12)  # new
    shutil.copy(images / "4.png", images / "copy.png")  # new, but its content is known
    built = build(run, tmp_path / "index", images)
    assert counts(built) == (2, 1, 1, 1, 4)
    assert {path.name for path in run.embedded} == {"1.png", "new.png"}
    check(tmp_path / "index", run, images)
    build(FakeRun(tmp_path), tmp_path / "fresh", images)
    assert contents(tmp_path / "index")[0] == contents(tmp_path / "fresh")[0]


def test_a_change_that_keeps_size_and_time_apart_is_noticed(tmp_path, images):
    """The same size, another time; and a file changed just now, whose time may not tell the next change."""
    run = FakeRun(tmp_path)
    paint(images / "3.png", 30)
    now = os.stat(images / "3.png")
    build(run, tmp_path / "index", images)
    paint(images / "3.png", 31)
    content = (images / "3.png").read_bytes()[: now.st_size].ljust(now.st_size, b"\0")  # within one tick of the clock
    (images / "3.png").write_bytes(content)
    os.utime(images / "3.png", ns=(now.st_mtime_ns, now.st_mtime_ns))
    assert counts(build(run, tmp_path / "index", images)) == (0, 1, 0, 0, 6)


def test_touched_files_keep_embeddings_and_graph_where_they_are(tmp_path, images):
    run = FakeRun(tmp_path)
    build(run, tmp_path / "index", images)
    before = Index.open(tmp_path / "index").meta.files
    os.utime(images / "3.png", (OLD + 5, OLD + 5))
    assert counts(build(run, tmp_path / "index", images)) == (0, 0, 0, 0, 7)
    after = Index.open(tmp_path / "index").meta.files
    assert {name for name in after if after[name] != before[name]} == {"files"}


class Killed(BaseException):
    pass


def test_a_killed_build_continues(tmp_path, images, monkeypatch):
    monkeypatch.setattr(indexing, "ROWS_PER_BLOCK", 2)
    (tmp_path / "captions.txt").write_text("a dog\na cat\n")
    run = FakeRun(tmp_path, stop_after=5)
    with pytest.raises(KeyboardInterrupt):
        build(run, tmp_path / "index", images, captions=tmp_path / "captions.txt")
    assert len(list((tmp_path / "index").glob("part-*/block-*.npz"))) == 2
    with pytest.raises(BadInput, match="not an index"):
        Index.open(tmp_path / "index")
    again = FakeRun(tmp_path)
    build(again, tmp_path / "index", images, captions=tmp_path / "captions.txt")
    assert len(again.embedded) == 3, "four of seven were in finished blocks"
    check(tmp_path / "index", again, images)
    build(FakeRun(tmp_path), tmp_path / "undisturbed", images, captions=tmp_path / "captions.txt")
    assert contents(tmp_path / "index") == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("moment", ["write_rows", "write_array", "write_strings"])
def test_a_kill_while_columns_are_written_leaves_the_old_index(tmp_path, images, monkeypatch, moment):
    run = FakeRun(tmp_path)
    build(run, tmp_path / "index", images)
    before = contents(tmp_path / "index")
    paint(images / "1.png", 11)
    paint(images / "new.png", 12)

    def killed(path, *args):
        path.write_bytes(b"half a file")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(indexing, moment, killed)
        with pytest.raises(Killed):
            build(run, tmp_path / "index", images)
    assert contents(tmp_path / "index") == before
    run.embedded.clear()
    build(run, tmp_path / "index", images)
    assert run.embedded == []
    check(tmp_path / "index", run, images)


def test_a_damaged_block_is_made_again(tmp_path, images, monkeypatch):
    monkeypatch.setattr(indexing, "ROWS_PER_BLOCK", 2)
    with pytest.raises(KeyboardInterrupt):
        build(FakeRun(tmp_path, stop_after=5), tmp_path / "index", images)
    block = next((tmp_path / "index").glob("part-*/block-000000.npz"))
    block.write_bytes(block.read_bytes()[:200])
    run = FakeRun(tmp_path)
    build(run, tmp_path / "index", images)
    assert len(run.embedded) == 5
    check(tmp_path / "index", run, images)


def test_a_reader_of_the_old_generation_is_not_disturbed(tmp_path, images):
    run = FakeRun(tmp_path)
    build(run, tmp_path / "index", images)
    searcher = Searcher.open(tmp_path / "index", run)
    before = searcher.search("a dog", 7), [searcher.thumbnail(image) for image in searcher.index.ids]
    for number in range(5):
        paint(images / f"{number}.png", 100 + number)
    build(run, tmp_path / "index", images)
    assert (searcher.search("a dog", 7), [searcher.thumbnail(image) for image in searcher.index.ids]) == before
    assert Searcher.open(tmp_path / "index", run).search("a dog", 7) != before[0]


def test_opening_during_a_change_of_generation_tries_again(tmp_path, images, monkeypatch):
    run = FakeRun(tmp_path)
    build(run, tmp_path / "index", images)
    opened: Any = vars(Index)["_open"].__func__

    def overtaken(cls, folder, meta, *more):
        if meta.generation == 1:
            paint(images / "new.png", 12)
            build(run, tmp_path / "index", images)
        return opened(cls, folder, meta, *more)

    old = index.Meta.read(tmp_path / "index")
    reads = iter([old])
    read = index.Meta.read
    monkeypatch.setattr(index.Meta, "read", lambda folder: next(reads, None) or read(folder))
    monkeypatch.setattr(indexing, "check_run", lambda *args: False)
    monkeypatch.setattr(Index, "_open", classmethod(overtaken))
    assert len(Index.open(tmp_path / "index")) == 8


def test_an_id_runs_through_a_link_only_where_there_is_no_other_way(tmp_path, images):
    paint(tmp_path / "elsewhere/deep/9.png", 9)
    paint(tmp_path / "elsewhere/10.png", 10)
    (images / "a_link").symlink_to(images / "more")
    (images / "b_link").symlink_to(tmp_path / "elsewhere")
    (images / "more/c_link").symlink_to(tmp_path / "elsewhere/deep")
    (tmp_path / "all").symlink_to(images)
    ids = sorted([*(f"{number}.png" for number in range(5)), "more/5.PNG", "more/deep/6.png"])
    ids = sorted([*ids, "b_link/10.png", "b_link/deep/9.png"])
    for number, named in enumerate(([images], [tmp_path / "all"], [images, tmp_path / "all", images / "more"])):
        assert counts(build(FakeRun(tmp_path), tmp_path / f"{number}.index", *named)) == (9, 0, 0, 0, 0)
        assert list(Index.open(tmp_path / f"{number}.index").ids) == ids


def test_a_heic_without_its_package_is_named_and_counted(tmp_path, images, monkeypatch):
    (images / "phone.heic").write_bytes(b"\0\0\0\x1cftypheic\0\0\0\0mif1heic")
    monkeypatch.setattr(decode, "formats", lambda: ("JPEG", "PNG"))
    built = build(FakeRun(tmp_path), tmp_path / "index", images)
    assert counts(built) == (7, 0, 0, 0, 0)
    assert "cannot be read: phone.heic: HEIF, which needs a package: pip install pillow-heif" in built.lines()
    assert any(line.startswith("1 image that cannot be read left out") for line in built.lines())


def test_unreadable_images_are_named_left_out_and_tried_again(tmp_path, images):
    run = FakeRun(tmp_path)
    good = (images / "2.png").read_bytes()
    (images / "2.png").write_bytes(good[:60])
    (images / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(images / "pipe.png")
    built = build(run, tmp_path / "index", images)
    assert counts(built) == (6, 0, 0, 0, 0)
    assert {image for image, _ in built.unreadable} == {"2.png", "gone.png", "pipe.png"}
    assert all(reason for _, reason in built.unreadable)
    (images / "2.png").write_bytes(good)
    built = build(run, tmp_path / "index", images)
    assert counts(built) == (1, 0, 0, 0, 6)
    (images / "3.png").write_bytes(b"damaged now")
    built = build(run, tmp_path / "index", images)
    assert counts(built) == (0, 0, 0, 1, 6)
    shutil.rmtree(images)
    (images / "only").mkdir(parents=True)
    (images / "only/a.png").write_text("no image")
    with pytest.raises(BadInput, match="none of its images can be read"):
        build(run, tmp_path / "index", images, fresh=True)
    assert len(Index.open(tmp_path / "index")) == 6, "the old index is there still"


def test_another_run_is_refused_until_fresh(tmp_path, images, monkeypatch):
    build(FakeRun(tmp_path), tmp_path / "index", images)
    with pytest.raises(BadInput, match=r"is the index of another run .* with `fresh`, or name another folder"):
        build(FakeRun(tmp_path, name="other"), tmp_path / "index", images)
    monkeypatch.setattr(indexing, "ROWS_PER_BLOCK", 2)
    with pytest.raises(KeyboardInterrupt):
        build(FakeRun(tmp_path, name="other", stop_after=5), tmp_path / "index", images, fresh=True)
    other = FakeRun(tmp_path, name="other")
    assert len(build(other, tmp_path / "index", images).unreadable) == 0, "it continues without `fresh`"
    assert len(other.embedded) == 3
    assert Index.open(tmp_path / "index").meta.digest == other.digest()
    build(other, tmp_path / "index", images, fresh=True)
    assert len(other.embedded) == 10
    check(tmp_path / "index", other, images)


def test_folders_that_are_no_index(tmp_path, images):
    run = FakeRun(tmp_path)
    with pytest.raises(BadInput, match=r"holds other files, such as 0\.png"):
        build(run, images, images)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / META).write_text("{}")
    with pytest.raises(BadInput, match=r"not the meta\.json of an index"):
        build(run, tmp_path / "foreign", images)
    for named, sentence in (("nowhere", "no such file or folder"), ("index", "no image found")):
        (tmp_path / "index").mkdir(exist_ok=True)
        with pytest.raises(BadInput, match=sentence):
            build(run, tmp_path / "out", tmp_path / named)
    assert not (tmp_path / "out").exists()


def test_nothing_is_deleted_or_written_through_a_link(tmp_path, images):
    run = FakeRun(tmp_path)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "block-000000.npz").write_text("precious")
    build(run, tmp_path / "index", images)
    (tmp_path / "index/part-0123").symlink_to(precious)
    (tmp_path / "index/.embeddings-000099.npy.0.tmp").write_text("of a build that was killed")
    (tmp_path / "index/.foreign.tmp").write_text("not ours")
    (tmp_path / "index/ids-000099.bin").symlink_to(precious / "block-000000.npz")
    paint(images / "new.png", 12)
    build(run, tmp_path / "index", images)
    assert [path.name for path in precious.iterdir()] == ["block-000000.npz"]
    (tmp_path / "index/.foreign.tmp").unlink()
    check(tmp_path / "index", run, images)
    (tmp_path / f"index/part-{run.digest()}").symlink_to(precious)
    paint(images / "new.png", 13)
    for fresh in (False, True):
        with pytest.raises(BadInput, match=r"part-.*: is a symbolic link"):
            build(run, tmp_path / "index", images, fresh=fresh)
    assert (precious / "block-000000.npz").read_text() == "precious"
    assert [path.name for path in precious.iterdir()] == ["block-000000.npz"]


def test_the_blocks_of_another_run_go_whole(tmp_path, images):
    run = FakeRun(tmp_path)
    build(run, tmp_path / "index", images)
    (tmp_path / "index/part-0123/deep").mkdir(parents=True)
    (tmp_path / "index/part-0123/deep/file").write_text("of another run")
    build(run, tmp_path / "index", images)
    assert not (tmp_path / "index/part-0123").exists()


def test_two_programs_do_not_build_one_index(tmp_path, images):
    (tmp_path / "index").mkdir()
    with lock_folder(tmp_path / "index"), pytest.raises(BadInput, match=r"index: process \d+ .* is at work in it"):
        build(FakeRun(tmp_path), tmp_path / "index", images)


@pytest.mark.parametrize("name", ["embeddings", "ids", "files", "pack"])
def test_a_damaged_index_says_so(tmp_path, images, name):
    build(FakeRun(tmp_path), tmp_path / "index", images)
    (file,) = (tmp_path / "index").glob(f"{name}-*")
    whole = file.read_bytes()
    if name != "pack":
        file.write_bytes(whole[: len(whole) - 3])
        with pytest.raises(BadInput, match=r"damaged .* and `fresh`"):
            Index.open(tmp_path / "index")
    file.unlink()
    with pytest.raises(BadInput, match=r"damaged .* and `fresh`"):
        Index.open(tmp_path / "index")


def test_packs_that_are_mostly_waste_are_written_again(tmp_path, images):
    run = FakeRun(tmp_path)
    build(run, tmp_path / "index", images)
    for number in range(2):
        paint(images / f"{number}.png", 50 + number)
    build(run, tmp_path / "index", images)
    assert len(Index.open(tmp_path / "index").packs) == 2, "what is there stays where it is"
    for number in range(4):
        paint(images / f"{number}.png", 60 + number)
    build(run, tmp_path / "index", images)
    assert len(Index.open(tmp_path / "index").packs) == 1
    check(tmp_path / "index", run, images)


def test_many_packs_become_one(tmp_path, images, monkeypatch):
    monkeypatch.setattr(indexing, "MAX_PACKS", 2)
    run = FakeRun(tmp_path)
    for number in range(4):
        paint(images / f"new{number}.png", 70 + number)
        build(run, tmp_path / "index", images)
        assert len(Index.open(tmp_path / "index").packs) <= 3
    check(tmp_path / "index", run, images)


def test_unusual_names(tmp_path):
    names = ["a\nb.png", "ü 犬 😀.png", "-k.png", os.fsdecode(b"\xff\xfe.png"), "quote'\".png", "%s{}.png"]
    for number, name in enumerate(names):
        paint(tmp_path / "images" / name, number)
    run = FakeRun(tmp_path)
    build(run, tmp_path / "index", tmp_path / "images")
    found = check(tmp_path / "index", run, tmp_path / "images")
    assert sorted(found.ids) == sorted(names)
    assert all(found.row_of(name) is not None for name in names)


def test_ids_of_several_folders_and_files(tmp_path):
    for place in ("one/a.png", "one/b.png", "two/a.png", "two/in/c.png"):
        paint(tmp_path / place, len(place))
    source = gather(
        [tmp_path / "one", tmp_path / "two", tmp_path / "two/in", tmp_path / "one/b.png"], FakeRun(tmp_path)
    )
    both = [str(tmp_path / "one/a.png"), str(tmp_path / "two/a.png")]
    assert sorted(entry.id for entry in source.entries) == sorted([*both, "b.png", "in/c.png"])


def test_a_prepared_folder_comes_with_its_features(tmp_path):
    run = FakeRun(tmp_path)
    folder = run.prepare(tmp_path, 10)
    built = build(run, tmp_path / "index", folder)
    assert counts(built) == (10, 0, 0, 0, 0)
    assert run.embedded == [], "no image was embedded"
    found = Index.open(tmp_path / "index")
    store = gather([folder], run).features
    assert store is not None
    np.testing.assert_array_equal(found.embeddings, run.embed_features(store.read(list(found.ids))))
    assert found.thumbnail(0) == small_jpeg(tmp_path / "images/0.png")
    assert counts(build(run, tmp_path / "index", folder)) == (0, 0, 0, 0, 10)
    with pytest.raises(BadInput, match="is indexed by itself"):
        build(run, tmp_path / "other", folder, tmp_path / "images")
    # features of other weights: the images are read
    other = FakeRun(tmp_path, name="other")
    other.prepare(tmp_path, 10, digest="d2")
    built = build(other, tmp_path / "other", folder)
    assert "has not the features that the run was trained on" in built.notes[0]
    assert len(other.embedded) == 10
    assert list(Index.open(tmp_path / "other").known)[:1] == ["picture 0 of a dog"]


def test_an_index_of_other_images_is_not_replaced(tmp_path, images):
    run, folder = FakeRun(tmp_path), tmp_path / "index"
    build(run, folder, images)
    (tmp_path / "others" / "deep").mkdir(parents=True)
    names = list(Index.open(folder).ids)
    for number, name in enumerate(names, 100):  # the same ids, but other pictures at another place
        (tmp_path / "others" / name).parent.mkdir(parents=True, exist_ok=True)
        paint(tmp_path / "others" / name, number)
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    with pytest.raises(BadInput, match=f"is the index of {len(names)} other images, such as {names[0]}; name another"):
        build(run, folder, tmp_path / "others")
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} == before
    paint(tmp_path / "others" / "mine.png", 0)
    (tmp_path / "others" / "mine.png").write_bytes((images / names[0]).read_bytes())
    assert build(run, folder, tmp_path / "others").images == len(names) + 1, "one picture in common: it has moved"
    for number, name in enumerate(names, 200):
        paint(tmp_path / "others" / name, number)
    (tmp_path / "others" / "mine.png").unlink()
    assert build(run, folder, tmp_path / "others").changed == len(names), "all pictures are new, their places are not"
    assert build(run, folder, images, fresh=True).new == len(names)


def test_captions_are_embedded_again_only_where_they_differ(tmp_path, images):
    run = FakeRun(tmp_path)
    file = tmp_path / "captions.txt"
    file.write_text("a dog\na cat\n")
    built = build(run, tmp_path / "index", images, captions=file)
    assert built.captions == 2
    before = Index.open(tmp_path / "index").meta.files
    paint(images / "new.png", 12)
    build(run, tmp_path / "index", images, captions=file)
    after = Index.open(tmp_path / "index").meta.files
    assert {before[name] == after[name] for name in ("captions", "caption_embeddings")} == {True}
    file.write_text("a dog\na red cat\n")
    build(run, tmp_path / "index", images, captions=file)
    found = Index.open(tmp_path / "index")
    assert list(found.captions) == ["a dog", "a red cat"]
    np.testing.assert_array_equal(found.caption_embeddings, run.embed_sentences(["a dog", "a red cat"]))
    built = build(run, tmp_path / "index", images)
    assert built.captions == 0
    assert len(Index.open(tmp_path / "index").captions) == 0
    file.write_text(" \n")
    with pytest.raises(BadInput, match="holds no caption"):
        build(run, tmp_path / "index", images, captions=file)


def test_a_million_images_open_in_under_a_second(tmp_path):
    count, dim = 1_000_000, 4
    files = {column: index.file_name(column, 1) for column in ("embeddings", "ids", "paths", "files")}
    index.write_rows(tmp_path / files["embeddings"], (count, dim), [np.ones((count, dim), np.float32)])
    for column in ("ids", "paths"):
        write_strings(tmp_path / files[column], [f"{row:07d}.jpg" for row in range(count)])
    index.write_array(tmp_path / files["files"], np.zeros(count, index.ROW))
    about: dict[str, Any] = dict.fromkeys(("run", "digest", "captions_from", "captions_digest", "known_digest"), "")
    about |= {"generation": 1, "similarity": "cosine", "dim": dim, "images": count, "captions": 0}
    index.Meta(files=files, packs=[], **about).write(tmp_path)
    began = time.perf_counter()
    opened = Index.open(tmp_path)
    assert opened.row_of("0765432.jpg") == 765432
    assert time.perf_counter() - began < 1
    for array in (opened.embeddings, opened.rows):
        assert isinstance(array.base, np.memmap), "nothing that grows with images is read"
