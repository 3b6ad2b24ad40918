"""Loading: a process that dies while it decodes costs the image that ends it, and nothing else."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.data.dataloader as torch_loader
from PIL import Image as PILImage

from features.images import loader
from features.images.decode import read_image
from features.images.extract import extract, features_of
from features.images.store import FeatureStore
from tests.helpers import make_images, tiny_backbone
from utils import BadInput


@pytest.fixture(autouse=True)
def _seen_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch looks every five seconds whether its workers live."""
    waits = torch_loader._MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(waits, "__defaults__", (0.1,))


def dying(monkeypatch: pytest.MonkeyPatch, dies: Callable[[str], bool], how: int = signal.SIGKILL) -> None:
    """Have a process that decodes end at images whose name `dies` says so of."""

    def read(path: Any) -> PILImage.Image:
        if dies(Path(path).stem):
            assert torch.utils.data.get_worker_info() is not None, "not the program itself"
            os.kill(os.getpid(), how)
        return read_image(path)

    monkeypatch.setattr(loader, "read_image", read)


@pytest.mark.parametrize(("workers", "how"), [(1, signal.SIGKILL), (2, signal.SIGSEGV)])
def test_an_image_that_ends_its_process_is_named_and_no_other(
    workers: int, how: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(tmp_path / "images", 20)
    tiny = tiny_backbone()
    extract(images, tiny, tmp_path / "whole.h5", workers=0, batch=4)
    handler = signal.getsignal(signal.SIGCHLD)
    dying(monkeypatch, lambda name: name in ("006", "019"), how)
    for _ in range(2):  # a second run asks just these again
        failed = extract(images, tiny, tmp_path / "a.h5", workers=workers, batch=4, skip_unreadable=True)
        assert failed == [("006", loader.DIED), ("019", loader.DIED)]
    assert signal.getsignal(signal.SIGCHLD) == handler
    store, whole = FeatureStore.open(tmp_path / "a.h5"), FeatureStore.open(tmp_path / "whole.h5")
    assert store.ids == [image for image in whole.ids if image not in ("006", "019")]
    assert (store.read(range(18)) == whole.read(whole.rows(store.ids))).all()


def test_a_process_that_dies_once_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_images(tmp_path / "images", 12)

    def first_time(name: str) -> bool:
        try:
            (tmp_path / "died").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    dying(monkeypatch, first_time)
    results = list(features_of([image.path for image in images], tiny_backbone(), batch=4, workers=2))
    assert [row for row, _ in results] == list(range(12))
    assert not any(isinstance(result, str) for _, result in results)


def test_processes_that_die_whatever_they_read_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_images(tmp_path / "images", 5)

    def killed(worker: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(loader, "end_first", killed)
    with pytest.raises(BadInput, match=r"`workers`: .* with `workers` 0"):
        extract(images, tiny_backbone(), tmp_path / "a.h5", workers=1)


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").exists(), reason="as Linux has it")
def test_a_process_that_decodes_is_the_first_to_go_when_memory_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Any) -> PILImage.Image:
        (tmp_path / "score").write_text(Path("/proc/self/oom_score_adj").read_text())
        return read_image(path)

    monkeypatch.setattr(loader, "read_image", read)
    images = make_images(tmp_path / "images", 1)
    assert len(list(features_of([images[0].path], tiny_backbone(), workers=1))) == 1
    assert (tmp_path / "score").read_text() == "1000\n"
