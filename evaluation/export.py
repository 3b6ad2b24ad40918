"""A run as ONNX: a graph for each branch, for programs without torch, and what it takes to make their inputs.

The graphs are the run's own layers. Only what runs over sentences of different lengths is written anew, for sentences
filled up with zeros: bags of words, and GRUs, as ONNX has them.
"""

import contextlib
import copy
import importlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evaluation.groups import finished_runs
from evaluation.share import CARD, check_alone, without_paths
from features.text.vocabulary import TOKENIZER, UNKNOWN, Vocabulary
from layers.pooling import GPO, positional_encodings
from model import AsItIs, GRUBranch, JoinedBranch, OneHotBranch, RelativeBranch, TransformerBranch, TwoBranch
from training.run import RECIPE, VOCABULARY, Run, newest_run, write_run_config
from utils import BadInput, atomic_file, atomic_write, log, make_folder, write_json

IMAGES, CAPTIONS, WORDS = "images.onnx", "captions.onnx", "words.json"
FILES = (IMAGES, CAPTIONS, WORDS, VOCABULARY, RECIPE, CARD)
PACKAGES = ("onnx", "onnxscript")
OPSET = 18
BATCH, LENGTH = 3, 5  # of the inputs that a graph is traced with; it takes others


def export(run: Sequence[str], runs: Path, out: Path) -> str:
    """Export the one run that `run` names (see `finished_runs`), or the newest; see `export_run`."""
    folders = finished_runs(run, runs) if run else [newest_run(runs)]
    if len(folders) > 1:
        raise BadInput(f"`onnx` {out}: takes one run, and {len(folders)} are named, such as {folders[0]}; name one")
    return export_run(folders[0], out)


def export_run(folder: Path, out: Path) -> str:
    """Write the branches of a finished run to `out` as ONNX, with vocabulary, recipe and a page; return what is there.

    Raises BadInput if a package is missing, the text branch trains a transformer, or `out` holds other files.

    >>> print(export_run(Path("runs/strong-scenes-efficientnet_lite0-0-1a2b3c4d"), Path("onnx")))  # doctest: +SKIP
    onnx: images.onnx, captions.onnx, words.json, vocabulary.json, recipe.toml, README.md
    """
    for package in PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError:
            raise BadInput(
                f"`onnx` {out}: needs the packages onnx and onnxscript; pip install onnx onnxscript"
            ) from None
    run = Run.open(folder)
    if run.settings.text.finetune:
        raise BadInput(
            f"{folder}: its transformer was trained with it (text.finetune), and is not written as ONNX; name a run "
            f"whose sentence encoder is frozen"
        )
    check_alone(out, FILES, "onnx")
    if (out / RECIPE).exists() and not (out / IMAGES).exists():
        raise BadInput(f"{out}: holds a run that has been begun; name a folder for the graphs alone with `onnx`")
    make_folder(out, "onnx")
    model = copy.deepcopy(run.model).cpu().eval()
    images, captions = ImageGraph(model, run), CaptionGraph(model, run)
    write_graph(out / IMAGES, images, images.inputs())
    write_graph(out / CAPTIONS, captions, captions.inputs())
    if "words" in captions.inputs():
        write_json(out / WORDS, run.processor.words.words)
    Vocabulary.load(folder / VOCABULARY).save(out / VOCABULARY)
    write_run_config(out, run.settings, without_paths(run.info))
    with atomic_write(out / CARD) as file:
        file.write(page(run, images.inputs(), captions.inputs()))
    return f"{out}: {', '.join(name for name in FILES if (out / name).is_file())}"


