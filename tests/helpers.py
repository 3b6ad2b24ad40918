"""What several test files need: drawn images, made-up data, a run without a network, small random transformers."""

import hashlib
import json
import multiprocessing
import os
import sys
import time
import tomllib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from PIL import Image, ImageDraw
from PIL import Image as PILImage
from torch import Tensor, nn

from features.datasets.dataset import Dataset
from features.datasets.dataset import Image as DatasetImage
from features.images.backbones import Backbone
from features.images.decode import Unreadable, as_images, jpeg_bytes, read_image, thumbnail
from features.images.store import write_store
from features.prepared import Split, write_prepared
from features.text.sentences import TextProcessor
from features.text.vocabulary import Vocabulary, tokenize
from retrieval.build import THUMBNAIL_PIXELS
from script import run_script
from settings import Settings, override
from training import fill_bank, sweep, trainer
from training.run import RunInfo, RunPlan, encoding_settings, known_sentences
from utils import BadInput

ROOT = Path(__file__).resolve().parents[1]
FLICKR8K = ROOT.parent / "shared" / "data" / "flickr8k"

# Scripts on drawn images

COLORS = {"red": (220, 30, 30), "green": (20, 160, 40), "blue": (30, 60, 220), "yellow": (240, 220, 20)}


SHAPES = {"circle": "ellipse", "square": "rectangle"}


def draw_images(folder, count=24):
    """Images of one shape in one color, and a CSV of their captions; returns the CSV."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = ["image,caption,split"]
    for number in range(count):
        color = rng.choice(list(COLORS))
        shape = rng.choice(list(SHAPES))
        image = Image.new("RGB", (64, 64), "white")
        x, y, r = rng.integers(20, 44), rng.integers(20, 44), rng.integers(8, 18)
        getattr(ImageDraw.Draw(image), SHAPES[shape])((x - r, y - r, x + r, y + r), COLORS[color])
        image.save(folder / "images" / f"{number}.png")
        split = ("train", "train", "val", "test")[number % 4]
        lines.append(f"{number}.png,a {color} {shape},{split}")
        lines.append(f'{number}.png,"a {shape}, painted {color}",{split}')
    path = folder / "captions.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def train_drawn(folder, *trainings):
    """Draw images into a folder, prepare them, and train on them: a recipe each, and settings or options more."""
    import prep
    import train

    draw_images(folder)
    data = ["--data", folder / "data/folder", "--runs", folder / "runs"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fill_bank, "MIN_IMAGES", 1)  # so few of val make a curve, too
        assert call(patch, prep, *prep_args(folder)) == 0
        for recipe, *more in trainings:
            assert call(patch, train, recipe, *data, *QUICK, *more) == 0
    return folder


def draw_flickr8k(folder, count=12):
    """Flickr8k's files in small: folder/Flicker8k_Dataset, and folder/Flickr8k_text with captions and three lists."""
    draw_images(folder / "drawn", count)
    images, text = folder / "Flicker8k_Dataset", folder / "Flickr8k_text"
    images.mkdir(parents=True)
    lines, lists = [], {"train": "", "dev": "", "test": ""}
    for number in range(count):
        name = "3385593926_d3e9c21170.jpg" if number == 0 else f"{number}.jpg"
        Image.open(folder / f"drawn/images/{number}.png").save(images / name)
        lines += [f"{name}#{n}\tA {shape} {n} of image {number} ." for n, shape in enumerate(SHAPES)]
        lists[("train", "train", "dev", "test")[number % 4]] += f"{name}\n"
    write(text / "Flickr8k.token.txt", "\n".join(lines) + "\n")
    for part, ids in lists.items():
        write(text / f"Flickr_8k.{part}Images.txt", ids)


def call(monkeypatch, module, *args):
    """Run a script's main as the command line would; returns the exit status (0 for a normal end)."""
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, args)])
    try:
        run_script(module.main)
    except SystemExit as end:
        return end.code or 0
    return 0


@contextmanager
def interrupted(monkeypatch, steps):
    """Training ends as by Ctrl-C after `steps` steps."""
    left, step = iter(range(steps)), trainer.Trainer.train_step

    def stopping(*args):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "train_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            yield


