"""Engines: the same features from each, the quicker one where nobody says, one sentence for what cannot be."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from features import engines
from features.blocks import Blocks
from features.engines import OpenVINOEngine, TorchEngine, choose_engine, cosines, is_installed, measure, run_ahead
from features.images import engine as image_engines
from features.images import extract as extraction
from features.images.backbones import load
from features.images.engine import image_engine
from features.images.extract import extract, features_of
from features.text.encoders import POOLINGS, load_sentence_encoder
from features.text.store import TextStore, update_text_store
from tests.dual_helpers import make_tiny_dual
from tests.helpers import ROOT, SENTENCES, make_images, make_tiny_encoder
from utils import BadInput

needs_openvino = pytest.mark.skipif(not is_installed(), reason="pip install openvino")


class Linear(nn.Module):
    """Rows of three numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)

    def forward(self, rows: Tensor) -> Tensor:
        return self.layer(rows)


class Undecided(Linear):
    """What it computes depends on values, so that it has no graph."""

    def forward(self, rows: Tensor) -> Tensor:
        return self.layer(rows) if rows.sum() > 0 else rows[:, :3]


ROWS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
UNTOLD: dict[str, Any] = {"what": "tiny", "unit": "images"}


class Other:
    """Stands for an engine that gives the rows of a function."""

    name, precision, ahead = "openvino", "float32", 3

    def __init__(self, rows: Callable[[Tensor], Tensor]):
        self.rows = rows

    def start(self, *inputs: Tensor) -> Callable[[], Tensor]:
        return lambda: self.rows(*inputs)


def choose(engine: str, other: Callable[[Tensor], Tensor]) -> Any:
    return choose_engine(engine, "float32", Linear(), lambda: (Other(other), (ROWS,)), **UNTOLD)


# --- which engine


@pytest.mark.parametrize("quicker", ["torch", "openvino"])
def test_auto_takes_what_is_measured_to_be_quicker_and_says_so(
    quicker: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = {"torch": 40.0, "openvino": 40.0, quicker: 120.0}
    monkeypatch.setattr(engines, "is_installed", lambda: True)
    monkeypatch.setattr(engines, "measure", lambda engine, inputs: rates[engine.name])
    assert choose("auto", Linear()).name == quicker
    said = f"torch {rates['torch']:.3g}, openvino {rates['openvino']:.3g} images/s"
    assert capsys.readouterr().err == f"tiny: engine {quicker}, as measured ({said})\n"


def test_an_engine_that_gives_other_features_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    linear = Linear()
    monkeypatch.setattr(engines, "is_installed", lambda: True)
    for wrong in (lambda rows: linear(rows) + 0.1, lambda rows: linear(rows) * torch.nan):
        with pytest.raises(BadInput, match="its features are not those of torch"):
            choose("openvino", wrong)
        assert choose("auto", wrong).name == "torch"
        assert "tiny: engine torch; `engine` openvino: its features" in capsys.readouterr().err
    assert choose("openvino", lambda rows: 2 * linear(rows)).name == "openvino", "only the direction counts"


@needs_openvino
def test_a_network_that_cannot_be_converted(capsys: pytest.CaptureFixture[str]) -> None:
    module = Undecided().eval()

    def convert() -> Any:
        return OpenVINOEngine(module, (ROWS,)), (ROWS,)

    with pytest.raises(BadInput, match="cannot be converted") as raised:
        choose_engine("openvino", "float32", module, convert, **UNTOLD)
    assert "\n" not in str(raised.value)
    assert choose_engine("auto", "float32", module, convert, **UNTOLD).name == "torch"
    assert "tiny: engine torch; `engine` openvino: this network cannot be converted" in capsys.readouterr().err


def test_without_the_package_auto_is_torch_and_the_sentence_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert not is_installed()
    assert choose("auto", Linear()).name == "torch"
    with pytest.raises(BadInput, match="needs the package openvino; pip install openvino"):
        OpenVINOEngine(Linear(), (ROWS,))


def test_few_images_are_not_worth_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "is_installed", lambda: pytest.fail("looks for another engine"))
    backbone = load("timm:test_resnet", weights="random")
    assert image_engine(backbone, image_engines.AUTO_MIN_IMAGES - 1).name == "torch"


