"""The settings of a run: one tree of frozen dataclasses, read from a TOML recipe, overridden by `--set key=value`.

The classes below are the whole list: every key a recipe may hold, its default and the values it takes.
"""

import dataclasses
import itertools
import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from utils import BadInput, did_you_mean, digest_text

RECIPES = Path(__file__).parent / "recipes"


def choice(default: str, *others: str) -> Any:
    """A setting that takes one of a few words."""
    return field(default=default, metadata={"choices": (default, *others)})


LARGE = 10**6  # no width, batch or number of epochs beyond it is meant


def number(default: float, low: float, high: float = LARGE) -> Any:
    """A setting that takes a number from `low` to `high`."""
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class ImageSettings:
    branch: str = choice("linear", "mlp", "attention")
    hidden_dim: int = number(2048, 1)  # width of the mlp's middle layer
    num_heads: int = number(0, 0)  # branch = "attention", over the positions of a spatial map; 0: one per 64 channels
    dropout: float = number(0.0, 0, 0.99)  # on the features, and on the mlp's middle layer
    normalize: bool = True  # L2-normalize each feature (of a map, each position's); several joined always are


@dataclass(frozen=True)
class TextSettings:
    branch: str = choice("gru", "onehot", "encoder")
    stem: bool = False  # stems rather than words
    min_count: int = number(1, 1)  # rarer words (or stems) count as unknown
    dropout: float = number(0.0, 0, 0.99)  # gru: on word embeddings and output; onehot: on the first layer's output
    # branch = "gru"
    word_dim: int = number(300, 1)  # size of a word embedding
    pooling: str = choice("last", "mean", "max")
    bidirectional: bool = False  # the two directions are averaged
    # branch = "onehot"
    weighting: str = choice("mean", "binary", "count")  # of the words of a caption
    num_layers: int = number(1, 1, 2)
    bias: bool = False  # of the last layer where there is one layer only; two have theirs
    hidden_dim: int = number(1024, 1)  # width between the two layers
    # branch = "encoder", or joined with another: a transformer sentence encoder and a linear layer behind it
    encoder: str = ""  # name on the hub, folder, or package:NAME
    encoder_pooling: str = choice("mean", "cls", "last")  # of its states; "last": of the last token
    layer_norm: bool = False  # before the linear layer; features are L2-normalized where there is none
    finetune: bool = False  # train the encoder too; otherwise its features are those that prep.py cached
    finetune_lr: float = number(2e-5, 0)  # Adam's learning rate for the encoder's own weights


@dataclass(frozen=True)
class LossSettings:
    name: str = choice("hinge", "smooth", "infonce", "siglip", "cca")
    # name = "hinge" or "smooth"
    margin: float = number(0.2, 0)
    negatives: str = choice("sum", "hardest", "semihard", "random")
    warmup_epochs: int = number(0, 0)  # so many first epochs take negatives = "sum", whatever `negatives` says
    reduction: str = choice("sum", "mean")  # over the batch
    sharpness: float = number(20.0, 1e-3)  # name = "smooth": the larger, the nearer to the hardest negative alone
    # name = "infonce" or "siglip"
    temperature: float = number(0.07, 1e-4)  # where the learned temperature begins
    bias: float = number(-10.0, -1e4)  # name = "siglip": where the learned bias begins
    # name = "cca": in closed form, for linear branches
    regularization: float = number(0.1, 1e-9)  # added to both covariances' diagonals, as a share of their mean
    power: float = number(1.0, 0)  # dimensions are scaled by their correlation to this power


@dataclass(frozen=True)
class TrainingSettings:
    epochs: int = number(30, 1)
    batch_size: int = number(128, 2)
    lr: float = number(2e-4, 1e-9)  # Adam's learning rate
    schedule: str = choice("constant", "step", "cosine")
    lr_step: int = number(15, 1)  # schedule = "step": multiply the rate by `step_factor` after every so many epochs
    lr_gamma: float = number(0.1, 0, 1)
    grad_clip: float = number(0.0, 0)  # largest norm of the gradient; 0 leaves it as it is
    weight_decay: float = number(0.0, 0)
    patience: int = number(0, 0)  # stop after so many epochs without a better rsum on val; 0 never does


