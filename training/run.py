"""The run folder runs/RUN/: what train.py leaves, and all that is needed to embed images and sentences with it.

recipe.toml         every setting, resolved, and under [run] what it was trained on, and the format of the whole folder
model.safetensors   the weights that were best on val
vocabulary.json     a copy of the dataset's: a run stands alone
log.jsonl           one line per epoch
bank.safetensors    embeddings of training data, and what they correct scores with (training/bank.py)
last.pt             all that resuming needs; plain tensors and numbers, loads with weights_only=True
result.json         the metrics on val; it appears when training is over
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tomli_w

from features.format import check_format
from features.images.files import ImageFile
from features.text.sentences import TextProcessor, as_sentences
from features.text.vocabulary import Sentences, Vocabulary, tokenize
from reading import open_regular, read_json, typed
from settings import LARGE, Settings, TextSettings, from_table, read_toml, to_table
from utils import BadInput, atomic_write, did_you_mean, digest_text, make_folder

if TYPE_CHECKING:  # torch is imported where it is used: a search for a sentence may do without (training/bag.py)
    from features.images.backbones import Backbone
    from features.images.decode import ImageSource
    from features.images.views import Features
    from features.prepared import Prepared
    from model import TwoBranch

RECIPE, MODEL, VOCABULARY = "recipe.toml", "model.safetensors", "vocabulary.json"
FORMAT = 1  # of the folder; a recipe.toml that says none is of the first
LOG, LAST, RESULT = "log.jsonl", "last.pt", "result.json"
MAX_QUOTED_CHARS = 200  # of a sentence in an error
AGAIN = "train the run again with `fresh`"


@dataclass(frozen=True)
class RunInfo:
    """What a run was trained on. `digests`, `sizes` and `backbones` belong to `features`, one each."""

    recipe: str
    dataset: str
    data: str  # the prepared folder
    features: tuple[str, ...]
    digests: tuple[str, ...]
    sizes: tuple[int, ...]  # of spatial maps, their channels
    seed: int
    captions: str  # digest of images, splits, captions and stemmer
    backbones: tuple[dict[str, Any], ...]  # what each of `features` was made with, as its store says
    grid: tuple[int, ...] = ()  # (H, W) of spatial maps
    encoder_digest: str = ""  # of the transformer in the text branch, and
    encoder_size: int = 0  # the size of its features
    from_run: str = ""  # the run that it began with, if any, and
    from_digest: str = ""  # what tells it from others

    def check(self) -> None:
        """Raise ValueError if numbers or names are such as no run has."""
        numbers = (*self.sizes, *self.grid, self.encoder_size + 1)
        counts = {len(self.features), len(self.digests), len(self.sizes)}
        made = all(known.get("dtype") in ("float16", "float32") for known in self.backbones)
        named = all(map(str.isprintable, (self.recipe, self.dataset, *self.features)))
        sized = all(1 <= number <= LARGE for number in numbers) and 0 <= self.seed < 2**32
        if not (named and sized and made and len(counts) == 1 and len(self.grid) in (0, 2)):
            raise ValueError("names, sizes or features that no run has")

    def run_name(self, settings: Settings) -> str:
        """Return the name of the run's folder. The prepared folder stands for the dataset: there may be two of one."""
        digest = settings.digest()
        digest = digest_text(f"{digest} {self.from_digest}")[:8] if self.from_digest else digest
        parts = (self.recipe, Path(self.data).name, "+".join(self.features), str(self.seed), digest)
        return "-".join(parts)


@dataclass(frozen=True)
class RunPlan:
    """A run to be trained."""

    folder: Path
    settings: Settings
    info: RunInfo


def create_run(plan: RunPlan, vocabulary: Vocabulary) -> None:
    """Write what a run needs before its first epoch. recipe.toml comes last: with it the folder is a run."""
    make_folder(plan.folder, "runs")
    vocabulary.save(plan.folder / VOCABULARY)
    write_run_config(plan.folder, plan.settings, plan.info)


def write_run_config(folder: Path, settings: Settings, info: RunInfo) -> None:
    """Write recipe.toml: the settings of a run, and what it was trained on."""
    run = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(info).items()}
    with atomic_write(folder / RECIPE, "wb") as file:
        tomli_w.dump({"run": {"format": FORMAT, **run}, **to_table(settings)}, file)