def prep_args(folder, *more):
    data = ["--images", folder / "images", "--captions", folder / "captions.csv", "--data", folder / "data"]
    return ["folder", *data, "--workers", 0, *more]


QUICK = ["--set", "training.epochs=2", "training.batch_size=8", "embed_dim=32"]


def copy_of(run, to, **info):
    """A copy of a run folder that says something else of itself."""
    to.mkdir(parents=True)
    for path in run.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    table = tomllib.loads((run / "recipe.toml").read_text())
    table["run"].update(info)
    (to / "recipe.toml").write_text(tomli_w.dumps(table))
    return to


# Caption files


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8", newline="")
    return path


def karpathy(name="flickr8k"):
    words = ["test", "train", "restval", "val", "train"]
    return {
        "dataset": name,
        "images": [
            {
                "filename": f"{n}.jpg",
                "split": word,
                "imgid": n,
                "sentences": [{"raw": f"View  {n}.", "tokens": ["view"]}, {"tokens": ["a", "view"]}],
            }
            for n, word in enumerate(words)
        ],
    }


def vsepp(folder, repeat=1, width=3, each=2):
    folder.mkdir(exist_ok=True)
    for part, count in (("train", 4), ("dev", 2), ("test", 3)):
        ims = np.arange(count * width, dtype=np.float32).reshape(count, width)
        np.save(folder / f"{part}_ims.npy", np.repeat(ims, repeat, axis=0))
        write(folder / f"{part}_caps.txt", "".join(f"{part} {n // each} {n}\n" for n in range(count * each)))
    return folder


# Training on made-up data

SMALL = {
    "embed_dim": 16,
    "text.word_dim": 8,
    "text.dropout": 0.2,
    "image.dropout": 0.2,
    "training.batch_size": 16,
    "training.epochs": 4,
    "training.lr": 0.01,
    "training.grad_clip": 2.0,
}


MADE_UP_WORDS = ["red", "green", "blue", "dog", "cat", "house", "tree", "car", "big", "small"]