@dataclass(frozen=True)
class Settings:
    source: str = ""  # the paper or the measurement that the recipe rests on
    features: tuple[str, ...] = ()  # which features the recipe is meant for; empty: whichever is newest
    similarity: str = choice("cosine", "order")
    embed_dim: int = number(1024, 1)  # size of the common space
    image: ImageSettings = field(default_factory=ImageSettings)
    text: TextSettings = field(default_factory=TextSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def digest(self) -> str:
        """Eight hexadecimal digits that differ when a setting differs. Where a recipe comes from is no setting.

        Settings at their default are left out, so that a setting added later leaves the names of older runs alone.
        """
        flat, plain = flat_table(self), flat_table(Settings())
        changed = {key: value for key, value in flat.items() if value != plain[key]}
        return digest_text(json.dumps(changed, sort_keys=True))[:8]


def flat_table(settings: Settings) -> dict[str, Any]:
    """Every setting that makes a difference, by its full name ("loss.margin")."""
    flat: dict[str, Any] = {}
    for key, value in dataclasses.asdict(settings).items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        elif key not in ("source", "features"):
            flat[key] = value
    return flat


def known_recipes() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def read_recipe(name: str) -> Settings:
    """The settings of a recipe: a name in recipes/, or a path that ends in .toml."""
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not path.is_file():
        if name.endswith(".toml"):
            raise BadInput(f"{name}: no such recipe file; name one of {', '.join(known_recipes())}, or a file of yours")
        raise BadInput(f"{name}: no such recipe; {did_you_mean(name, known_recipes())}")
    table = read_toml(path, "mend it, or copy one of recipes/")
    table.pop("run", None)  # the recipe of a finished run says what it was trained on, too
    return from_table(table, str(path))


def read_toml(path: Path, remedy: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not a TOML file, or cut short ({error}); {remedy}") from None


def from_table(table: dict[str, Any], where: str, kind: type = Settings, prefix: str = "") -> Any:
    """Build settings from nested dicts. Raises BadInput for an unknown key (naming the nearest) or a wrong value."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = get_type_hints(kind)
    values = {}
    for key, value in table.items():
        if key not in fields:
            raise BadInput(f"{where}: unknown setting {prefix}{key}; {did_you_mean(prefix + key, all_keys())}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise BadInput(f"{where}: {prefix}{key} is a group of settings; write it as a table [{prefix}{key}]")
            values[key] = from_table(value, where, hints[key], f"{prefix}{key}.")
        else:
            values[key] = _checked(value, hints[key], fields[key].metadata, f"{where}: {prefix}{key}")
    settings = kind(**values)
    if kind is Settings:
        _check_together(settings, where)
    return settings


def _check_together(s: Settings, where: str) -> None:
    """Settings that are sound by themselves but not with each other."""
    if s.text.branch == "encoder" and not s.text.encoder:
        raise BadInput(
            f"{where}: text.branch is 'encoder', but text.encoder names none; name a transformer, such as "
            f"--set text.encoder=bert-base-uncased"
        )
    if s.text.finetune and not s.text.encoder:
        raise BadInput(f"{where}: text.finetune trains a transformer; name it with --set text.encoder=NAME")
    plain = s.image.branch == "linear" and s.text.branch == "onehot" and s.text.num_layers == 1 and s.text.bias
    plain = plain and not s.text.encoder
    if s.loss.name == "cca" and not (plain and s.similarity == "cosine"):
        raise BadInput(
            f"{where}: loss.name is 'cca', which needs similarity = 'cosine', image.branch = 'linear', text.branch = "
            f"'onehot', text.num_layers = 1, text.bias = true and no text.encoder; start from recipes/cca.toml"
        )


def _checked(value: Any, hint: Any, metadata: Any, where: str) -> Any:
    """`value` as the type of its setting; an integer may stand for a float, nothing else is converted."""
    if hint == tuple[str, ...]:
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
            raise BadInput(f"{where} takes a list of names, not {value!r}")
        return tuple(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
        raise BadInput(f"{where} takes {names[hint]}, not {value!r}")
    choices = metadata.get("choices")
    if choices and value not in choices:
        raise BadInput(f"{where} is {value!r}; {did_you_mean(value, choices)}")
    if "low" in metadata and not metadata["low"] <= value <= metadata["high"]:
        span = f"from {metadata['low']:g}" + (f" to {metadata['high']:g}" if metadata["high"] < LARGE else " up")
        raise BadInput(f"{where} is {value:g}; it takes a number {span}")
    return value


def all_keys(kind: type = Settings, prefix: str = "") -> list[str]:
    """Every setting's full name: `similarity`, …, `loss.margin`, …"""
    hints = get_type_hints(kind)
    keys = []
    for f in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[f.name]):
            keys += all_keys(hints[f.name], f"{prefix}{f.name}.")
        else:
            keys.append(prefix + f.name)
    return keys


def to_table(settings: Settings) -> dict[str, Any]:
    """Nested dicts, as TOML and JSON write them; `from_table` gives the same settings back."""
    table = dataclasses.asdict(settings)
    table["features"] = list(settings.features)
    return table


def override(settings: Settings, changes: dict[str, Any]) -> Settings:
    """Settings with `changes`, from full names such as "loss.margin" to values."""
    table = to_table(settings)
    for key, value in changes.items():
        if key == "features":
            raise BadInput("--set features: name features with --features")
        if key not in all_keys():
            raise BadInput(f"--set {key}: unknown setting; {did_you_mean(key, all_keys())}")
        *groups, leaf = key.split(".")
        inner = table
        for group in groups:
            inner = inner[group]
        inner[leaf] = value
    return from_table(table, "--set")


def parse_changes(assignments: list[str]) -> list[dict[str, Any]]:
    """Every combination that `--set key=value,value …` asks for, in the order given; one empty dict for none.

    >>> parse_changes(["loss.margin=0.1,0.2", "embed_dim=64"])
    [{'loss.margin': 0.1, 'embed_dim': 64}, {'loss.margin': 0.2, 'embed_dim': 64}]
    """
    options: dict[str, list[Any]] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals or not text.strip():
            raise BadInput(f"--set {assignment}: write it as key=value, for example --set loss.margin=0.1")
        if key in options:
            raise BadInput(f"--set {key}: given twice; several values go into one, as in --set {key}=A,B")
        options[key] = [_value(word.strip()) for word in text.split(",")]
    return [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]


def _value(text: str) -> Any:
    """A TOML value; a bare word is text, so that no shell quoting is needed around words."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