def read_run_config(folder: Path) -> tuple[Settings, RunInfo]:
    """Read the settings of a run folder, and what it was trained on. Raises BadInput if it is none."""
    path = folder / RECIPE
    if not path.is_file():
        raise BadInput(f"{folder}: not a run folder (no {RECIPE}); train one with train.py, or name another")
    table = read_toml(path, AGAIN)
    try:
        run: dict[str, Any] = table.pop("run")
        check_format(path, run.pop("format", 1), FORMAT, AGAIN)
        info = typed(RunInfo, run)
        info.check()
    except (KeyError, TypeError, AttributeError, ValueError):
        raise BadInput(f"{path}: not the recipe of a run of this version; {AGAIN}") from None
    return from_table(table, str(path)), info


def check_same(plan: RunPlan) -> None:
    """Raise BadInput unless the plan's folder was begun with the same settings, features and captions."""
    settings, info = read_run_config(plan.folder)
    start_over = "start over with `fresh`, or give another folder with `runs`"
    for name, was, now in zip(info.features, info.digests, plan.info.digests, strict=False):
        if was != now:
            raise BadInput(
                f"{plan.folder}: was trained on {name} features of other weights than {plan.info.data} holds now; "
                f"{start_over}"
            )
    if info.captions != plan.info.captions:
        raise BadInput(
            f"{plan.folder}: was trained on other captions or splits than {plan.info.data} holds now; {start_over}"
        )
    if info.encoder_digest != plan.info.encoder_digest:
        raise BadInput(
            f"{plan.folder}: was trained with another text encoder under the name {plan.settings.text.encoder}; "
            f"{start_over}"
        )
    if info.from_digest != plan.info.from_digest:
        raise BadInput(f"{plan.folder}: was begun with another run, or with none; {start_over}")
    same_shape = (info.sizes, info.grid) == (plan.info.sizes, plan.info.grid)
    if not same_shape or settings.digest() != plan.settings.digest():
        raise BadInput(f"{plan.folder}: was begun with other settings or features; start over with `fresh`")


def encoding_settings(text: TextSettings) -> dict[str, Any]:
    """Return the settings of a text branch that decide what it takes, as TextProcessor's arguments."""
    names = ("stem", "min_count", "encoder", "encoder_pooling", "finetune")
    return {name: getattr(text, name) for name in names}


def check_finished(folder: Path) -> None:
    """Raise BadInput unless the training of a run has finished."""
    if not (folder / RESULT).is_file():
        raise BadInput(f"{folder}: its training has not finished; repeat the train.py command and it continues")


