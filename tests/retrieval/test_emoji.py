"""Emoji: which ones there are, what a run makes of their names, the ranking, the map and the sheet; and embed."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage
from PIL import ImageChops

import search
from features.text.vocabulary import tokenize
from retrieval import commands, emoji_map
from retrieval.emoji import Emoji, EmojiSpace, all_emoji, embed_emoji, rank_emoji
from retrieval.emoji_map import EmojiFont, find_emoji_font, free_cells, make_map, map_page, project
from script import run_script
from training.run import known_sentences
from utils import BadInput

pytest.importorskip("emoji")
WORDS = "a photo of dog dogs cat face red heart heart car soccer ball fire truck house flag boy girl running sun tree"


class FakeRun:
    """A run whose sentences are sums of the random vectors of the words it knows; images are rows of its own."""

    def __init__(self, similarity, words, dim=16):
        rng = np.random.default_rng(0)
        self.folder = Path("runs/fake<run>")
        self.settings = SimpleNamespace(similarity=similarity, dim=dim)
        self.vectors = {word: rng.normal(size=dim) for word in words.split()}
        self.images = rng.normal(size=(9, dim))

    def _rows(self, rows):
        rows = np.asarray(rows, np.float32)
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return np.abs(rows) if self.settings.similarity == "order" else rows

    def knows(self, sentence):
        return any(word in self.vectors for word in tokenize(sentence))

    def embed_sentences(self, sentences):
        texts = known_sentences(sentences, self.knows)
        known = [[self.vectors[word] for word in tokenize(text) if word in self.vectors] for text in texts]
        return self._rows([np.sum(vectors, axis=0) for vectors in known])

    def embed_images(self, paths):
        for path in paths:
            try:
                PILImage.open(path).verify()
            except OSError:
                raise BadInput(f"{path}: cannot be read; mend it, or leave it out") from None
        return self._rows(self.images[: len(paths)])


def fake_run(similarity: str = "cosine", words: str = WORDS) -> Any:
    return FakeRun(similarity, words)


@pytest.fixture(params=["cosine", "order"])
def run(request):
    return fake_run(request.param)


@pytest.fixture
def images(tmp_path):
    paths = [tmp_path / f"{name}.png" for name in ("one", "two", "three")]
    for number, path in enumerate(paths):
        PILImage.new("RGB", (60 + 90 * number, 90), (250, 80 * number, 30)).save(path)
    return paths


@pytest.fixture
def call(monkeypatch, capsys):
    """Run search.py as the command line would, on a fake run; returns the status, stdout and stderr."""

    def call_search(*args, run=None):
        monkeypatch.setattr(sys, "argv", ["search.py", *map(str, args)])
        monkeypatch.setattr(commands, "open_run", lambda *_: run or fake_run())
        status = 0
        try:
            run_script(search.main)
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    return call_search


def needs_font():
    try:
        find_emoji_font()
    except BadInput:
        return pytest.mark.skip("Noto Color Emoji is not installed")
    return lambda test: test


# Which emoji there are


def test_fully_qualified_in_one_skin_tone_and_no_components():
    all_names = {emoji.text: emoji for emoji in all_emoji()}
    assert len(all_names) == len(all_emoji()) > 1800
    assert not any(0x1F3FB <= ord(character) <= 0x1F3FF for text in all_names for character in text)
    assert "\u2764\ufe0f" in all_names
    assert "\u2764" not in all_names, "without its selector it is not fully qualified"
    assert "\N{EMOJI COMPONENT RED HAIR}" not in all_names


def test_names_and_aliases_are_words():
    all_names = {emoji.text: emoji.names for emoji in all_emoji()}
    assert all_names["\u2764\ufe0f"] == ("red heart", "heart")
    assert all_names["\N{DOG FACE}"] == ("dog face", "dog")
    assert all_names["\N{DOG}"] == ("dog",), "dog2 is a dog"
    assert all_names["\U0001f1e9\U0001f1ea"] == ("Germany", "flag for Germany"), "de is a code"
    assert all_names["\N{THUMBS DOWN SIGN}"] == ("thumbs down", "thumbsdown"), "-1 is no name"
    for names in all_names.values():
        assert len({name.casefold() for name in names}) == len(names)
        assert not any(set(name) & set(":_’") for name in names)
        assert all(name == " ".join(name.split()) != "" for name in names)


def test_the_package_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "emoji", None)
    with pytest.raises(BadInput, match=r"pip install -r requirements-search\.txt"):
        all_emoji()


# What a run makes of their names


def test_an_embedding_is_the_mean_of_known_names(run):
    space = embed_emoji(run)
    rows = {emoji.text: row for row, emoji in enumerate(space.emoji)}
    assert space.embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(space.embeddings, axis=1), 1, atol=1e-5)
    assert run.settings.similarity == "cosine" or space.embeddings.min() >= 0

    both = run.embed_sentences(["dog face", "dog"]).mean(axis=0)
    np.testing.assert_allclose(space.embeddings[rows["\N{DOG FACE}"]], both / np.linalg.norm(both), atol=1e-6)
    dog = run.embed_sentences(["dog"])[0]
    np.testing.assert_allclose(space.embeddings[rows["\N{DOG}"]], dog, atol=1e-6)


def test_an_alias_alone_makes_an_emoji_known():
    space = embed_emoji(fake_run(words="soccer"))
    assert [emoji.name for emoji in space.emoji] == ["soccer ball"]
    run = fake_run(words="cupid")
    (alone,) = embed_emoji(run).emoji
    assert alone.name == "heart with arrow"
    np.testing.assert_allclose(embed_emoji(run).embeddings, run.embed_sentences(["cupid"]), atol=1e-6)


def test_those_without_a_known_word_are_left_out_and_counted(run):
    space = embed_emoji(run)
    known = [
        emoji
        for emoji in all_emoji()
        if any(set(tokenize(name.removeprefix("flag for "))) & set(run.vectors) for name in emoji.names)
    ]
    assert space.emoji == known
    assert space.left_out == len(all_emoji()) - len(known) > 0
    assert str(space) == f"{len(all_emoji()):,} emoji, {space.left_out:,} without a known word left out"
    assert "Germany" not in [emoji.name for emoji in known], "'flag for' says nothing of Germany"
    assert "pirate flag" in [emoji.name for emoji in known]


def test_the_prompts_own_words_make_nothing_known():
    run = fake_run()
    plain, prompted = embed_emoji(run), embed_emoji(run, "a photo of {}")
    assert plain.emoji == prompted.emoji
    row = [emoji.name for emoji in plain.emoji].index("dog")
    expected = run.embed_sentences(["a photo of dog"])[0]
    np.testing.assert_allclose(prompted.embeddings[row], expected, atol=1e-6)
    with pytest.raises(BadInput, match="`prompt`"):
        embed_emoji(run, "a photo of {name}")


def test_a_run_that_knows_no_word_of_any_name():
    with pytest.raises(BadInput, match="knows no word"):
        embed_emoji(fake_run(words="qqxz"))


# The ranking


def test_ranking_against_a_plain_loop(run):
    space = embed_emoji(run)
    images = run._rows(run.images)
    for image, hits in zip(images, rank_emoji(space, images, run.settings.similarity, 7), strict=True):
        scores = []
        for emoji in space.embeddings:
            if run.settings.similarity == "order":
                scores.append(-sum(max(0.0, float(e) - float(i)) ** 2 for e, i in zip(emoji, image, strict=True)))
            else:
                scores.append(sum(float(e) * float(i) for e, i in zip(emoji, image, strict=True)))
        assert [hit.rank for hit in hits] == list(range(1, 8))
        np.testing.assert_allclose([hit.score for hit in hits], sorted(scores, reverse=True)[:7], atol=1e-5)
        for hit in hits:
            assert abs(scores[space.emoji.index(hit.emoji)] - hit.score) < 1e-5


def test_equal_scores_stand_in_the_emojis_own_order():
    space = EmojiSpace([Emoji(text, (text,)) for text in "abc"], np.ones((3, 4), np.float32) / 2, 0)
    (hits,) = rank_emoji(space, np.ones((1, 4), np.float32) / 2, "cosine", 10)
    assert [hit.emoji.text for hit in hits] == ["a", "b", "c"], "and there are only three"


def test_emoji_prints_a_table_and_jsonl(call, images):
    status, out, err = call("emoji", "--run", "RUN", "-k", 3, *images[:2])
    assert status == 0
    assert re.fullmatch(r"1,\d{3} emoji, 1,\d{3} without a known word left out\n", err)
    blocks = out.strip().split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == [str(path) for path in images[:2]]
    assert all(len(block.splitlines()) == 5 for block in blocks)

    status, jsonl, _ = call("emoji", "--run", "RUN", *images[:2], "-k", 3, "--format", "jsonl")
    rows = [json.loads(line) for line in jsonl.splitlines()]
    assert [row["rank"] for row in rows] == [1, 2, 3] * 2
    assert set(rows[0]) == {"image", "rank", "score", "emoji", "name"}
    assert f"{rows[0]['score']:.3f}  {rows[0]['emoji']}     {rows[0]['name']}" in out
    assert call("emoji", "--run", "RUN", *images[:2], "-k", 3, "--format", "jsonl")[1] == jsonl, "the same again"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "emoji: no image"),
        (["--sheet", "s.png"], "emoji: no image"),
        (["one.png", "-k", "0"], "-k 0"),
        (["one.png", "--prompt", "a photo"], "--prompt 'a photo'"),
        (["gone.png"], "gone.png: cannot be read"),
        (["--map", "map.svg"], "--map map.svg"),
        (["--map", "map.html", "--max-emoji", "2"], "--max-emoji 2"),
        (["one.png", "--sheet", "sheet.jpg"], "--sheet sheet.jpg"),
    ],
)
def test_bad_input_of_emoji(call, images, monkeypatch, args, message):
    monkeypatch.chdir(images[0].parent)
    before = sorted(Path().iterdir())
    status, out, err = call("emoji", "--run", "RUN", *args)
    assert (status, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert sorted(Path().iterdir()) == before, "nothing is left behind"


# The map and the sheet


def test_every_emoji_has_a_cell_of_its_own():
    points = np.random.default_rng(0).normal(size=(200, 2))
    points[:50] = 0
    cells, columns, rows = free_cells(points)
    assert len({tuple(cell) for cell in cells.tolist()}) == 200
    assert cells.min() >= 0
    assert (cells.max(axis=0) < (columns, rows)).all()
    far = np.array([[0, 0], [10, 0], [0, 10], [10, 10.0]])
    cells, columns, rows = free_cells(far)
    assert cells.tolist() == [[0, 0], [columns - 1, 0], [0, rows - 1], [columns - 1, rows - 1]]


@pytest.mark.parametrize("projection", ["pca", "tsne"])
@pytest.mark.parametrize("count", [3, 40])
def test_a_projection_is_the_same_every_time(projection, count):
    embeddings = np.random.default_rng(0).normal(size=(count, 8)).astype(np.float32)
    points = project(embeddings, projection)
    assert points.shape == (count, 2)
    assert np.isfinite(points).all()
    np.testing.assert_array_equal(points, project(embeddings, projection))


def test_a_collapsed_run_has_a_map_too():
    space = EmojiSpace([Emoji(text, (text,)) for text in "abcdef"], np.ones((6, 4), np.float32) / 2, 0)
    for projection in ("pca", "tsne"):
        cells = make_map(space, "run", projection).cells
        assert len({tuple(cell) for cell in cells.tolist()}) == 6


def test_neighbors_stay_neighbors():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.eye(3, 8), 12, axis=0) + 0.05 * rng.normal(size=(36, 8))
    space = EmojiSpace([Emoji(str(i), (str(i),)) for i in range(36)], groups.astype(np.float32), 0)
    for projection in ("pca", "tsne"):
        cells = make_map(space, "run", projection).cells
        distances = np.abs(cells[:, None] - cells[None]).sum(axis=2) + 1000 * np.eye(36, dtype=int)
        nearest = distances.argmin(axis=1)
        assert (nearest // 12 == np.arange(36) // 12).mean() > 0.8


def test_most_takes_from_the_whole_list_and_says_so():
    space = embed_emoji(fake_run())
    drawn = make_map(space, "run", "pca", max_emoji=10)
    names = [emoji.name for emoji in drawn.space.emoji]
    assert len(names) == len(set(names)) == 10
    assert (names[0], names[-1]) == (space.emoji[0].name, space.emoji[-1].name)
    assert f"{len(space.emoji) - 10:,} beyond the 10 asked for" in drawn.caption
    assert "10 emoji" in drawn.caption
    assert "PCA" in drawn.caption
    few = EmojiSpace(space.emoji[:2], space.embeddings[:2], 0)
    with pytest.raises(BadInput, match="knows 2 emoji"):
        make_map(few, "run")


def test_the_page_escapes_names_and_asks_no_host():
    evil = '<script>alert("1")</script> & <b>'
    space = EmojiSpace([Emoji(text, (evil,)) for text in "abc"], np.eye(3, dtype=np.float32), 0)
    page = map_page(make_map(space, evil, "pca"))
    assert page.startswith("<!DOCTYPE html>")
    assert "<script" not in page
    assert "<b>" not in page
    assert page.count("&lt;script&gt;alert(&#34;1&#34;)") == 7, "three titles, three labels, one caption"
    assert not re.search(r"https?:|url\(|@import|src=|href=| on\w+=", page)
    assert "default-src 'none'" in page
    assert "Segoe UI Emoji" in page


def test_map_as_a_page_through_the_script_needs_no_font(call, tmp_path, monkeypatch):
    def missing():
        raise BadInput("no font")

    monkeypatch.setattr(emoji_map, "find_emoji_font", missing)
    path = tmp_path / "new" / "map.html"
    status, out, err = call("emoji", "--run", "RUN", "--map", path, "--projection", "pca")
    assert (status, out) == (0, "")
    assert "emoji out by pca" in err
    assert f"wrote {path}\n" in err
    page = path.read_text(encoding="utf-8")
    space = embed_emoji(fake_run())
    assert page.count('<span role="img"') == len(space.emoji)
    assert 'title="soccer ball"' in page
    assert "fake&lt;run&gt;" in page
    call("emoji", "--run", "RUN", "--map", path, "--projection", "pca")
    assert path.read_text(encoding="utf-8") == page


@pytest.mark.parametrize("args", [["--map", "map.png"], ["one.png", "--sheet", "sheet.png"]])
def test_without_the_font_an_image_is_refused_before_any_work(call, images, monkeypatch, args):
    monkeypatch.chdir(images[0].parent)
    monkeypatch.setattr(emoji_map, "FONT_FOLDERS", ())
    monkeypatch.setattr(emoji_map.shutil, "which", lambda _: None)
    monkeypatch.setattr(FakeRun, "knows", None)  # would end in a traceback
    status, _, err = call("emoji", "--run", "RUN", *args)
    assert status == 2
    assert "fonts-noto-color-emoji" in err
    assert len(err.splitlines()) == 1


def test_another_font_that_fontconfig_offers_is_not_taken(monkeypatch, tmp_path):
    other = tmp_path / "DejaVuSans.ttf"
    other.touch()
    monkeypatch.setattr(emoji_map, "FONT_FOLDERS", ())
    monkeypatch.setattr(emoji_map.shutil, "which", lambda _: "fc-match")
    monkeypatch.setattr(emoji_map.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=str(other)))
    with pytest.raises(BadInput, match="fonts-noto-color-emoji"):
        find_emoji_font()
    right = tmp_path / "NotoColorEmoji-empty.ttf"
    right.touch()
    monkeypatch.setattr(emoji_map.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=str(right)))
    assert find_emoji_font() == right
    with pytest.raises(BadInput, match="Pillow cannot render it"):
        EmojiFont()


@needs_font()
def test_tiles_are_in_color_and_what_has_no_glyph_is_none():
    font = EmojiFont()
    tile = font.tile("\N{FIRE}")
    assert tile is not None
    assert tile.mode == "RGBA"
    assert tile.width == tile.height
    red, _, blue, alpha = np.asarray(tile).reshape(-1, 4).T.astype(int)
    assert (red[alpha > 0] - blue[alpha > 0]).mean() > 50
    assert font.tile("\N{FIRE}") is tile, "drawn once"
    assert font.tile("\U0010fffd") is None
    assert font.tile("\N{FIRE}\N{FIRE}") is None, "two of them are not one"


@needs_font()
@pytest.mark.parametrize("raqm", [True, False])
def test_sequences_are_one_image_or_left_out(monkeypatch, raqm):
    if raqm and not emoji_map.features.check("raqm"):
        pytest.skip("this Pillow has no Raqm")
    monkeypatch.setattr(emoji_map.features, "check", lambda _: raqm)
    font = EmojiFont()
    assert font.tile("\u2764\ufe0f") is not None, "a selector is no character of its own"
    for sequence in ("\U0001f1e9\U0001f1ea", "\N{WOMAN}\u200d\N{ROCKET}"):
        assert (font.tile(sequence) is not None) == raqm


@needs_font()
def test_map_as_png_shows_every_emoji(call, tmp_path):
    path = tmp_path / "map.png"
    status, _, _ = call("emoji", "--run", "RUN", "--map", path, "--projection", "pca", "--max-emoji", 40)
    assert status == 0
    font = EmojiFont()
    drawn = make_map(embed_emoji(fake_run()), "run", "pca", 40, font)
    assert len(drawn.space.emoji) == 40
    with PILImage.open(path) as opened:
        image = opened.convert("RGB")
    full = emoji_map.map_image(drawn, font)
    nothing = EmojiSpace([], np.empty((0, 16)), 0)
    empty = emoji_map.map_image(replace(drawn, space=nothing, cells=drawn.cells[:0]), font)
    assert abs(image.width - full.width) < 2
    changed = np.asarray(ImageChops.difference(full, empty)).any(axis=2)
    cell = int(np.clip(emoji_map.MAP_PIXELS // drawn.columns, emoji_map.MIN_CELL_PIXELS, emoji_map.MAX_CELL_PIXELS))
    ys, xs = np.nonzero(changed)
    assert len({(y // cell, x // cell) for y, x in zip(ys - ys.min(), xs - xs.min(), strict=True)}) >= 40
    before = path.read_bytes()
    call("emoji", "--run", "RUN", "--map", path, "--projection", "pca", "--max-emoji", 40)
    assert path.read_bytes() == before


@needs_font()
def test_sheet_holds_every_image_and_its_emoji(call, images, tmp_path):
    path = tmp_path / "sheet.png"
    status, out, err = call("emoji", "--run", "RUN", *images, "-k", 7, "--sheet", path)
    assert status == 0
    assert f"wrote {path}\n" in err
    assert len(out.split("\n\n")) == 3
    with PILImage.open(path) as opened:
        sheet = np.asarray(opened.convert("RGB"))
    for number in range(3):
        of_image = (sheet == (250, 80 * number, 30)).all(axis=2)
        assert of_image.sum() > 1000
        left = 24 + number * (emoji_map.SHEET_IMAGE_PIXELS[0] + 24)
        assert np.flatnonzero(of_image.any(axis=0))[0] == left, "above its name and its emoji"


# embed


@pytest.mark.parametrize("similarity", ["cosine", "order"])
def test_embed_writes_float32_rows(call, images, tmp_path, similarity):
    run = fake_run(similarity)
    out = tmp_path / "new" / "rows.npy"
    status, said, _ = call("embed", "--run", "RUN", "a dog", "the red car", "--out", out, run=run)
    assert status == 0
    assert said == f"2 sentences → (2, 16) float32 in {out}, for {similarity} similarity\n"
    rows = np.load(out, allow_pickle=False)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, run.embed_sentences(["a dog", "the red car"]))
    status, said, _ = call("embed", "--run", "RUN", "--out", out, images[0], run=run)
    assert said.startswith("1 image → (1, 16) float32 in ")
    np.testing.assert_array_equal(np.load(out), run.embed_images(images[:1]))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["gone.jpg"], "gone.jpg: no such image"),
        (["a dog", "my images/gone dog.WEBP"], "gone dog.WEBP: no such image"),
        (["images/gone"], "images/gone: no such image"),
        (["one.png", "a dog"], "one.png: is an image, but 'a dog' a sentence"),
        (["."], ".: is a folder"),
        (["broken.jpg"], "broken.jpg: cannot be read"),
        ([""], "'': an empty sentence"),
        (["a dog", "  "], "'  ': an empty sentence"),
        (["a dog", "zxqv Blorp"], "knows none of its words (zxqv, blorp)"),
        (["!!!"], "holds none"),
    ],
)
def test_bad_input_of_embed(call, images, monkeypatch, args, message):
    monkeypatch.chdir(images[0].parent)
    Path("broken.jpg").write_bytes(b"no image")
    Path("rows.npy").write_bytes(b"as it was")
    status, out, err = call("embed", "--run", "RUN", *args, "--out", "rows.npy")
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert Path("rows.npy").read_bytes() == b"as it was"


def test_a_slash_makes_no_path_of_a_sentence(call, tmp_path):
    assert call("embed", "--run", "RUN", "a dog and/or a cat", "--out", tmp_path / "rows.npy")[0] == 0


@pytest.mark.parametrize("name", ["rows.txt", "rows", "folder.npy"])
def test_out_is_a_npy_file(call, tmp_path, name):
    (tmp_path / "folder.npy").mkdir()
    status, _, err = call("embed", "--run", "RUN", "a dog", "--out", tmp_path / name)
    assert status == 2
    assert f"--out {tmp_path / name}: " in err


def test_one_run_is_asked(monkeypatch, tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.toml").touch()
    monkeypatch.setattr(
        sys, "argv", ["search.py", "embed", "--run", f"{tmp_path}/*", "a dog", "--out", f"{tmp_path}/x.npy"]
    )
    with pytest.raises(SystemExit):
        run_script(search.main)
    assert "names 2 runs" in capsys.readouterr().err