class ImageGraph(nn.Module):
    """Features of each backbone as it gives them, float32 → embeddings of unit length."""

    def __init__(self, model: TwoBranch, run: Run):
        super().__init__()
        self.model, self.info = model, run.info
        self.normalize = run.settings.image.normalize or len(run.info.features) > 1
        replace_gpo(model.image)

    def inputs(self) -> dict[str, Tensor]:
        """Return inputs to trace the graph with, by their names."""
        names = [f"features_{number}" for number in range(len(self.info.features))]
        return {
            name: torch.rand(BATCH, *self.info.grid, size) for name, size in zip(names, self.info.sizes, strict=True)
        }

    def forward(self, *features: Tensor) -> Tensor:
        parts = [F.normalize(part, dim=-1) if self.normalize else part for part in features]
        return self.model.embed_images(torch.cat(parts, dim=-1))


class CaptionGraph(nn.Module):
    """What the text branch takes → embeddings of unit length: numbers of words (B, longest) int64, filled up with
    zeros; for a GRU how many of them there are, (B,) int64; a sentence encoder's features (B, D) float32."""

    def __init__(self, model: TwoBranch, run: Run):
        super().__init__()
        self.model, self.size, self.num_words = model, run.info.encoder_size, len(run.processor.words)
        text = model.text
        joined = isinstance(text, JoinedBranch)
        words: Any = text.words if joined else text if isinstance(text, GRUBranch | OneHotBranch) else None
        sentence: Any = text.sentence if joined else None if words else text
        self.words, self.sentence = words, sentence
        self.gru = GRUOperator(self.words.gru) if isinstance(self.words, GRUBranch) else None
        replace_gpo(text)

    def inputs(self) -> dict[str, Tensor]:
        """Return inputs to trace the graph with, by their names."""
        inputs: dict[str, Tensor] = {}
        if self.words is not None:
            inputs["words"] = torch.randint(1, max(2, self.num_words), (BATCH, LENGTH))
        if self.gru is not None:
            inputs["lengths"] = torch.arange(LENGTH, LENGTH - BATCH, -1)
        if self.sentence is not None:
            inputs["sentence"] = torch.rand(BATCH, self.size)
        return inputs

    def forward(self, *inputs: Tensor) -> Tensor:
        """Tensors in the order of `inputs()` → (B, embed_dim)."""
        given, parts = dict(zip(self.inputs(), inputs, strict=True)), []
        words, sentence = self.words, self.sentence
        if isinstance(words, OneHotBranch):
            parts.append(bag(words, given["words"]))
        elif isinstance(words, GRUBranch):
            parts.append(self.recurrent(words, given["words"], given["lengths"]))
        if isinstance(sentence, TransformerBranch):
            features = given["sentence"] if sentence.norm is not None else F.normalize(given["sentence"], dim=1)
            parts.append(sentence.behind(features))
        elif isinstance(sentence, RelativeBranch | AsItIs):
            parts.append(sentence(given["sentence"]))
        return self.model.normalized(parts[0] if len(parts) == 1 else parts[0] + parts[1])

    def recurrent(self, branch: GRUBranch, words: Tensor, lengths: Tensor) -> Tensor:
        """Numbers of words (B, longest) through a GRU branch → (B, embed_dim)."""
        assert self.gru is not None
        embedded = branch.embedding(words)
        states, last = self.gru(embedded, lengths)
        x = last.mean(dim=0) if branch.pooling == "last" else branch.pooled(states, lengths)
        return x if branch.past is None else x + branch.past(mean_of_known(embedded, words))


def mean_of_known(embedded: Tensor, words: Tensor) -> Tensor:
    """Average (B, longest, D) over the words that are known, (B, longest) → (B, D)."""
    known = (words != UNKNOWN)[:, :, None].to(embedded.dtype)
    return (embedded * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)


def bag(branch: OneHotBranch, words: Tensor) -> Tensor:
    """Numbers of words (B, longest) through a bag → (B, embed_dim); zeros, which fill up, count for nothing."""
    embedded = F.embedding(words, branch.bag.weight)
    if branch.weighting == "mean":
        return branch.behind(mean_of_known(embedded, words))
    counts = words != UNKNOWN
    if branch.weighting == "binary":  # of equal words the first alone
        positions = torch.arange(words.shape[1])
        earlier = positions[None, :] < positions[:, None]
        counts = counts & ~((words[:, :, None] == words[:, None, :]) & earlier).any(dim=2)
    return branch.behind((embedded * counts[:, :, None].to(embedded.dtype)).sum(dim=1))