class Run:
    """A finished run, open for embedding.

    >>> run = Run.open("runs/strong-scenes-efficientnet_lite0-0-1a2b3c4d")  # doctest: +SKIP
    >>> run  # doctest: +SKIP
    Run('runs/strong-scenes-efficientnet_lite0-0-1a2b3c4d': strong, trained on scenes, efficientnet_lite0 and \
    52 stems → 1,024 dimensions, cosine)
    >>> run.embed_sentences(["a dog runs on the beach", "a red car"]).shape  # doctest: +SKIP
    (2, 1024)
    """

    def __init__(self, folder: Path, settings: Settings, info: RunInfo, vocabulary: Vocabulary):
        self.folder, self.settings, self.info, self.vocabulary = folder, settings, info, vocabulary
        self.processor = TextProcessor(vocabulary, **encoding_settings(settings.text), digest=info.encoder_digest)

    @classmethod
    def open(cls, folder: Path | str) -> "Run":
        """Open a run folder, or hub:USER/NAME@REVISION, a run on the Hugging Face hub.

        Raises BadInput if `folder` is no run, or one whose training has not finished.
        """
        folder = local_folder(folder)
        settings, info = read_run_config(folder)
        check_finished(folder)
        run = cls(folder, settings, info, Vocabulary.load(folder / VOCABULARY))
        run.read_weights()
        return run

    def read_weights(self) -> object:
        """Read what embeds, so that what is wrong with it is said now; return it."""
        return self.model

    @cached_property
    def model(self) -> "TwoBranch":
        """Both branches, in eval mode."""
        from training.checkpoint import load_model
        from training.embed import new_model

        path = self.folder / MODEL
        load_model(path, model := new_model(self.settings, self.info, self.vocabulary, path))
        return model.eval()

    def __repr__(self) -> str:
        text = self.settings.text
        words = "" if text.finetune else f"{len(self.processor.words) - 1:,} {'stems' if text.stem else 'words'}"
        sides = f"{' + '.join(self.info.features)} and {' + '.join(filter(None, [words, text.encoder]))}"
        space = f"{self.settings.embed_dim:,} dimensions, {self.settings.similarity}"
        return f"Run({str(self.folder)!r}: {self.info.recipe}, trained on {self.info.dataset}, {sides} → {space})"

    @cached_property
    def backbones(self) -> "list[Backbone]":
        """The frozen networks of its features, loaded when the first image comes."""
        from features.images.backbones import reopen

        return [reopen(attributes) for attributes in self.info.backbones]

    def embed_images(self, images: "ImageSource | Iterable[ImageSource]") -> np.ndarray:
        """Embed N images (paths, open files, images of PIL), or one alone → (N, embed_dim) float32.

        Raises BadInput for one that is none, or unreadable.
        """
        from features.images.decode import as_images

        given, rows = as_images(images), []
        for index, row in self.embed_readable(given, batch=max(1, min(16, len(given)))):
            if isinstance(row, str):
                number = f"image {index + 1} of {len(given)}" if len(given) > 1 else "the image"
                name = given[index] if isinstance(given[index], str | ImageFile) else number
                raise BadInput(f"{name}: cannot be read ({row}); mend it, or leave it out")
            rows.append(row)
        return np.stack(rows) if rows else np.empty((0, self.settings.embed_dim), np.float32)

    def embed_readable(
        self, paths: "Sequence[ImageSource]", batch: int = 16, workers: int = 0
    ) -> Iterator[tuple[int, np.ndarray | str]]:
        """Embed many images; yield of each in turn its index, and its embedding (embed_dim,) or why it is unreadable.

        batch: images that the frozen networks see at a time, by the quicker engine where there are many; workers:
        processes that decode beside them.
        """
        from features.images.engine import image_engine
        from features.images.extract import features_of
        from features.images.views import join_features

        streams = [
            features_of(
                paths,
                backbone,
                batch=batch,
                workers=workers,
                engine=image_engine(backbone, len(paths), batch=batch),
            )
            for backbone in self.backbones
        ]
        dtypes = [attributes["dtype"] for attributes in self.info.backbones]
        together = zip(*streams, strict=True)
        while group := list(islice(together, batch)):
            readable = [pieces for pieces in group if all(isinstance(row, np.ndarray) for _, row in pieces)]
            rows: Iterator[np.ndarray] = iter(())
            if readable:  # as the stores keep them, then joined as for training
                parts = [
                    np.stack([pieces[i][1] for pieces in readable]).astype(dtype).astype(np.float32)
                    for i, dtype in enumerate(dtypes)
                ]
                rows = iter(self.embed_features(join_features(parts, self.settings.image.normalize)))
            for pieces in group:
                reason = next((row for _, row in pieces if isinstance(row, str)), None)
                yield pieces[0][0], reason if reason is not None else next(rows)

    def embed_features(self, features: "Features") -> np.ndarray:
        """Embed joined features (N, D), views or maps, as Prepared.split gives them → (N, embed_dim) float32."""
        from training.embed import embed_features

        return embed_features(self.model, features).cpu().numpy()

    def embed_sentences(self, sentences: str | Iterable[str], check: bool = True) -> np.ndarray:
        """Embed N sentences, or one alone → (N, embed_dim) float32.

        Words that the text branch has no number for are left out (`unknown_words`); raises BadInput for a sentence of
        which nothing is left, whose embedding says nothing. Without `check` it is embedded all the same, as for ranks.
        """
        texts = known_sentences(sentences, self.knows) if check else as_sentences(sentences)
        return self._embed(self.processor.encode(texts))

    def _embed(self, sentences: Sentences) -> np.ndarray:
        from training.embed import embed_sentences

        rows = embed_sentences(self.model, sentences).cpu().numpy()
        return rows if len(rows) else np.empty((0, self.settings.embed_dim), np.float32)

    def embed_captions(self, data: "Prepared", split: str) -> np.ndarray:
        """Embed the M captions of a split in the order of `data.split(split, …)` → (M, embed_dim) float32.

        A frozen sentence encoder need not run again: its features are read from where prep.py cached them. Raises
        BadInput if they are of other weights than the run was trained with.
        """
        captions = [caption for row in data.rows if row["split"] == split for caption in row["captions"]]
        features, text = None, self.settings.text
        if text.encoder and not text.finetune:
            store = data.text_store(text.encoder)
            if store.attributes["digest"] != self.info.encoder_digest:
                raise BadInput(
                    f"{store.path}: holds sentence features of other weights than {self.folder} was trained with; "
                    f"name the right folder with `data`, or train again"
                )
            features = data.sentence_features(split, text.encoder, text.encoder_pooling)
        return self._embed(self.processor.encode(captions, features))

    def unknown_words(self, sentence: str) -> list[str]:
        """Return the words of a sentence that its text branch has no number for."""
        return self.processor.unknown_words(sentence)

    def knows(self, sentence: str) -> bool:
        """Return whether the text branch knows one word of the sentence at least."""
        return self.processor.knows(sentence)

    def digest(self) -> str:
        """Return sixteen hexadecimal digits that differ when the weights, the settings or the features differ."""
        with open_regular(self.folder / MODEL) as file:
            total = hashlib.sha256(file.read())
        total.update(f"{self.settings.digest()} {self.info.features} {self.info.digests}".encode())
        return total.hexdigest()[:16]

    def result(self) -> dict[str, Any]:
        """Read result.json."""
        return read_result(self.folder)


