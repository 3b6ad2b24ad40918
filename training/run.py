"""The run folder runs/RUN/: what train.py leaves, and all that is needed to embed images and sentences with it.

recipe.toml         every setting, resolved, and under [run] what it was trained on
model.safetensors   the weights that were best on val
vocabulary.json     a copy of the dataset's: a run stands alone
log.jsonl           one line per epoch
last.pt             all that resuming needs; plain tensors and numbers, loads with weights_only=True
result.json         the metrics on val; it appears when training is over
"""

import copy
import hashlib
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import tomli_w
import torch
from safetensors import SafetensorError
from torch import Tensor

from features.device import default_device as device
from features.images.maps import FeatureMaps
from features.prepared import Prepared, join_features
from features.text.sentences import TextProcessor, sentence_encoder
from features.text.store import TextStore
from features.text.vocabulary import Sentences, Vocabulary, WordIndex
from model import InputDims, TwoBranch
from settings import Settings, from_table, read_toml, to_table
from utils import BadInput, atomic_write, did_you_mean, make_folder, read_json

if TYPE_CHECKING:
    from features.images.backbones import Backbone

Photograph = Path | str | IO[bytes]

RECIPE, MODEL, VOCABULARY = "recipe.toml", "model.safetensors", "vocabulary.json"
LOG, LAST, RESULT = "log.jsonl", "last.pt", "result.json"
ROWS_PER_BATCH = 1000  # images or sentences embedded at a time; of maps, as many as
BATCH_BYTES = 2**26  # bytes hold;
SENTENCES_PER_BATCH = 64  # sentences through a transformer


@dataclass(frozen=True)
class RunInfo:
    """What a run was trained on. `digests` and `sizes` belong to `features`, one each."""

    recipe: str
    dataset: str
    data: str  # the prepared folder
    features: tuple[str, ...]
    digests: tuple[str, ...]
    sizes: tuple[int, ...]  # of spatial maps, their channels
    seed: int
    captions: str = ""  # digest of images, splits, captions and stemmer; "" where it is not known
    backbones: tuple[dict[str, Any], ...] = ()  # what each of `features` was made with, as its store says
    grid: tuple[int, ...] = ()  # (H, W) of spatial maps
    encoder_digest: str = ""  # of the transformer in the text branch, and
    encoder_size: int = 0  # the size of its features

    def run_name(self, settings: Settings) -> str:
        """The prepared folder stands for the dataset: there may be two of one dataset."""
        parts = (self.recipe, Path(self.data).name, "+".join(self.features), str(self.seed), settings.digest())
        return "-".join(parts)


def create_run(folder: Path, settings: Settings, info: RunInfo, vocabulary: Vocabulary) -> None:
    """Write what a run needs before its first epoch. recipe.toml comes last: with it the folder is a run."""
    make_folder(folder, "--runs")
    vocabulary.save(folder / VOCABULARY)
    run = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(info).items()}
    with atomic_write(folder / RECIPE, "wb") as file:
        tomli_w.dump({"run": run, **to_table(settings)}, file)


def read_run_config(folder: Path) -> tuple[Settings, RunInfo]:
    """Read the settings of a run folder, and what it was trained on."""
    path = folder / RECIPE
    if not path.is_file():
        raise BadInput(f"{folder}: not a run folder (no {RECIPE}); train one with train.py, or name another")
    table = read_toml(path, "train the run again with --fresh")
    try:
        run: dict[str, Any] = table.pop("run")
        lists = {key: tuple(value) for key, value in run.items() if isinstance(value, list)}
        info = RunInfo(**{**run, **lists})
    except (KeyError, TypeError, AttributeError):
        raise BadInput(f"{path}: not the recipe of a run of this version; train it again with --fresh") from None
    return from_table(table, str(path)), info


def new_model(settings: Settings, info: RunInfo, words: int) -> TwoBranch:
    """A model with first weights that depend on the seed alone; a transformer that is trained too has its own."""
    sizes = InputDims(sum(info.sizes), words, info.grid, info.encoder_size)
    if settings.text.finetune:
        encoder = sentence_encoder(settings.text.encoder)
        module = copy.deepcopy(encoder.module).requires_grad_(True)
        sizes = replace(sizes, transformer=module, padding=encoder.padding)
    torch.manual_seed(info.seed)
    return TwoBranch(settings, sizes).to(device())


def save_model(path: Path, model: TwoBranch) -> None:
    with atomic_write(path, "wb") as file:
        file.write(safetensors.torch.save({name: t.cpu().contiguous() for name, t in model.state_dict().items()}))


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with atomic_write(path, "wb") as file:
        file.write(buffer.getbuffer())


