"""The settings of a run: one tree of frozen dataclasses, read from a TOML recipe, overridden by key=value.

The classes below are the whole list: every key a recipe may hold, its default, the values it takes and what it does.
"""

import dataclasses
import json
import tomllib
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from reading import read_text
from utils import BadInput, did_you_mean, digest_text

RECIPES = Path(__file__).parent / "recipes"
MAX_RECIPE_CHARS, MAX_RECIPE_DOTS = 2**17, 2000  # of a file: tomllib takes the square of a key's parts
LARGE = 10**6  # no width, batch or number of epochs beyond it is meant
CLOSED_FORMS = ("cca", "ridge", "procrustes", "asif", "none")  # values of loss.name without a gradient


@dataclass(frozen=True)
class Range:
    """The numbers that a setting takes, both ends included."""

    low: float
    high: float = LARGE


@dataclass(frozen=True)
class ImageSettings:
    branch: Literal["linear", "mlp", "glu", "residual", "attention", "gpo"] = "linear"
    """One layer, two layers, a gated linear unit, residual blocks, or attention or GPO pooling over the positions of a
    spatial map and one layer."""
    hidden_dim: Annotated[int, Range(1)] = 2048
    """Width within mlp, glu and each residual block."""
    num_blocks: Annotated[int, Range(1, 64)] = 4
    """residual: blocks."""
    position_dropout: Annotated[float, Range(0, 0.99)] = 0.0
    """gpo: share of a map's positions that is left out in training; one stays."""
    num_heads: Annotated[int, Range(0)] = 0
    """Heads of the attention pooling; 0: one per 64 channels."""
    dropout: Annotated[float, Range(0, 0.99)] = 0.0
    """Share of the features, and of the width within mlp and glu, dropped in training; residual: of the width alone."""
    normalize: bool = True
    """L2-normalize each feature (of a map, each position's); several joined always are."""
    standardize: bool = False
    """Then take features to zero mean and, each backbone's, to a unit mean square over the training split."""
    power: Annotated[float, Range(0.1, 1)] = 1.0
    """standardize: raise features to this power before, signs kept."""


@dataclass(frozen=True)
class TextSettings:
    branch: Literal["gru", "onehot", "encoder"] = "gru"
    """A GRU over word embeddings, a bag of words, or a transformer sentence encoder with a linear layer behind it."""
    stem: bool = False
    """Take stems rather than words."""
    min_count: Annotated[int, Range(1)] = 1
    """Words (or stems) that come less often in the training captions count as unknown."""
    dropout: Annotated[float, Range(0, 0.99)] = 0.0
    """Share dropped in training: gru, of word embeddings and output; onehot, of the first layer's output."""
    word_dropout: Annotated[float, Range(0, 0.99)] = 0.0
    """gru, onehot: share of a caption's words that is dropped in training; one stays."""
    bigrams: Annotated[int, Range(0)] = 0
    """onehot: two words (or stems) in a row that come so often in the training captions count as one word more;
    0: none do."""
    word_dim: Annotated[int, Range(1)] = 300
    """gru: size of a word embedding."""
    pooling: Literal["last", "mean", "max", "gpo"] = "last"
    """gru: the last state, or the mean or maximum over those of all words, or their pooling by GPO."""
    residual: bool = False
    """gru: add the mean of the word embeddings, through a linear layer, to what the GRU makes of them."""
    bidirectional: bool = False
    """gru: read backwards too; the two directions are averaged."""
    weighting: Literal["mean", "binary", "count"] = "mean"
    """onehot: the words of a caption share a weight of 1, count once each, or count as often as they come."""
    num_layers: Annotated[int, Range(1, 2)] = 1
    """onehot: fully connected layers."""
    bias: bool = False
    """onehot: give the last layer a bias where there is one layer only; two have theirs."""
    hidden_dim: Annotated[int, Range(1)] = 1024
    """onehot: width between the two layers; encoder: width within its head."""
    encoder: str = ""
    """A transformer, alone or added to gru or onehot: its name on the hub, a folder, or package:NAME; with @N, its
    first N layers. Or the text side of a dual encoder: clip:NAME, open_clip:NAME@WEIGHTS."""
    encoder_pooling: Literal["mean", "cls", "last"] = "mean"
    """encoder: the mean of its states, the first token's, or the last token's; a dual encoder has its own."""
    layer_norm: bool = False
    """encoder: layer norm before its head; without it features are L2-normalized."""
    head: Literal["linear", "mlp", "glu", "residual"] = "linear"
    """encoder: from its features to the common space: one layer, two, a gated linear unit, or residual blocks."""
    num_blocks: Annotated[int, Range(1, 64)] = 4
    """encoder: residual blocks of its head."""
    finetune: bool = False
    """encoder: train it too; otherwise its features are those that prep.py cached."""
    finetune_lr: Annotated[float, Range(0)] = 2e-5
    """encoder: Adam's learning rate for its own weights."""