def made_up_data(size=12):
    """Images whose features say which words their captions hold, so that there is something to learn."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(len(MADE_UP_WORDS), size)).astype(np.float32)
    splits = {}
    for name, images in (("train", 60), ("val", 20)):
        bags = [rng.choice(len(MADE_UP_WORDS), 3, replace=False) for _ in range(images)]
        features = np.stack([mixing[bag].sum(0) for bag in bags]) + 0.1 * rng.normal(size=(images, size))
        captions, owner = [], []
        for image, bag in enumerate(bags):
            for _ in range(rng.integers(1, 4)):
                captions.append(" ".join(MADE_UP_WORDS[i] for i in rng.permutation(bag)[: rng.integers(2, 4)]))
                owner.append(image)
        ids = [f"{name}{i}" for i in range(images)]
        splits[name] = Split(name, ids, captions, np.array(owner), features.astype(np.float32))
    return splits


def made_up_folder(  # noqa: PLR0913 (what a test may change)
    folder, dataset="folder", prefix="", digest="1", splits=None, others=(), count=None, say=str, language="english"
):
    """A prepared folder of made-up images, those of each split taken from `splits`, the first `count[split]` of them.

    `others` have other features; say: what becomes of a caption.
    """
    folder.mkdir(parents=True)
    images, rows, made = [], [], made_up_data()
    for split, source in (splits or {"train": "train", "val": "val", "test": "val"}).items():
        for number, image in enumerate(made[source].images[: (count or {}).get(split)]):
            name = f"{prefix}{image if source == 'train' else f'{split}-{image}'}"
            pairs = zip(made[source].captions, made[source].image_of_caption, strict=True)
            captions = tuple(say(caption) for caption, row in pairs if row == number)
            images.append(DatasetImage(name, None, split, captions))
            rows.append(made[source].features[number] + 5 * (name in others))
    words = [caption for image in images if image.split == "train" for caption in image.captions]
    write_prepared(folder, Dataset(dataset, tuple(images)), None, Vocabulary.build(words, language))
    about: dict[str, str | int] = {"backbone": "one", "layer": "precomputed", "digest": digest, "transform": ""}
    write_store(folder / "one.h5", [i.id for i in images], (12,), "float32", {**about, "weights": ""}, [np.stack(rows)])
    return folder


def train_small(folder, seed=0, digest="d", captions="", fresh=False, on_epoch=lambda epochs, line: None, **changes):
    plan, data = plan_small(folder, seed, digest, captions, **changes)
    return sweep.train(plan, data, fresh, on_epoch, progress=False)


def plan_small(folder, seed=0, digest="d", captions="", **changes):
    """A run to be trained on made-up data, and that data."""
    settings = override(Settings(), {**SMALL, **{key.replace("__", "."): value for key, value in changes.items()}})
    info = RunInfo("test", "made-up", "nowhere", ("features",), (digest,), (12,), seed, captions, ())
    splits = made_up_data()
    captions_of_train, text = splits["train"].captions, settings.text
    vocabulary = Vocabulary.build(captions_of_train).with_bigrams(captions_of_train, text.stem, text.bigrams)
    processor = TextProcessor(vocabulary, **encoding_settings(settings.text))
    sentences = {name: processor.encode(split.captions) for name, split in splits.items()}
    return RunPlan(folder, settings, info), trainer.TrainingData(vocabulary, splits, sentences)


# A backbone of eight numbers


class Network(nn.Module):
    """Eight numbers per image, by a convolution; counts the batches it has seen and may dawdle over them."""

    def __init__(self, seed: int = 0, dawdle: float = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.convolution = nn.Conv2d(3, 8, 5)
        self.batches: list[torch.Size] = []
        self.dawdle = dawdle

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        self.batches.append(pixels.shape)
        time.sleep(self.dawdle)
        return self.convolution(pixels).relu().mean((2, 3))


def see(image: PILImage.Image) -> Tensor:
    return torch.from_numpy(np.array(image.resize((16, 16)))).permute(2, 0, 1) / 255


def tiny_backbone(seed: int = 0, dawdle: float = 0, transform: str = "resize 16", factor: float = 1) -> Backbone:
    network = Network(seed, dawdle)
    with torch.no_grad():
        network.convolution.weight *= factor
    return Backbone("tiny", "end", "tiny", network, see, transform, f"digest {seed}", f"seed {seed}", (8,))


def make_images(folder: Path, count: int) -> list[DatasetImage]:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        path = folder / f"{number:03}.png"
        if not path.exists():
            noise = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
            PILImage.fromarray(noise).save(path)
    return [DatasetImage(f"{n:03}", folder / f"{n:03}.png", "train", ("a caption",)) for n in range(count)]


# A run without a network

DIM = 24
WORDS = {"a", "red", "house", "dog", "cat", "picture", "of", "two", "pictures", "one", "caption", *map(str, range(20))}


def small_jpeg(path):
    """The thumbnail that an index keeps of an image."""
    image = thumbnail(path, THUMBNAIL_PIXELS)
    assert image is not None
    return jpeg_bytes(image, THUMBNAIL_PIXELS)


def paint(path, seed, size=(40, 30)):
    """An image of noise that depends on the seed alone."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(path, "PNG")
    return path