class Run:
    """A finished run, open for embedding.

    >>> run = Run.open("runs/strong-scenes-efficientnet_lite0-0-1a2b3c4d")  # doctest: +SKIP
    >>> run.embed_sentences(["a dog runs on the beach"]).shape  # doctest: +SKIP
    (1, 1024)
    """

    def __init__(self, folder: Path, settings: Settings, info: RunInfo, vocabulary: Vocabulary, model: TwoBranch):
        self.folder, self.settings, self.info, self.model = folder, settings, info, model
        self.reader = TextProcessor(vocabulary, settings.text, info.encoder_digest)

    @classmethod
    def open(cls, folder: Path | str) -> "Run":
        """Raises BadInput if `folder` is no run, or one whose training has not finished."""
        folder = Path(folder)
        settings, info = read_run_config(folder)
        if not (folder / RESULT).is_file():
            raise BadInput(f"{folder}: its training has not finished; repeat the train.py command and it continues")
        vocabulary = Vocabulary.load(folder / VOCABULARY)
        model = new_model(settings, info, len(WordIndex(vocabulary, settings.text.stem, settings.text.min_count)))
        load_weights(model, folder / MODEL)
        return cls(folder, settings, info, vocabulary, model.eval())

    @cached_property
    def backbone_attributes(self) -> list[dict[str, Any]]:
        """What each of its features was made with, as its store says."""
        if self.info.backbones:
            return list(self.info.backbones)
        stores = map(Prepared(self.info.data).store, self.info.features)  # a run of an earlier version
        return [{**store.attributes, "dtype": store.dtype} for store in stores]

    @cached_property
    def backbones(self) -> "list[Backbone]":
        """The frozen networks of its features, loaded when the first photograph comes."""
        from features.images.backbones import reopen

        return [reopen(attributes) for attributes in self.backbone_attributes]

    def embed_images(self, paths: Sequence[Photograph]) -> np.ndarray:
        """N photographs (paths or open files) → (N, dim) float32. Raises BadInput for one that cannot be read."""
        rows = []
        for place, row in self.embed_readable(paths, batch=max(1, min(16, len(paths)))):
            if isinstance(row, str):
                name = paths[place] if isinstance(paths[place], str | Path) else "the image"
                raise BadInput(f"{name}: cannot be read ({row}); mend it, or leave it out")
            rows.append(row)
        return np.stack(rows) if rows else np.empty((0, self.settings.embed_dim), np.float32)

    def embed_readable(
        self, paths: Sequence[Photograph], batch: int = 16, workers: int = 0
    ) -> Iterator[tuple[int, np.ndarray | str]]:
        """For each of many photographs in turn: its place, and its embedding (dim,) float32 or why it cannot be read.

        The frozen networks see `batch` at a time; `workers` processes decode beside them.
        """
        from features.images.extract import features_of

        streams = [features_of(paths, backbone, batch=batch, workers=workers) for backbone in self.backbones]
        dtypes = [attributes["dtype"] for attributes in self.backbone_attributes]
        normalize = self.settings.image.normalize
        together = zip(*streams, strict=True)
        while group := list(islice(together, batch)):
            sound = [pieces for pieces in group if all(isinstance(row, np.ndarray) for _, row in pieces)]
            rows: Iterator[np.ndarray] = iter(())
            if sound:  # as the stores keep them, then joined as for training
                parts = [
                    np.stack([pieces[i][1] for pieces in sound]).astype(d).astype(np.float32)
                    for i, d in enumerate(dtypes)
                ]
                rows = iter(self.embed_features(join_features(parts, normalize)))
            for (place, first), *others in group:
                reason = next((row for row in (first, *(row for _, row in others)) if isinstance(row, str)), None)
                yield place, reason if reason is not None else next(rows)

    def embed_features(self, features: np.ndarray | FeatureMaps) -> np.ndarray:
        """(N, D) joined features or maps, as Prepared.split gives them → (N, dim) float32."""
        return embed_features(self.model, features).cpu().numpy()

    def embed_sentences(self, sentences: Sequence[str]) -> np.ndarray:
        """N sentences → (N, dim) float32."""
        return embed_sentences(self.model, self.reader.read(sentences)).cpu().numpy()

    def embed_captions(self, data: Prepared, split: str) -> np.ndarray:
        """The captions of a split in the order of `data.split(split, …)` → (M, dim) float32.

        A frozen sentence encoder need not run again: its features are read from where prep.py cached them.
        """
        captions = [caption for row in data.rows if row["split"] == split for caption in row["captions"]]
        features, text = None, self.settings.text
        if text.encoder and not text.finetune:
            check_encoder(data.text_store(text.encoder), self.info.encoder_digest, self.folder)
            features = data.sentence_features(split, text.encoder, text.encoder_pooling)
        return embed_sentences(self.model, self.reader.read(captions, features)).cpu().numpy()

    def unknown_words(self, sentence: str) -> list[str]:
        """The words of a sentence that its text branch has no number for."""
        return self.reader.unknown_words(sentence)

    def knows(self, sentence: str) -> bool:
        """Whether the text branch knows one word of the sentence at least."""
        return self.reader.knows(sentence)

    def digest(self) -> str:
        """Sixteen hexadecimal digits that differ when the weights, the settings or the features differ."""
        info = self.info
        total = hashlib.sha256((self.folder / MODEL).read_bytes())
        total.update(f"{self.settings.digest()} {info.features} {info.digests}".encode())
        return total.hexdigest()[:16]

    def result(self) -> dict[str, Any]:
        return read_json(self.folder / RESULT, "train the run again with --fresh")