class GRUOperator(nn.Module):
    """A GRU as the operator of ONNX, which knows how long each sequence is. Outside of an export it gives zeros."""

    w: Tensor
    r: Tensor
    b: Tensor

    def __init__(self, gru: nn.GRU):
        super().__init__()
        self.size, self.directions = gru.hidden_size, 2 if gru.bidirectional else 1
        ends = ("l0", "l0_reverse")[: self.directions]
        for name, parts in {"w": ("weight_ih",), "r": ("weight_hh",), "b": ("bias_ih", "bias_hh")}.items():
            rows = [torch.cat([_gates(getattr(gru, f"{part}_{end}")) for part in parts]) for end in ends]
            self.register_buffer(name, torch.stack(rows).detach().clone())

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, longest, D), (B,) → states (B, longest, directions x size), zeros beyond the lengths, and the last ones
        (directions, B, size)."""
        batch, longest, _ = x.shape
        states, last = torch.onnx.ops.symbolic_multi_out(
            "GRU",
            (x.transpose(0, 1), self.w, self.r, self.b, lengths.to(torch.int32)),
            {
                "hidden_size": self.size,
                "direction": "bidirectional" if self.directions == 2 else "forward",
                "linear_before_reset": 1,  # as torch and cuDNN have it
            },
            dtypes=(torch.float32, torch.float32),
            shapes=((longest, self.directions, batch, self.size), (self.directions, batch, self.size)),
            version=OPSET,
        )
        return states.permute(2, 0, 1, 3).flatten(2), last


def _gates(weight: Tensor) -> Tensor:
    """Reset, update, new, as torch has them → update, reset, new."""
    reset, update, new = weight.chunk(3)
    return torch.cat([update, reset, new])


class GPOGraph(nn.Module):
    """GPO whose weights come from a GRU as the operator of ONNX."""

    def __init__(self, gpo: GPO):
        super().__init__()
        self.gpo, self.operator = gpo, GRUOperator(gpo.gru)

    def forward(self, features: Tensor, keep: Tensor) -> Tensor:
        counts = keep.sum(dim=1)
        batch, longest = features.shape[:2]  # len() would fix the size of a batch in the graph
        encodings = positional_encodings(longest, self.gpo.linear.weight).expand(batch, -1, -1)
        return self.gpo.weighted(features, keep, self.gpo.weights_of(self.operator(encodings, counts)[0], counts))


def replace_gpo(branch: nn.Module) -> None:
    """Put a GPOGraph in the place of every GPO below a module."""
    for parent in list(branch.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, GPO):
                setattr(parent, name, GPOGraph(child))


def write_graph(path: Path, graph: nn.Module, inputs: dict[str, Tensor]) -> None:
    """Trace a graph and write it as one file; its batch and the length of sentences are free."""
    batch, length = torch.export.Dim("batch"), torch.export.Dim("longest")
    shapes = tuple({0: batch, 1: length} if name == "words" else {0: batch} for name in inputs)
    with _quiet():
        program = torch.onnx.export(
            graph.eval(),
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=["embeddings"],
            dynamic_shapes=(shapes,),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    with atomic_file(path) as scratch:
        program.save(str(scratch), external_data=False)
    log(f"wrote {path}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says about itself."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def page(run: Run, images: dict[str, Tensor], captions: dict[str, Tensor]) -> str:
    """Return what the inputs of the graphs are, and how they are made."""
    from jinja2 import Template  # a table needs none of it

    template = Template((Path(__file__).parent / "onnx.md").read_text(), keep_trailing_newline=True)
    language = Vocabulary.load(run.folder / VOCABULARY).language
    return template.render(
        name=run.folder.name,
        info=run.info,
        s=run.settings,
        features=list(zip(images, run.info.features, run.info.backbones, images.values(), strict=False)),
        captions=captions,
        tokenizer=TOKENIZER,
        language=language,
    )