@dataclass(frozen=True)
class LossSettings:
    name: Literal[
        "hinge", "smooth", "infonce", "siglip", "cwcl", "hal", "cca", "ridge", "procrustes", "asif", "none"
    ] = "hinge"
    """A function of losses.py, or a closed form: linear branches, for "asif" similarities to training pairs, for "none"
    no branches at all: both sides of a dual encoder as they are."""
    margin: Annotated[float, Range(0)] = 0.2
    """hinge, smooth: what a positive must score above a negative; hal: what a negative may score."""
    negatives: Literal["sum", "hardest", "semihard", "random"] = "sum"
    """hinge: which negatives of the batch count."""
    warmup_epochs: Annotated[int, Range(0)] = 0
    """hinge: so many first epochs take negatives = "sum", whatever `negatives` says."""
    reduction: Literal["sum", "mean", "pairs"] = "sum"
    """hinge, smooth: over the batch of B; siglip: divided by B, or with "pairs" by B x B."""
    sharpness: Annotated[float, Range(1e-3)] = 20.0
    """smooth, hal: the larger, the nearer to the hardest negative alone; cwcl: of its soft targets."""
    positives: Literal["pair", "image"] = "pair"
    """infonce, siglip: other captions of an image in the batch are left out, or right answers too."""
    temperature: Annotated[float, Range(1e-4)] = 0.07
    """infonce, siglip, cwcl: where the learned temperature begins."""
    bias: Annotated[float, Range(-1e4)] = -10.0
    """siglip: where the learned bias begins."""
    structure: Annotated[float, Range(0)] = 0.0
    """Weight of what the heads change in the neighborhoods of frozen features; any loss; 0: none."""
    structure_levels: Annotated[int, Range(1, 9)] = 1
    """structure: neighborhoods of 1, 2, … steps."""
    structure_temperature: Annotated[float, Range(1e-3)] = 0.05
    """structure: of the softmax over neighbors."""
    regularization: Annotated[float, Range(1e-9)] = 0.1
    """cca, ridge: added to the covariances' diagonals, as a share of their mean."""
    power: Annotated[float, Range(0)] = 1.0
    """cca: dimensions are scaled by their correlation to this power. asif: similarities are raised to it."""
    target: Literal["text", "image"] = "text"
    """ridge: the side that the other one is mapped to."""
    top_k: Annotated[int, Range(1)] = 800
    """asif: similarities to so many nearest training pairs are kept."""


@dataclass(frozen=True)
class TrainingSettings:
    epochs: Annotated[int, Range(1)] = 30
    """Epochs at most; in each, every training caption comes once (but see `min_steps`)."""
    batch_size: Annotated[int, Range(2)] = 128
    """Pairs of a caption and its image in a step."""
    min_steps: Annotated[int, Range(0)] = 0
    """Steps that an epoch has at least: with few captions, batches shrink, but not below 128, and then captions come
    several times; 0: no minimum."""
    captions_per_image: Annotated[int, Range(1)] = 1
    """Captions of an image that come into a batch together."""
    mixup: Annotated[float, Range(0)] = 0.0
    """The pairs of a batch's halves are mixed, with one share of Beta(mixup, mixup) for both sides; 0: not at all."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Adam, or Adam with decoupled weight decay (AdamW)."""
    lr: Annotated[float, Range(1e-9)] = 2e-4
    """Adam's learning rate."""
    schedule: Literal["constant", "step", "cosine"] = "constant"
    """How the learning rate falls: never, every `lr_step` epochs, or along a cosine to 0 at the end."""
    lr_step: Annotated[int, Range(1)] = 15
    """step: epochs after which the rate is multiplied by `lr_gamma`, again and again."""
    lr_gamma: Annotated[float, Range(0, 1)] = 0.1
    """step: the factor."""
    grad_clip: Annotated[float, Range(0)] = 0.0
    """Largest norm of the gradient; 0 leaves it as it is."""
    weight_decay: Annotated[float, Range(0)] = 0.0
    """Adam's L2 penalty on the weights; AdamW's decay."""
    patience: Annotated[int, Range(0)] = 0
    """Stop after so many epochs without a better rsum on val; 0 never does."""
    weight_average: Annotated[float, Range(0, 0.9999)] = 0.0
    """Decay of a moving average of the weights, which is validated and saved in their stead; 0 keeps none."""


