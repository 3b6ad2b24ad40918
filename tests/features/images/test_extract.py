"""Extraction: rows keyed by image, resumable after a kill, with whatever cannot be read told and all else kept."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from features.blocks import Blocks
from features.datasets.dataset import Image
from features.images import extract as extraction
from features.images import loader
from features.images.backbones import Backbone, load
from features.images.decode import read_image
from features.images.extract import extract, features_of
from features.images.store import FeatureStore
from tests.helpers import ROOT, Network, make_images, see, tiny_backbone
from utils import BadInput


def plain_row(image: Image, seed: int = 0) -> np.ndarray:
    assert isinstance(image.path, Path)
    return Network(seed)(see(PILImage.open(image.path))[None])[0].numpy()


def batches(of: Backbone) -> int:
    assert isinstance(of.module, Network)
    return len(of.module.batches)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "ROWS_PER_BLOCK", 8)


# --- rows


@pytest.mark.parametrize("workers", [0, 2])
def test_every_row_is_the_feature_of_its_image(tmp_path: Path, workers: int) -> None:
    images = make_images(tmp_path / "images", 19)
    tiny = tiny_backbone()
    assert extract(images, tiny, tmp_path / "tiny.h5", batch=3, workers=workers) == []
    store = FeatureStore.open(tmp_path / "tiny.h5")
    assert store.ids == [image.id for image in images]
    assert store.attributes == {**tiny.attributes, "format": 1}
    expected = np.stack([plain_row(image) for image in images])
    np.testing.assert_allclose(store.read(range(19)), expected, atol=1e-6)
    assert {file.name for file in tmp_path.iterdir()} == {"images", "tiny.h5"}
    assert isinstance(tiny.module, Network)
    assert set(tiny.module.batches) == {torch.Size((3, 3, 16, 16))}, "every batch has the same size"
    # 8 + 8 + 3 images: batches end with their block
    assert batches(tiny) == 3 + 3 + 1


def test_a_complete_store_is_left_alone(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 5)
    extract(images, tiny_backbone(), tmp_path / "tiny.h5", workers=0)
    before = (tmp_path / "tiny.h5").stat()
    tiny = tiny_backbone()
    assert extract(images[:3], tiny, tmp_path / "tiny.h5", workers=0) == []
    assert batches(tiny) == 0
    assert (tmp_path / "tiny.h5").stat().st_mtime_ns == before.st_mtime_ns


def test_added_images_are_all_that_is_computed(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 24)
    extract(images[4:15], tiny_backbone(), tmp_path / "tiny.h5", workers=0)
    tiny = tiny_backbone()
    assert extract([*images[20:], *images[:12]], tiny, tmp_path / "tiny.h5", batch=8, workers=0) == []
    assert batches(tiny) == 1, "eight images are new"
    store = FeatureStore.open(tmp_path / "tiny.h5")
    assert store.ids == [image.id for image in [*images[20:], *images[:12], *images[12:15]]]
    expected = np.stack([plain_row(image) for image in images])
    np.testing.assert_allclose(store.read(store.rows([i.id for i in images[:15]])), expected[:15], atol=1e-6)


def tiny_views(fails_after: int = -1) -> Backbone:
    """A backbone that sees an image upright, upside down and mirrored."""

    class Views(Network):
        @torch.inference_mode()
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            if len(self.batches) == 3 * fails_after:
                raise KeyboardInterrupt
            return torch.stack([super(Views, self).forward(pixels[:, view]) for view in range(3)], dim=1)

    def transform(image: PILImage.Image) -> torch.Tensor:
        pixels = see(image)
        return torch.stack([pixels, pixels.flip(1), pixels.flip(2)])

    return replace(tiny_backbone(), module=Views(), transform=transform, shape=(3, 8), views=3)


def test_views_are_rows_of_an_image_that_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, decoded = make_images(tmp_path / "images", 19), []

    def counted(path: Any) -> PILImage.Image:
        decoded.append(path)
        return read_image(path)

    monkeypatch.setattr(loader, "read_image", counted)
    assert extract(images, tiny_views(), tmp_path / "a.h5", batch=3, workers=0) == []
    assert decoded == [image.path for image in images]
    store = FeatureStore.open(tmp_path / "a.h5")
    assert (store.shape, store.attributes["views"]) == ((3, 8), 3)
    network, rows = Network(), store.read(range(19))
    for image, row in zip(images, rows, strict=True):
        pixels = see(PILImage.open(image.path))  # type: ignore[arg-type]
        for view, seen in enumerate((pixels, pixels.flip(1), pixels.flip(2))):
            np.testing.assert_allclose(row[view], network(seen[None])[0].numpy(), atol=1e-6)


@pytest.mark.parametrize("fails_after", [1, 4, 5])
def test_views_go_on_after_a_stop_bit_for_bit(tmp_path: Path, fails_after: int) -> None:
    images = make_images(tmp_path / "images", 19)
    extract(images, tiny_views(), tmp_path / "whole.h5", batch=3, workers=0, dtype="float16")
    with pytest.raises(KeyboardInterrupt):
        extract(images, tiny_views(fails_after), tmp_path / "a.h5", batch=3, workers=0, dtype="float16")
    assert not (tmp_path / "a.h5").exists()
    extract(images, tiny_views(), tmp_path / "a.h5", batch=3, workers=0, dtype="float16")
    got, expected = FeatureStore.open(tmp_path / "a.h5"), FeatureStore.open(tmp_path / "whole.h5")
    assert (got.ids, got.attributes, got.dtype) == (expected.ids, expected.attributes, "float16")
    np.testing.assert_array_equal(got.read(range(19), "float16"), expected.read(range(19), "float16"))


def test_half_precision_and_maps(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 3)
    extract(images, tiny_backbone(), tmp_path / "a.h5", workers=0, dtype="float16")
    store = FeatureStore.open(tmp_path / "a.h5")
    assert store.dtype == "float16"
    np.testing.assert_allclose(store.read([1])[0], plain_row(images[1]), rtol=2e-3, atol=1e-4)
    spatial = load("timm:test_resnet", weights="random", map=True)
    extract(images[:2], spatial, tmp_path / "b.h5", workers=0, batch=2)
    assert FeatureStore.open(tmp_path / "b.h5").shape == spatial.shape == (5, 5, 96)


def test_features_of_paths_without_a_store(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 5)
    results = list(features_of([image.path for image in images] + [tmp_path / "gone.jpg"], tiny_backbone(), batch=4))
    assert [place for place, _ in results] == [0, 1, 2, 3, 4, 5]
    assert results[5][1] == "no such file"
    np.testing.assert_allclose(np.stack([row for _, row in results[:5]]), [plain_row(i) for i in images], atol=1e-6)


# --- images that cannot be read


def test_unreadable_images_are_told_and_a_later_run_does_just_these(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 20)
    path = tmp_path / "tiny.h5"
    extract(images, tiny_backbone(), tmp_path / "whole.h5", workers=0, batch=4)
    sound = {}
    for number in (3, 4, 5, 6, 17):
        file = tmp_path / "images" / f"{number:03}.png"
        sound[file] = file.read_bytes()
        file.write_bytes(sound[file][:200])
    failed = extract(images, tiny_backbone(), path, workers=1, batch=4)
    assert [image for image, _ in failed] == ["003", "004", "005", "006", "017"]
    assert all("truncated" in reason for _, reason in failed)
    assert not path.exists()
    assert (tmp_path / "tiny.h5.part" / "failed.json").exists()
    for file, content in list(sound.items())[:4]:
        file.write_bytes(content)
    tiny = tiny_backbone()
    assert [image for image, _ in extract(images, tiny, path, workers=0, batch=4)] == ["017"]
    assert batches(tiny) == 1
    list(sound)[4].write_bytes(sound[list(sound)[4]])
    assert extract(images, tiny_backbone(), path, workers=0, batch=4) == []
    got, expected = FeatureStore.open(path), FeatureStore.open(tmp_path / "whole.h5")
    assert got.ids == expected.ids
    np.testing.assert_array_equal(got.read(range(20)), expected.read(range(20)))


def test_skip_unreadable_completes_without_them(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 9)
    gone = tmp_path / "images" / "004.png"
    content = gone.read_bytes()
    gone.unlink()
    path = tmp_path / "tiny.h5"
    assert extract(images, tiny_backbone(), path, workers=0, skip_unreadable=True) == [("004", "no such file")]
    assert FeatureStore.open(path).ids == [image.id for image in images if image.id != "004"]
    assert not (tmp_path / "tiny.h5.part").exists()
    before = path.stat().st_mtime_ns
    assert extract(images, tiny_backbone(), path, workers=0, skip_unreadable=True) == [("004", "no such file")]
    assert path.stat().st_mtime_ns == before
    gone.write_bytes(content)
    tiny = tiny_backbone()
    assert extract(images, tiny, path, workers=0) == []
    assert batches(tiny) == 1
    assert FeatureStore.open(path).ids == [image.id for image in images]


def test_nothing_readable_is_no_store(tmp_path: Path) -> None:
    images = [Image("a", None, "train", ("x",)), Image("b", tmp_path / "b.jpg", "train", ("x",))]
    assert dict(extract(images, tiny_backbone(), tmp_path / "a.h5", workers=0)) == {
        "a": "has no file",
        "b": "no such file",
    }
    with pytest.raises(BadInput, match="there is no image to keep features of"):
        extract(images, tiny_backbone(), tmp_path / "a.h5", workers=0, skip_unreadable=True)


# --- other weights


@pytest.mark.parametrize(
    ("other", "dtype", "message"),
    [
        (tiny_backbone(seed=1), "float32", r"other weights \(digest 0, not digest 1\); repeat with `fresh`"),
        (tiny_backbone(transform="resize 99"), "float32", r"another transform \(resize 16, not resize 99\)"),
        (tiny_backbone(), "float16", r"another dtype \(float32, not float16\)"),
    ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_rows_of_other_weights_do_not_mix(
    tmp_path: Path, other: Backbone, dtype: str, message: str, complete: bool
) -> None:
    images = make_images(tmp_path / "images", 9)
    path = tmp_path / "tiny.h5"
    if not complete:
        (tmp_path / "images" / "002.png").unlink()
    extract(images, tiny_backbone(), path, workers=0)
    assert path.exists() == complete
    with pytest.raises(BadInput, match=rf"tiny\.h5{'' if complete else '.part'}: was made by tiny with {message}"):
        extract(images, other, path, workers=0, dtype=dtype)
    images = make_images(tmp_path / "images", 9)
    assert extract(images, other, path, workers=0, dtype=dtype, fresh=True) == []
    assert FeatureStore.open(path).attributes["digest"] == other.digest
    assert FeatureStore.open(path).dtype == dtype


@pytest.mark.parametrize(
    ("factor", "dtype", "remedy"), [(1e6, "float16", "keep .* float32"), (np.nan, "float32", "check the weights")]
)
def test_a_feature_that_is_not_finite_is_named(tmp_path: Path, factor: float, dtype: str, remedy: str) -> None:
    images = make_images(tmp_path / "images", 2)
    with pytest.raises(BadInput, match=f"tiny: the feature of image 000 is not finite in {dtype}; {remedy}"):
        extract(images, tiny_backbone(factor=factor), tmp_path / "a.h5", workers=0, dtype=dtype)
    assert not (tmp_path / "a.h5").exists()


# --- kills and full disks

KILLED = """
import sys
from pathlib import Path
from features.images import extract
from tests.helpers import ROOT, make_images, tiny_backbone
extract.ROWS_PER_BLOCK = 8
folder = Path({folder!r})
extract.extract(make_images(folder / "images", 60), tiny_backbone(dawdle=0.1), folder / "killed.h5", batch=3, workers=1)
"""


def test_a_killed_run_goes_on_where_it_stopped_bit_for_bit(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 60)
    extract(images, tiny_backbone(), tmp_path / "whole.h5", batch=3, workers=0)
    part = tmp_path / "killed.h5.part"
    script = KILLED.format(folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.DEVNULL) as run:
        while len(list(part.glob("block-*.npz"))) < 3:
            assert run.poll() is None
            time.sleep(0.02)
        os.kill(run.pid, signal.SIGKILL)
    assert not (tmp_path / "killed.h5").exists()
    blocks = {file: file.stat().st_mtime_ns for file in part.glob("block-*.npz")}
    finished = 8 * len(blocks)
    assert 24 <= finished < 60

    seen = {}
    original = Blocks.assemble

    def look(*arguments: Any) -> Iterator[np.ndarray]:
        seen.update({file: file.stat().st_mtime_ns for file in blocks})
        return original(*arguments)

    tiny = tiny_backbone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Blocks, "assemble", look)
        assert extract(images, tiny, tmp_path / "killed.h5", batch=3, workers=0) == []
    assert seen == blocks, "finished blocks are not written again"
    groups = [min(8, 60 - start) for start in range(finished, 60, 8)]
    assert batches(tiny) == sum(-(-size // 3) for size in groups), "nor computed again"
    got, expected = FeatureStore.open(tmp_path / "killed.h5"), FeatureStore.open(tmp_path / "whole.h5")
    assert got.ids == expected.ids
    np.testing.assert_array_equal(got.read(range(60)), expected.read(range(60)))
    assert not part.exists()


def test_two_programs_do_not_fill_one_store(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 60)
    part = tmp_path / "killed.h5.part"
    with subprocess.Popen([sys.executable, "-c", KILLED.format(folder=str(tmp_path))], cwd=ROOT) as run:
        while not list(part.glob("block-*.npz")):
            assert run.poll() is None
            time.sleep(0.02)
        for fresh in (False, True):
            with pytest.raises(BadInput, match=rf"killed\.h5\.part: process {run.pid} \(.*\) is at work in it; wait"):
                extract(images[::-1], tiny_backbone(), tmp_path / "killed.h5", batch=3, workers=0, fresh=fresh)
        # another store of the same folder is nobody's business
        assert extract(images[:2], tiny_backbone(), tmp_path / "other.h5", workers=0) == []
    store = FeatureStore.open(tmp_path / "killed.h5")
    np.testing.assert_allclose(store.read(range(60)), np.stack([plain_row(image) for image in images]), atol=1e-6)


@pytest.mark.parametrize("fresh", [False, True])
def test_nothing_is_deleted_or_written_through_a_link(tmp_path: Path, fresh: bool) -> None:
    images = make_images(tmp_path / "images", 3)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/block-000000.npz").write_text("precious")
    (tmp_path / "a.h5.part").symlink_to(tmp_path / "precious")
    with pytest.raises(BadInput, match=r"a\.h5\.part: is a symbolic link"):
        extract(images, tiny_backbone(), tmp_path / "a.h5", workers=0, fresh=fresh)
    assert [(file.name, file.read_text()) for file in (tmp_path / "precious").iterdir()] == [
        ("block-000000.npz", "precious")
    ]
    (tmp_path / "a.h5.part").unlink()
    for name in (".a.h5.tmp", ".a.h5.0.tmp", "a.h5"):
        (tmp_path / name).symlink_to(tmp_path / "precious/block-000000.npz")
    assert extract(images, tiny_backbone(), tmp_path / "a.h5", workers=0, fresh=True) == []
    assert (tmp_path / "precious/block-000000.npz").read_text() == "precious"


def test_a_damaged_block_is_done_again(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 20)
    (tmp_path / "images" / "019.png").unlink()
    extract(images, tiny_backbone(), tmp_path / "a.h5", workers=0, batch=8)
    block = tmp_path / "a.h5.part" / "block-000001.npz"
    block.write_bytes(block.read_bytes()[:100])
    images = make_images(tmp_path / "images", 20)
    tiny = tiny_backbone()
    assert extract(images, tiny, tmp_path / "a.h5", workers=0, batch=8) == []
    assert batches(tiny) == 2, "its eight images, and the one that was missing"
    assert len(FeatureStore.open(tmp_path / "a.h5")) == 20


def test_a_full_disk_damages_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_images(tmp_path / "images", 20)
    path = tmp_path / "a.h5"
    extract(images[:10], tiny_backbone(), path, workers=0)
    before = path.read_bytes()
    fsync = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        extract(images, tiny_backbone(), path, workers=0)
    assert path.read_bytes() == before
    monkeypatch.setattr(os, "fsync", fsync)
    assert extract(images, tiny_backbone(), path, workers=0) == []
    assert len(FeatureStore.open(path)) == 20


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadInput, match=r"cannot be written .*`data`"):
        extract(make_images(tmp_path / "images", 1), tiny_backbone(), tmp_path / "file" / "a.h5", workers=0)