def read_result(folder: Path) -> dict[str, Any]:
    """Read the metrics of a run on val. Raises BadInput if it has none, or not those of a run."""
    result, about = read_json(folder / RESULT, AGAIN), ("rsum", "best_epoch", "epochs")
    if not isinstance(result, dict) or not all(type(result.get(name)) in (int, float) for name in about):
        raise BadInput(f"{folder / RESULT}: not the result of a training; {AGAIN}")
    return result


def known_sentences(sentences: str | Iterable[str], knows: Callable[[str], bool]) -> list[str]:
    """Return sentences as a list, one alone as a list of one. Raises BadInput for one that `knows` says no to."""
    texts = as_sentences(sentences)
    for text in texts:
        if not knows(text):
            words = f"the run knows none of its words ({', '.join(tokenize(text)) or 'it holds none'})"
            why = words if text.strip() else "an empty sentence"
            raise BadInput(f"{text[:MAX_QUOTED_CHARS]!r}: {why}; use words of its training captions, or leave it out")
    return texts


def local_folder(name: Path | str) -> Path:
    """Return a run's folder; of one on the Hugging Face hub, hub:USER/NAME, that of the hub's cache, downloaded."""
    from training.hub import download_run, is_hub

    return download_run(name) if is_hub(name) else Path(name)


def run_folders(root: Path) -> list[Path]:
    """Return the run folders under `root`, finished or not, the newest first."""
    folders = [path.parent for path in root.glob(f"*/{RECIPE}")]
    changed = {folder: max(path.stat().st_mtime for path in folder.iterdir()) for folder in folders}
    return sorted(folders, key=lambda folder: (-changed[folder], folder.name))


def newest_run(root: Path | str) -> Path:
    """Return the finished run under `root` that was written last. Raises BadInput if there is none."""
    finished = [folder for folder in run_folders(Path(root)) if (folder / RESULT).is_file()]
    if not finished:
        raise BadInput(f"{root}: holds no finished run; run train.py first, or name a run folder")
    return finished[0]


def find_runs(patterns: Sequence[str], root: Path) -> Iterator[Path]:
    """Yield run folders named by paths, by names under `root`, by patterns such as 'runs/*', or by the recipe of runs
    under `root`, or hub:USER/NAME. Each once, in order."""
    seen = set()
    for pattern in patterns:
        matches = [local_folder(pattern)] if pattern.startswith("hub:") else _matches(pattern, root)
        if not matches:
            raise BadInput(f"{pattern}: {_no_match(pattern, root)}")
        for folder in matches:
            if folder.resolve() not in seen:
                seen.add(folder.resolve())
                yield folder


def _matches(pattern: str, root: Path) -> list[Path]:
    for path in (Path(pattern), root / pattern):
        if path.is_dir():
            return [path]
        base, glob = (Path(path.anchor), path.relative_to(path.anchor)) if path.is_absolute() else (Path(), path)
        matches = sorted(match for match in base.glob(str(glob)) if (match / RECIPE).is_file())
        if matches:
            return matches
    return [] if "/" in pattern else sorted(path.parent for path in root.glob(f"{pattern}-*/{RECIPE}"))


def _no_match(pattern: str, root: Path) -> str:
    known = [folder.name for folder in run_folders(root)]
    if any(letter in pattern for letter in "*?["):
        content = f"{root} holds {len(known)} runs, such as {min(known)}" if known else f"{root} holds no run"
        return f"no run matches; looked for folders of that pattern with a {RECIPE} in {Path.cwd()}; {content}"
    hint = did_you_mean(Path(pattern).name, known) if known else f"{root} holds no run: train one with train.py"
    return f"no such run folder, here or under {root}; {hint}"