@dataclass(frozen=True)
class Settings:
    source: str = ""
    """The paper or the measurement that the recipe rests on."""
    features: tuple[str, ...] = ()
    """Which features the recipe is meant for; empty: whichever is newest."""
    similarity: Literal["cosine", "order"] = "cosine"
    """Cosine, or order similarity (Vendrov et al., 2016)."""
    embed_dim: Annotated[int, Range(1)] = 1024
    """Size of the common space; asif: the number of training images that it keeps."""
    image: ImageSettings = field(default_factory=ImageSettings)
    text: TextSettings = field(default_factory=TextSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def digest(self) -> str:
        """Return eight hexadecimal digits that differ when a setting differs. Where a recipe comes from is no setting.

        Settings at their default are left out, so that a setting added later leaves the names of older runs alone.
        """
        flat, plain = flat_table(self), flat_table(Settings())
        changed = {key: value for key, value in flat.items() if value != plain[key]}
        return digest_text(json.dumps(changed, sort_keys=True))[:8]


def flat_table(settings: Settings) -> dict[str, Any]:
    """Return every setting that makes a difference, by its full name ("loss.margin")."""
    flat: dict[str, Any] = {}
    for key, value in dataclasses.asdict(settings).items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        elif key not in ("source", "features"):
            flat[key] = value
    return flat


def all_keys(kind: Any = Settings, prefix: str = "") -> list[str]:
    """Return every setting's full name: `similarity`, …, `loss.margin`, …"""
    keys = []
    for f in dataclasses.fields(kind):
        group = dataclasses.is_dataclass(f.type)
        keys += all_keys(f.type, f"{prefix}{f.name}.") if group else [prefix + f.name]
    return keys


def assignments(kind: Any = Settings, prefix: str = "") -> list[str]:
    """Return what may be set, "loss.margin=", and of settings that take few values each, "text.stem=true".

    >>> [text for text in assignments() if text.startswith(("loss.margin", "similarity"))]
    ['similarity=cosine', 'similarity=order', 'loss.margin=']
    """
    texts = []
    for f in dataclasses.fields(kind):
        if dataclasses.is_dataclass(f.type):
            texts += assignments(f.type, f"{prefix}{f.name}.")
        else:
            choices = get_args(f.type) if get_origin(f.type) is Literal else ()
            values = ("true", "false") if f.type is bool else choices or ("",)
            texts += [f"{prefix}{f.name}={value}" for value in values]
    return texts


def known_recipes() -> list[str]:
    """Return the names of the recipes in recipes/."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def read_recipe(name: str) -> Settings:
    """Read a recipe: a name in recipes/, or a path that ends in .toml. Raises BadInput.

    >>> read_recipe("vsepp").loss.negatives
    'hardest'
    """
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not path.is_file():
        if name.endswith(".toml"):
            raise BadInput(f"{name}: no such recipe file; name one of {', '.join(known_recipes())}, or a file of yours")
        raise BadInput(f"{name}: no such recipe; {did_you_mean(name, known_recipes())}")
    table = read_toml(path, "mend it, or copy one of recipes/")
    for about in ("run", "expected"):  # what a finished run was trained on, what a recipe of the project comes to
        table.pop(about, None)
    return from_table(table, str(path))


def read_toml(path: Path, remedy: str) -> dict[str, Any]:
    """Read a TOML file. Raises BadInput, ending in `remedy`."""
    text = read_text(path, remedy, "TOML file")
    if len(text) > MAX_RECIPE_CHARS or text.count(".") > MAX_RECIPE_DOTS:
        raise BadInput(f"{path}: is too large for a recipe, {len(text):,} characters; {remedy}")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # an integer of too many digits is no TOMLDecodeError
        raise BadInput(f"{path}: not a TOML file, or cut short ({error}); {remedy}") from None


def from_table(table: dict[str, Any], source: str = "") -> Settings:
    """Make settings of nested dicts. source: the file they come from, for errors; "": an override.

    Raises BadInput for an unknown key (naming the nearest) or a wrong value.
    """
    settings = _group(Settings, table, source, "")
    _check_together(settings, f"{source}: " if source else "")
    return settings


def _group(kind: Any, table: dict[str, Any], source: str, prefix: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(kind)}
    values = {}
    for name, value in table.items():
        key = prefix + name
        if name not in fields:
            raise BadInput(f"{_named(key, source)}: unknown setting; {did_you_mean(key, all_keys())}")
        annotation = fields[name].type
        if not dataclasses.is_dataclass(annotation):
            values[name] = _checked(value, annotation, _named(key, source))
        elif isinstance(value, dict):
            values[name] = _group(annotation, value, source, f"{key}.")
        else:
            raise BadInput(f"{_named(key, source)} is a group of settings; write it as a table [{key}]")
    return kind(**values)


def _named(key: str, source: str) -> str:
    """A setting in an error: of a file, or in the backquotes that `utils.with_flags` reads."""
    return f"{source}: {key}" if source else f"`{key}`" if "." in key else key


def _check_together(s: Settings, where: str) -> None:
    """Settings that are sound by themselves but not with each other."""
    branch, name = s.text.branch, s.loss.name
    for wrong, sentence in (
        (
            branch == "encoder" and not s.text.encoder,
            "text.branch is 'encoder', but text.encoder names none; name a transformer, such as bert-base-uncased, "
            "with `text.encoder`",
        ),
        (
            s.text.finetune and not s.text.encoder,
            "text.finetune trains a transformer; name it with `text.encoder`",
        ),
        (
            s.image.power != 1 and not s.image.standardize,
            "image.power comes before image.standardize; set `image.standardize`=true, or leave it at 1",
        ),
        (
            s.text.head != "linear" and not s.text.encoder,
            f"text.head is {s.text.head!r}, which stands behind a transformer; name one with `text.encoder`, or make a "
            f"bag of words deeper with `text.num_layers`=2",
        ),
        (
            s.image.position_dropout and s.image.branch != "gpo",
            f"image.position_dropout leaves out positions of a map, of which image.branch = {s.image.branch!r} pools "
            f"none; take gpo with `image.branch`, or 0",
        ),
        (
            s.text.word_dropout and branch == "encoder",
            "text.word_dropout drops words, of which text.branch = 'encoder' sees none; take gru or onehot with "
            "`text.branch`, or 0",
        ),
        (
            s.text.bigrams and branch != "onehot",
            f"text.bigrams are words of a bag, which text.branch = {branch!r} is not; take onehot with `text.branch`, "
            f"or 0",
        ),
        (
            s.training.mixup and branch not in ("onehot", "encoder"),
            f"training.mixup mixes bags of words and sentence features, and there is no sentence between two for "
            f"text.branch = {branch!r}; take onehot or encoder with `text.branch`, or 0",
        ),
        (
            s.loss.positives == "image" and name not in ("infonce", "siglip"),
            f"loss.positives = 'image' makes all captions of an image right answers, which loss.name = {name!r} has no "
            f"form for; take infonce or siglip with `loss.name`, or pair",
        ),
        (
            s.loss.reduction == "pairs" and name != "siglip",
            f"loss.reduction = 'pairs' divides by all pairs of a batch, which siglip adds up and loss.name = {name!r} "
            f"does not; take sum or mean with `loss.reduction`",
        ),
    ):
        if wrong:
            raise BadInput(where + sentence)


def _checked(value: Any, annotation: Any, name: str) -> Any:
    """`value` as the type of its setting; an integer may stand for a float, nothing else is converted."""
    if annotation == tuple[str, ...]:
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise BadInput(f"{name} takes a list of names, not {value!r}")
        return tuple(value)
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    kind, span = get_args(annotation) if get_origin(annotation) is Annotated else (str if choices else annotation, None)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**53 else inf
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
        raise BadInput(f"{name} takes {names[kind]}, not {repr(value)[:60]}")
    if choices and value not in choices:
        raise BadInput(f"{name} is {value!r}; {did_you_mean(value, choices)}")
    if span and not span.low <= value <= span.high:
        end = f" to {span.high:g}" if span.high < LARGE else " up"
        shown = f"{value:g}" if isinstance(value, float) or abs(value) < 2**53 else "a huge number"
        raise BadInput(f"{name} is {shown}; it takes a number from {span.low:g}{end}")
    return value


def to_table(settings: Settings) -> dict[str, Any]:
    """Return nested dicts, as TOML and JSON write them; `from_table` gives the same settings back."""
    return {**dataclasses.asdict(settings), "features": list(settings.features)}


def override(settings: Settings, changes: dict[str, Any]) -> Settings:
    """Return settings with `changes`, from full names to values. Raises BadInput for a wrong name or value.

    >>> override(Settings(), {"loss.margin": 0.1, "embed_dim": 64}).loss.margin
    0.1
    """
    table = to_table(settings)
    for key, value in changes.items():
        if key == "features":
            raise BadInput("features are no setting to override; name features with `features`")
        if key not in all_keys():
            raise BadInput(f"{_named(key, '')}: unknown setting; {did_you_mean(key, all_keys())}")
        group, _, name = key.rpartition(".")
        (table[group] if group else table)[name] = value
    return from_table(table)