def test_batches_under_way_come_in_turn_and_no_more_than_asked_for() -> None:
    started: list[int] = []

    def start(batch: int) -> Callable[[], Tensor]:
        started.append(batch)
        return lambda: torch.tensor(10 * batch)

    for number, (batch, rows) in enumerate(run_ahead(start, range(7), ahead=2)):
        assert (batch, rows.item(), len(started)) == (number, 10 * number, min(7, number + 3))
        if number == 6:
            started.clear()
    assert measure(TorchEngine(Linear()), (ROWS,)) > 0


def test_cosines_against_numpy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 7)).astype(np.float32)
    a[2] = 0
    expected = [1 - scipy_cosine(x, y) if x.any() else 0 for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(cosines(torch.from_numpy(a), torch.from_numpy(b)).numpy(), expected, atol=1e-6)


def scipy_cosine(x: np.ndarray, y: np.ndarray) -> float:
    from scipy.spatial.distance import cosine

    return float(cosine(x, y))


# --- the same features


@needs_openvino
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timm:test_resnet", {}),
        ("timm:test_resnet", {"map": True}),
        ("timm:test_resnet", {"layer": "layer2"}),
        ("timm:test_resnet", {"views": 3}),
        ("timm:test_resnet", {"crops": 10}),
        ("squeezenet1_1", {"size": 96}),
        ("dual", {}),
    ],
)
def test_openvino_gives_torchs_features(
    name: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "dual":
        backbone = load(f"clip:{make_tiny_dual(tmp_path / 'dual')}")
    else:
        backbone = load(name, weights="random", **options)
    running = image_engine(backbone, 1, batch=3, engine="openvino")
    paths = [image.path for image in make_images(tmp_path / "images", 7)]
    paths.insert(2, tmp_path / "gone.png")
    rows, expected = (dict(features_of(paths, backbone, batch=3, engine=each)) for each in (running, None))
    assert list(rows) == list(expected) == list(range(8))
    assert rows.pop(2) == expected.pop(2) == "no such file"
    got, want = (torch.from_numpy(np.stack(list(each.values()))) for each in (rows, expected))
    assert got.shape == want.shape == (7, *backbone.shape)
    assert cosines(got.flatten(1), want.flatten(1)).min() >= 0.9999
    assert cosines(got[:1].flatten(1), want[1:2].flatten(1)).item() < 0.99999, "images differ by more"


@needs_openvino
def test_a_stop_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "ROWS_PER_BLOCK", 8)
    backbone, images = load("timm:test_resnet", weights="random"), make_images(tmp_path / "images", 30)
    extract(images, backbone, tmp_path / "whole.h5", batch=3, workers=0, engine="openvino")
    write = Blocks.write
    with monkeypatch.context() as patch:
        patch.setattr(Blocks, "write", lambda self, *a, **k: stop() if self.number == 2 else write(self, *a, **k))
        with pytest.raises(KeyboardInterrupt):
            extract(images, backbone, tmp_path / "a.h5", batch=3, workers=0, engine="openvino")
    assert len(list((tmp_path / "a.h5.part").glob("block-*.npz"))) == 2
    assert extract(images, backbone, tmp_path / "a.h5", batch=3, workers=0) == [], "auto goes on with the engine begun"
    whole, resumed = (contents(tmp_path / f"{name}.h5") for name in ("whole", "a"))
    assert whole == resumed
    assert whole["engine"] == "openvino"


def stop() -> None:
    raise KeyboardInterrupt


def contents(path: Path) -> dict[str, Any]:
    with h5py.File(path) as file:
        return {name: file[name][:].tolist() for name in file} | dict(file.attrs)


# --- what a store remembers


def test_a_store_goes_on_with_the_engine_it_was_begun_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, path = make_images(tmp_path / "images", 12), tmp_path / "a.h5"
    backbone = load("timm:test_resnet", weights="random")
    extract(images[:6], backbone, path, workers=0)
    assert (contents(path)["engine"], contents(path)["precision"]) == ("torch", "float32")
    monkeypatch.setattr(image_engines, "AUTO_MIN_IMAGES", 1)
    monkeypatch.setattr(engines, "is_installed", lambda: pytest.fail("looks for another engine"))
    extract(images[:9], backbone, path, workers=0)
    with pytest.raises(BadInput, match=r"a\.h5: was made by .* with another engine \(torch, not openvino\); repeat"):
        extract(images, backbone, path, workers=0, engine="openvino")
    with h5py.File(path, "a") as file:  # as stores were before they said so
        del file.attrs["engine"], file.attrs["precision"]
    assert extract(images, backbone, path, workers=0) == []
    assert contents(path)["engine"] == "torch"


# --- bfloat16