def check_encoder(store: TextStore, digest: str, folder: Path) -> None:
    """Raises BadInput unless the sentence features are of the weights that the run in `folder` was trained with."""
    if store.attributes["digest"] != digest:
        raise BadInput(
            f"{store.path}: holds sentence features of other weights than {folder} was trained with; "
            f"name the right folder with --data, or train again"
        )


def load_weights(model: TwoBranch, path: Path) -> None:
    remedy = "train the run again with --fresh"
    try:
        model.load_state_dict(safetensors.torch.load(path.read_bytes()))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; {remedy}") from None
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"{path}: cut short, or not the weights of this recipe ({reason}); {remedy}") from None


@torch.inference_mode()
def embed_features(model: TwoBranch, features: np.ndarray | FeatureMaps) -> Tensor:
    """(N, D) float32 or maps → (N, dim) on the model's device, in blocks. The model must be in eval mode."""
    height = max(1, min(ROWS_PER_BATCH, BATCH_BYTES // (4 * math.prod(features.shape[1:]))))
    blocks = (features[start : start + height] for start in range(0, len(features), height))
    parts = [model.embed_images(torch.from_numpy(np.ascontiguousarray(block)).to(device())) for block in blocks]
    return torch.cat(parts) if parts else torch.empty(0, 0)


@torch.inference_mode()
def embed_sentences(model: TwoBranch, sentences: Sentences) -> Tensor:
    """N sentences → (N, dim) on the model's device, those of like length together. The model must be in eval mode."""
    lengths = (sentences.tokens or sentences).lengths
    order = np.argsort(lengths, kind="stable")
    height = ROWS_PER_BATCH if sentences.tokens is None else SENTENCES_PER_BATCH
    parts = [model.embed_sentences(sentences.take(order[i : i + height])) for i in range(0, len(order), height)]
    if not parts:
        return torch.empty(0, 0)
    embedded = torch.cat(parts)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return embedded[torch.from_numpy(back).to(embedded.device)]


def run_folders(root: Path) -> list[Path]:
    """Run folders under `root`, finished or not, the newest first."""
    found = [path.parent for path in root.glob(f"*/{RECIPE}")]
    return sorted(found, key=lambda folder: (-_last_change(folder), folder.name))


def newest_run(root: Path) -> Path:
    """The finished run under `root` that was written last."""
    finished = [folder for folder in run_folders(root) if (folder / RESULT).is_file()]
    if not finished:
        raise BadInput(f"{root}: holds no finished run; run train.py first, or name a run folder")
    return finished[0]


def _last_change(folder: Path) -> float:
    return max(path.stat().st_mtime for path in folder.iterdir())


def find_runs(patterns: Sequence[str], root: Path) -> Iterator[Path]:
    """Run folders named by paths, by names under `root`, or by patterns such as 'runs/*'. Each once, in order."""
    seen = set()
    for pattern in patterns:
        found = _matches(pattern, root)
        if not found:
            known = [folder.name for folder in run_folders(root)]
            if any(letter in pattern for letter in "*?["):
                there = f"{root} holds {len(known)} runs, such as {min(known)}" if known else f"{root} holds no run"
                raise BadInput(
                    f"{pattern}: no run matches; looked for folders of that pattern with a {RECIPE} in {Path.cwd()}; "
                    f"{there}"
                )
            hint = did_you_mean(Path(pattern).name, known) if known else f"{root} holds no run: train one with train.py"
            raise BadInput(f"{pattern}: no such run folder, here or under {root}; {hint}")
        for folder in found:
            if folder.resolve() not in seen:
                seen.add(folder.resolve())
                yield folder


def _matches(pattern: str, root: Path) -> list[Path]:
    for path in (Path(pattern), root / pattern):
        if path.is_dir():
            return [path]
        base, glob = (Path(path.anchor), path.relative_to(path.anchor)) if path.is_absolute() else (Path(), path)
        found = sorted(hit for hit in base.glob(str(glob)) if (hit / RECIPE).is_file())
        if found:
            return found
    return []
