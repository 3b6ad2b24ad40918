"""The settings of a run: one tree of frozen dataclasses, read from a TOML recipe, overridden by key=value.

The classes below are the whole list: every key a recipe may hold, its default, the values it takes and what it does.
"""

import dataclasses
import itertools
import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from utils import BadInput, did_you_mean, digest_text

RECIPES = Path(__file__).parent / "recipes"
LARGE = 10**6  # no width, batch or number of epochs beyond it is meant
CLOSED_FORMS = ("cca", "ridge", "procrustes", "asif")  # values of loss.name without a gradient


@dataclass(frozen=True)
class Range:
    """The numbers that a setting takes, both ends included."""

    low: float
    high: float = LARGE


@dataclass(frozen=True)
class ImageSettings:
    branch: Literal["linear", "mlp", "attention"] = "linear"
    """One layer, two layers, or attention pooling over the positions of a spatial map and one layer."""
    hidden_dim: Annotated[int, Range(1)] = 2048
    """Width of the mlp's middle layer."""
    num_heads: Annotated[int, Range(0)] = 0
    """Heads of the attention pooling; 0: one per 64 channels."""
    dropout: Annotated[float, Range(0, 0.99)] = 0.0
    """Share of the features, and of the mlp's middle layer, that is dropped in training."""
    normalize: bool = True
    """L2-normalize each feature (of a map, each position's); several joined always are."""


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
    word_dim: Annotated[int, Range(1)] = 300
    """gru: size of a word embedding."""
    pooling: Literal["last", "mean", "max"] = "last"
    """gru: the last state, or the mean or maximum over those of all words."""
    bidirectional: bool = False
    """gru: read backwards too; the two directions are averaged."""
    weighting: Literal["mean", "binary", "count"] = "mean"
    """onehot: the words of a caption share a weight of 1, count once each, or count as often as they come."""
    num_layers: Annotated[int, Range(1, 2)] = 1
    """onehot: fully connected layers."""
    bias: bool = False
    """onehot: give the last layer a bias where there is one layer only; two have theirs."""
    hidden_dim: Annotated[int, Range(1)] = 1024
    """onehot: width between the two layers."""
    encoder: str = ""
    """A transformer, alone or added to gru or onehot: its name on the hub, a folder, or package:NAME."""
    encoder_pooling: Literal["mean", "cls", "last"] = "mean"
    """encoder: the mean of its states, the first token's, or the last token's."""
    layer_norm: bool = False
    """encoder: layer norm before the linear layer; without it features are L2-normalized."""
    finetune: bool = False
    """encoder: train it too; otherwise its features are those that prep.py cached."""
    finetune_lr: Annotated[float, Range(0)] = 2e-5
    """encoder: Adam's learning rate for its own weights."""


@dataclass(frozen=True)
class LossSettings:
    name: Literal["hinge", "smooth", "infonce", "siglip", "cca", "ridge", "procrustes", "asif"] = "hinge"
    """A function of losses.py, or a closed form: linear branches, or for "asif" similarities to training pairs."""
    margin: Annotated[float, Range(0)] = 0.2
    """hinge, smooth: what a positive must score above a negative, in units of the similarity."""
    negatives: Literal["sum", "hardest", "semihard", "random"] = "sum"
    """hinge: which negatives of the batch count."""
    warmup_epochs: Annotated[int, Range(0)] = 0
    """hinge: so many first epochs take negatives = "sum", whatever `negatives` says."""
    reduction: Literal["sum", "mean"] = "sum"
    """hinge, smooth: over the batch."""
    sharpness: Annotated[float, Range(1e-3)] = 20.0
    """smooth: the larger, the nearer to the hardest negative alone."""
    temperature: Annotated[float, Range(1e-4)] = 0.07
    """infonce, siglip: where the learned temperature begins."""
    bias: Annotated[float, Range(-1e4)] = -10.0
    """siglip: where the learned bias begins."""
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
    """Epochs at most; in each, every training caption comes once."""
    batch_size: Annotated[int, Range(2)] = 128
    """Pairs of a caption and its image in a step."""
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
    """Adam's L2 penalty on the weights."""
    patience: Annotated[int, Range(0)] = 0
    """Stop after so many epochs without a better rsum on val; 0 never does."""


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
    table.pop("run", None)  # the recipe of a finished run says what it was trained on, too
    return from_table(table, str(path))