def test_bfloat16_is_refused_where_the_machine_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False}, raising=False)
    makers = [lambda: TorchEngine(Linear(), "bfloat16"), lambda: OpenVINOEngine(Linear(), (ROWS,), "bfloat16")]
    for make in makers if is_installed() else makers[:1]:
        with pytest.raises(BadInput, match="`precision` bfloat16: this machine has no instructions for it"):
            make()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert engines.has_bfloat16("openvino")


@pytest.mark.parametrize("engine", ["torch", pytest.param("openvino", marks=needs_openvino)])
def test_bfloat16_rows_and_a_store_of_them(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "has_bfloat16", lambda engine: True)  # slow without instructions, and right
    images, backbone = make_images(tmp_path / "images", 5), load("timm:test_resnet", weights="random")
    for precision in ("float32", "bfloat16"):
        path = tmp_path / f"{precision}.h5"
        extract(images, backbone, path, workers=0, engine=engine, precision=precision)
        assert contents(path)["precision"] == precision
    exact, rounded = (torch.tensor(contents(tmp_path / f"{p}.h5")["features"]) for p in ("float32", "bfloat16"))
    assert cosines(rounded, exact).min() >= 0.999
    assert engine == "openvino" or not torch.equal(rounded, exact), "OpenVINO falls back to float32 by itself"
    extract(make_images(tmp_path / "images", 6), backbone, path, workers=0, engine=engine)
    assert contents(path)["precision"] == "bfloat16", "goes on with what was begun"
    with pytest.raises(BadInput, match=r"with another precision \(bfloat16, not float32\)"):
        extract(images, backbone, path, workers=0, engine=engine, precision="float32")


# --- sentences


@needs_openvino
@pytest.mark.parametrize("kind", ["bert", "albert"])
def test_sentence_features_are_the_same(kind: str, tmp_path: Path) -> None:
    encoder = load_sentence_encoder(make_tiny_encoder(tmp_path / kind, kind))
    other = encoder.with_engine("openvino", "float32", 1)
    sentences = [*SENTENCES, "dog " * 60, *(" ".join(["red car"] * n) for n in range(1, 15))]
    rows, expected = other.features(sentences), encoder.features(sentences)
    for pooling in POOLINGS:
        assert cosines(torch.from_numpy(rows[pooling]), torch.from_numpy(expected[pooling])).min() >= 0.9999
    lines = [{"image": "a", "captions": sentences}]
    update_text_store(tmp_path / "a.text.h5", lines[:1], encoder, engine="openvino")
    store = TextStore.open(tmp_path / "a.text.h5")
    assert (store.attributes["engine"], store.attributes["precision"]) == ("openvino", "float32")
    np.testing.assert_allclose(store.read(lines, "mean"), expected["mean"], atol=4e-3)
    with pytest.raises(BadInput, match=r"another engine \(openvino, not torch\)"):
        update_text_store(tmp_path / "a.text.h5", lines, encoder, engine="torch")


# --- signals

SIGNALS = """
import os, signal, threading
import torch
from features.engines import OpenVINOEngine
engines = [OpenVINOEngine(torch.nn.Linear(4, 3).eval(), (torch.zeros(2, 4),))]
thread = threading.Thread(target=engines.clear)  # as that of a request may be the last to know of an engine
thread.start()
thread.join()
signal.signal(signal.SIGINT, lambda *_: print("heard"))
os.kill(os.getpid(), signal.SIGINT)
"""


@needs_openvino
def test_signals_are_heard_when_an_engine_has_ended_in_another_thread() -> None:
    done = subprocess.run([sys.executable, "-c", SIGNALS], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "heard\n")


# --- nothing is sent

IMPORTS = """
import os, sys, time
events = []
sys.addaudithook(lambda name, args: events.append(name) if name.startswith(("socket.", "subprocess.")) else None)
import torch
from features.engines import OpenVINOEngine, TorchEngine
engine = OpenVINOEngine(torch.nn.Linear(4, 3).eval(), (torch.zeros(2, 4),))
assert engine.start(torch.zeros(2, 4))().shape == (2, 3)
print([name for name in events if "connect" in name or "getaddrinfo" in name or "sendto" in name])
print(os.listdir(os.environ["HOME"]), sys.modules["openvino_telemetry"])
"""


@needs_openvino
def test_openvino_tells_nobody_that_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "GITHUB_ACTIONS", "TF_BUILD", "JENKINS_URL", "TRAVIS"):  # where it would send nothing anyway
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", IMPORTS], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[] None"], "no connection, no consent file, no telemetry loaded"