@dataclass
class _FakeRun:
    """root: its folder is made below; name: stands for its weights. It embeds images by their pixels."""

    root: Path
    similarity: str = "cosine"
    name: str = "run"
    stop_after: int | None = None  # images, then it is killed

    def __post_init__(self):
        self.folder = self.root / self.name  # not there: opening it again must be asked for
        self.settings = SimpleNamespace(
            similarity=self.similarity,
            embed_dim=DIM,
            image=SimpleNamespace(normalize=True),
            text=SimpleNamespace(encoder="", finetune=False),
        )
        self.info = SimpleNamespace(
            data=str(self.root / "nowhere"),
            dataset="noise",
            features=("noise",),
            digests=("d1",),
            sizes=(DIM,),
            grid=(),
        )
        self.embedded = []
        self.processor = TextProcessor(Vocabulary.build(WORDS, "none"))

    def digest(self):
        return hashlib.sha256(f"{self.name} {self.similarity}".encode()).hexdigest()[:16]

    def unit(self, rows):
        rows = np.asarray(rows, np.float32)
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return np.abs(rows) if self.similarity == "order" else rows

    def embed_sentences(self, sentences):
        known = known_sentences(sentences, self.knows)
        seeds = [int(hashlib.sha256(sentence.encode()).hexdigest()[:8], 16) for sentence in known]
        return self.unit([np.random.default_rng(seed).normal(size=DIM) for seed in seeds])

    def embed_features(self, features):
        return self.unit(features)

    def embed_readable(self, paths, batch=16, workers=0):
        for place, path in enumerate(paths):
            if self.stop_after is not None and len(self.embedded) >= self.stop_after:
                raise KeyboardInterrupt
            try:
                pixels = np.asarray(read_image(path), np.float32).reshape(-1)[:DIM] - 127
            except Unreadable as error:
                yield place, str(error)
                continue
            self.embedded.append(path)
            yield place, self.unit(pixels[None])[0]

    def embed_images(self, paths):
        rows, paths = [], as_images(paths)
        for place, row in self.embed_readable(paths):
            if isinstance(row, str):
                raise BadInput(f"{paths[place]}: cannot be read ({row}); mend it, or leave it out")
            rows.append(row)
        return np.stack(rows)

    def unknown_words(self, sentence):
        return [word for word in tokenize(sentence) if word not in WORDS]

    def knows(self, sentence):
        return len(self.unknown_words(sentence)) < len(tokenize(sentence))

    def prepare(self, root, count, digest="d1"):
        """A prepared folder of `count` images with features, six of them for training, which is this run's own."""
        folder = root / "data"
        folder.mkdir(exist_ok=True)
        images = []
        for number in range(count):
            paint(root / "images" / f"{number}.png", number)
            captions = [f"picture {number} of a dog"] + ["two pictures of one caption"] * (number > 7)
            split = "train" if number < 6 else "val" if number < 8 else "test"
            path = root / "images" / f"{number}.png"
            images.append(DatasetImage(f"{number}.png", path, split, tuple(captions)))
        vocabulary = Vocabulary.build(caption for image in images for caption in image.captions)
        write_prepared(folder, Dataset("drawn", tuple(images)), root / "images", vocabulary)
        rows = np.random.default_rng(0).normal(size=(count, DIM)).astype(np.float32)
        ids = [image.id for image in images]
        write_store(folder / "noise.h5", ids, (DIM,), "float32", {"digest": digest}, [rows])
        self.info.data = str(folder)
        return folder


FakeRun: Any = _FakeRun  # stands for a Run wherever one is wanted


# Small random transformers of the real classes, with real tokenizers, saved as their users find them

