"""An index that is searched in Milvus, by milvus-lite: built, brought up to date, moved, and opened by strangers."""

import json
import sys
from typing import Any

import pytest

from retrieval import milvus
from retrieval.build import build_index
from retrieval.index import META, Index
from retrieval.milvus import Collection
from retrieval.searcher import Searcher
from tests.helpers import FakeRun, paint
from utils import BadInput


@pytest.fixture
def images(tmp_path):
    for number in range(30):
        paint(tmp_path / "images" / f"{number:02d}.png", number)
    return tmp_path / "images"


def build(run, sources, folder, **options):
    """Build an index; what it says of its approximate search."""
    approximate = build_index(run, sources, folder, **options).approximate
    assert approximate is not None
    return approximate


def collections(url):
    return Collection(url, f"images_{0:016x}").client.list_collections()


def test_an_index_in_milvus_is_kept_up_to_date(tmp_path, images, monkeypatch):
    pytest.importorskip("milvus_lite")
    run, url, folder = FakeRun(tmp_path, "cosine"), str(tmp_path / "vectors.db"), tmp_path / "index"
    monkeypatch.delenv(milvus.ADDRESS, raising=False)
    about = build(run, [images], folder, index_url=url)
    assert about["search"] == "milvus"
    assert about["recall@10"] == 1
    assert collections(url) == [about["collection"]]
    assert url not in (folder / META).read_text(), "who is given the folder connects to nowhere"
    client = Collection(url, about["collection"]).client
    client.release_collection(about["collection"])  # as it is for a process that starts
    exact = Searcher.open(folder, run, exact=True)
    assert Searcher.open(folder, run, index_url=url).search("a dog", 40) == exact.search("a dog", 40)
    for call in (lambda: Searcher.open(folder, run), lambda: build_index(run, [images], folder)):
        with pytest.raises(BadInput, match=r"is searched in Milvus \(collection images_.*say where that is"):
            call()
    with pytest.raises(BadInput, match="no such file"):
        Searcher.open(folder, run, index_url=str(tmp_path / "other.db"))
    assert not (tmp_path / "other.db").exists()
    monkeypatch.setenv(milvus.ADDRESS, url)
    assert build(run, [images], folder) == about, "nothing has changed"
    paint(images / "new.png", 77)
    grown = build(run, [images], folder)
    assert collections(url) == [grown["collection"]] != [about["collection"]]
    assert len(Searcher.open(folder, run).search("a dog", 40)) == 31
    Collection(url, grown["collection"]).drop()
    with pytest.raises(BadInput, match=r"has no collection images_.* of the 31 rows"):
        Index.open(folder)
    again = build(run, [images], folder)
    assert collections(url) == [again["collection"]]
    anew = build(run, [images], folder, fresh=True, index_url=url)
    assert collections(url) == [anew["collection"]]
    monkeypatch.delenv(milvus.ADDRESS)
    assert build_index(run, [images], folder, search="exact").approximate is None
    assert Searcher.open(folder, run).search("a dog", 3) == exact.search("a dog", 3)


def test_what_a_killed_build_left_is_dropped(tmp_path, images, monkeypatch):
    pytest.importorskip("milvus_lite")
    run, url = FakeRun(tmp_path, "cosine"), str(tmp_path / "vectors.db")

    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(milvus, "tuned", kill)
        with pytest.raises(KeyboardInterrupt):
            build_index(run, [images], tmp_path / "index", index_url=url)
    (left,) = collections(url)
    about = build(run, [images], tmp_path / "index", index_url=url)
    assert collections(url) == [about["collection"]] != [left]


def test_what_is_no_milvus_is_said_before_the_work(tmp_path, images, monkeypatch):
    pytest.importorskip("pymilvus")
    folder = tmp_path / "index"
    bad: list[tuple[dict[str, Any], str]] = [
        ({"index_url": "http://me:secret@127.0.0.1:1"}, r"`index_url` http://127.0.0.1:1: .*see that this is Milvus"),
        ({"index_url": "x.db", "search": "hnsw"}, "leave one of the two out"),
    ]
    for options, said in bad:
        with pytest.raises(BadInput, match=said):
            build_index(FakeRun(tmp_path, "cosine"), [images], folder, **options)
    with pytest.raises(BadInput, match="order similarity is no inner product"):
        build_index(FakeRun(tmp_path, "order"), [images], folder, index_url="x.db")
    with pytest.raises(BadInput, match="no collection of an index"):
        Collection("x.db", "customers")
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(BadInput, match="pip install pymilvus"):
        build_index(FakeRun(tmp_path, "cosine"), [images], folder, index_url="x.db")
    assert not folder.exists()


def test_a_stranger_s_index_names_no_server(tmp_path, images, monkeypatch):
    """Whatever meta.json says, nothing is asked of an address that the user has not given."""
    run, folder = FakeRun(tmp_path, "cosine"), tmp_path / "index"
    monkeypatch.delenv(milvus.ADDRESS, raising=False)
    build_index(run, [images], folder)
    meta = json.loads((folder / META).read_text())
    address = "http://stranger:19530"
    meta["approximate"] = {"search": "milvus", "collection": "images_0123456789abcdef", "effort": 16, "url": address}
    (folder / META).write_text(json.dumps(meta))
    monkeypatch.setattr(milvus, "Collection", pytest.fail)
    with pytest.raises(BadInput, match="say where that is"):
        Searcher.open(folder, run)