def read_toml(path: Path, remedy: str) -> dict[str, Any]:
    """Read a TOML file. Raises BadInput, ending in `remedy`."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
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
    if s.text.branch == "encoder" and not s.text.encoder:
        raise BadInput(
            f"{where}text.branch is 'encoder', but text.encoder names none; name a transformer, such as "
            f"bert-base-uncased, with `text.encoder`"
        )
    if s.text.finetune and not s.text.encoder:
        raise BadInput(f"{where}text.finetune trains a transformer; name it with `text.encoder`")
    if s.loss.name in CLOSED_FORMS:
        _check_closed_form(s, where)


def _check_closed_form(s: Settings, where: str) -> None:
    words = s.text.branch == "onehot" and s.text.num_layers == 1 and s.text.bias
    frozen = not s.text.finetune and not (s.text.encoder and s.text.layer_norm)
    linear = s.image.branch == "linear" and s.similarity == "cosine" and frozen
    start = f"start from recipes/{s.loss.name}.toml"
    if s.loss.name == "asif" and not (linear and s.text.branch == "encoder"):
        raise BadInput(
            f"{where}loss.name is 'asif', which needs similarity = 'cosine', image.branch = 'linear', text.branch = "
            f"'encoder', text.layer_norm = false and text.finetune = false; {start}"
        )
    if not (linear and (words or s.text.branch == "encoder")):
        raise BadInput(
            f"{where}loss.name is '{s.loss.name}', which needs similarity = 'cosine', image.branch = 'linear', "
            f"text.branch = 'encoder', or 'onehot' with text.num_layers = 1 and text.bias = true, and for an encoder "
            f"text.layer_norm = false and text.finetune = false; {start}"
        )


def _checked(value: Any, annotation: Any, name: str) -> Any:
    """`value` as the type of its setting; an integer may stand for a float, nothing else is converted."""
    if annotation == tuple[str, ...]:
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise BadInput(f"{name} takes a list of names, not {value!r}")
        return tuple(value)
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    kind, span = get_args(annotation) if get_origin(annotation) is Annotated else (str if choices else annotation, None)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
        raise BadInput(f"{name} takes {names[kind]}, not {value!r}")
    if choices and value not in choices:
        raise BadInput(f"{name} is {value!r}; {did_you_mean(value, choices)}")
    if span and not span.low <= value <= span.high:
        end = f" to {span.high:g}" if span.high < LARGE else " up"
        raise BadInput(f"{name} is {value:g}; it takes a number from {span.low:g}{end}")
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


def parse_changes(assignments: list[str]) -> list[dict[str, Any]]:
    """Return every combination of the values in "key=value,value" …, in the order given; one empty dict for none.

    >>> parse_changes(["loss.margin=0.1,0.2", "embed_dim=64"])
    [{'loss.margin': 0.1, 'embed_dim': 64}, {'loss.margin': 0.2, 'embed_dim': 64}]
    """
    options: dict[str, list[Any]] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals or not text.strip():
            raise BadInput(f"`set` {assignment}: write it as key=value, for example loss.margin=0.1")
        if key in options:
            raise BadInput(f"`set` {key}: given twice; several values go into one, as in {key}=A,B")
        options[key] = [_value(word.strip()) for word in text.split(",")]
    return [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]


def _value(text: str) -> Any:
    """A TOML value; a bare word is text, so that no shell quoting is needed around words."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