TINY_WORDS = [
    "a",
    "the",
    "two",
    "dog",
    "dogs",
    "run",
    "runs",
    "red",
    "blue",
    "car",
    "on",
    "in",
    "of",
    "grass",
    "man",
    "s",
]
TINY_WORDS += ["jump", "##ing", "##ed", "##s", ",", ".", "!"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SENTENCES = ["a dog runs", "two dogs jumping on the grass, running!", "", "a red car", "the man in a blue car jumped."]
KINDS = ("bert", "distilbert", "albert")


def make_tiny_encoder(folder: Path | str, kind: str = "bert", seed: int = 0, places: int = 40) -> str:
    """Save a random encoder of 2 layers and 32 dimensions, `places` tokens long, and its tokenizer; the folder's name.

    kind: one of KINDS, or "gpt2" (reads from left to right, its tokenizer has no special tokens).
    """
    import transformers

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(folder, kind, places)
    size = len(SPECIAL) + len(TINY_WORDS)
    small: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    if kind == "distilbert":
        small = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
    elif kind == "gpt2":
        small = {"n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
    elif kind == "albert":
        small["embedding_size"] = 16
    names = {"bert": "Bert", "distilbert": "DistilBert", "albert": "Albert", "gpt2": "GPT2"}
    length = {"n_positions" if kind == "gpt2" else "max_position_embeddings": places}
    config = getattr(transformers, f"{names[kind]}Config")(vocab_size=size, **small, **length)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = getattr(transformers, f"{names[kind]}Model")(config)
        for parameter in module.parameters():  # the usual 0.02 makes all sentences alike
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
    module.save_pretrained(folder)
    return str(folder)


def save_tokenizer(folder: Path, kind: str, places: int) -> None:
    """bert, distilbert: a WordPiece vocab.txt, as published. albert, gpt2: a tokenizer.json."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertTokenizer, PreTrainedTokenizerFast

    if kind in ("bert", "distilbert"):
        (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *TINY_WORDS]) + "\n")
        BertTokenizer.from_pretrained(str(folder), model_max_length=places).save_pretrained(str(folder))
        return
    numbers = {word: number for number, word in enumerate([*SPECIAL, *TINY_WORDS])}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if kind == "albert":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    special: dict[str, Any] = (
        {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"} if kind == "albert" else {}
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **special)
    fast.save_pretrained(str(folder))


# Tars as img2dataset writes them


def write_tars(folder, count=12, each=5, splits=True):
    """`count` images in tars of `each`, by webdataset's own writer, with two captions and a split each."""
    wds = pytest.importorskip("webdataset")
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, count, each):
        with wds.TarWriter(str(folder / f"{start // each:05}.tar")) as writer:
            for number in range(start, min(start + each, count)):
                captions = [f"a dog {number}", "the red car"]
                split = {"split": ("train", "train", "val", "test")[number % 4]} if splits else {}
                image = paint(folder.parent / "painted" / f"{number}.png", number).read_bytes()
                row = {"key": f"{number:09}", "status": "success", "caption": captions, **split}
                writer.write({"__key__": f"{number:09}", "png": image, "txt": captions[0], "json": row})
        (folder / f"{start // each:05}_stats.json").write_text("{}")
    return folder


# clip-retrieval's folder

CLIP_DIM = 6


def clip_pairs(count, root="/data/photographs"):
    return [(f"{root}/{n // 10}/{n}.jpg", f"a dog {n} runs, {k}") for n in range(count) for k in range(2)]


def write_clip_folder(folder, pairs=None, each=7, texts=True, dtype=np.float16, **more):
    """Rows (image path, caption) in parts of `each`, as clip-retrieval writes them; more: columns of its metadata."""
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    if pairs is None:
        pairs, more = clip_pairs(16), {"split": [("train", "train", "val", "test")[n // 2 % 4] for n in range(32)]}
    rng = np.random.default_rng(0)
    of_image = {path: rng.normal(size=CLIP_DIM) for path, _ in pairs}
    of_text = rng.normal(size=(len(pairs), CLIP_DIM))
    for name in ("img_emb", "metadata", *(["text_emb"] if texts else [])):
        (folder / name).mkdir(parents=True)
    for number, start in enumerate(range(0, len(pairs), each)):
        part = pairs[start : start + each]
        np.save(folder / f"img_emb/img_emb_{number}.npy", np.array([of_image[path] for path, _ in part], dtype))
        columns = {"image_path": [path for path, _ in part]}
        if texts:
            np.save(folder / f"text_emb/text_emb_{number}.npy", of_text[start : start + each].astype(dtype))
            columns["caption"] = [caption for _, caption in part]
        columns |= {name: values[start : start + each] for name, values in more.items()}
        pandas.DataFrame(columns).to_parquet(folder / f"metadata/metadata_{number}.parquet")
    return of_image, of_text.astype(dtype)


# Datasets of Hugging Face


def hugging_face(folder, numbers, **columns):
    """A dataset of `datasets` itself: images of noise by their number, two captions each, and other columns."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = {
        "image": [str(paint(folder / "painted" / f"{number}.png", number)) for number in numbers],
        "caption": [[f"a dog {number}", "the red car"] for number in numbers],
        **columns,
    }
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


# Several processes of one command


def run_together(folder, main, *args, disturb=lambda processes: None):
    """Call a script's main in two processes as torchrun would, but forked; return their exit statuses and sentences.

    disturb: is called with the processes when they are under way.
    """
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("fork")
    said = folder / "said.txt"
    said.write_text("")
    processes = [context.Process(target=_join, args=(rank, store.port, said, main, args)) for rank in range(2)]
    for process in processes:
        process.start()
    disturb(processes)
    for process in processes:
        process.join(100)
        process.kill()
    sentences = [line for line in said.read_text().splitlines() if line.startswith("script.py: ")]
    assert "Traceback" not in said.read_text()
    return [process.exitcode for process in processes], sentences


def _join(rank, port, said, main, args):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    for stream in (1, 2):
        os.dup2(os.open(said, os.O_WRONLY | os.O_APPEND), stream)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    sys.argv = ["script.py", *map(str, args)]
    run_script(main)
