"""What a preparation is asked to do: what is given, what dataset.json remembers and defaults, resolved once.

Splits and precomputed features belong to their captions: other captions are read without those that are remembered.
Imports nothing heavy: the script's help waits for it.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from features.datasets.dataset import brings_features, is_vsepp
from features.format import check_format
from features.text.hub import OPEN_CLIP, is_dual, text_store_name
from reading import read_json
from utils import BadInput, did_you_mean

CAPTIONS, DATASET, VOCABULARY = "captions.jsonl", "dataset.json", "vocabulary.json"
FORMAT = 1  # of dataset.json
DATA = Path("data")  # where prepared folders go unless another root is named
DRAWN = "scenes"  # the dataset that needs no file of anybody's
# Datasets whose images and captions lie in files together, named by `images`.
CONTAINERS = ("webdataset", "huggingface")
DATASETS = (DRAWN, "flickr8k", "flickr30k", "coco", "folder", *CONTAINERS)
DEFAULT_BACKBONE = "efficientnet_lite0"  # its weights come with the install: no network is needed
DTYPES = ("float16", "float32")
ENGINES, PRECISIONS = ("auto", "torch", "openvino"), ("float32", "bfloat16")
LANGUAGES = ("none", "arabic", "danish", "dutch", "english", "finnish", "french", "german", "hungarian", "italian",
             "norwegian", "porter", "portuguese", "romanian", "russian", "spanish", "swedish")  # fmt: skip
# What dataset.json remembers, besides the folder of the images; the last four of precomputed features only.
REMEMBERED = {"captions": str, "splits": str, "split_ratio": list, "restval": bool, "language": str,
              "precomputed": str, "ids": str, "backbone": list, "crops": int}  # fmt: skip
PATHS = ("images", "captions", "splits", "precomputed", "ids", "data")


@dataclass(frozen=True)
class PrepOptions:
    """Everything that `features.prepare.prepare` needs; `resolve_options` makes one.

    backbone: empty for the default one, or for the stem of the file of precomputed features. size: None for the
    published one. dtype: None for float32, float16 for maps and views. name: None for that of the dataset. engine,
    precision: "auto" and None for those of earlier features; else the quicker one, and float32. The last
    four are settled by `resolve_options`: reads_captions, makes_features: False where sentence features alone are added
    to a prepared folder.
    remembered: what was filled in, to be logged. precomputed_before: what is remembered of precomputed features.
    """

    dataset: str = DRAWN
    images: Path | None = None
    captions: Path | None = None
    splits: Path | None = None
    split_ratio: tuple[float, float, float] = (80, 10, 10)
    restval: bool = True
    language: str = "english"
    backbone: tuple[str, ...] = ()
    weights: str | None = None
    layer: str | None = None
    map: bool = False
    crops: int = 1
    views: int = 1
    size: int | None = None
    dtype: str | None = None
    precomputed: Path | None = None
    ids: Path | None = None
    text_encoder: tuple[str, ...] = ()
    data: Path = DATA
    name: str | None = None
    batch_size: int = 16
    workers: int = 1
    engine: str = "auto"
    precision: str | None = None
    skip_unreadable: bool = False
    fresh: bool = False
    reads_captions: bool = True
    makes_features: bool = True
    remembered: str = ""
    precomputed_before: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The prepared folder."""
        return self.data / (self.name or self.dataset)

    @property
    def features_file(self) -> Path | None:
        """The precomputed features: a file, or a folder with captions; None if a backbone makes them."""
        with_captions = self.captions is not None and brings_features(self.captions)
        return self.precomputed or (self.captions if with_captions else None)

    @property
    def asks_for_features(self) -> bool:
        """Whether an option says which features of the images are wanted."""
        names = ("backbone", "precomputed", "layer", "weights", "map", "crops", "views", "size")
        return any(getattr(self, name) != getattr(PrepOptions, name) for name in names)


def resolve_options(given: Mapping[str, Any]) -> PrepOptions:
    """Return what is given (None: it is not), filled up from an earlier preparation of this dataset, or defaults.

    `weights` of an open_clip model become part of its name, for both of its sides.

    Raises BadInput if an option is unknown or impossible by itself; what does not go together `check_sources` tells.

    >>> options = resolve_options({"dataset": "flickr8k", "name": "mine", "backbone": "vgg19", "captions": None})
    >>> options.folder.as_posix(), options.backbone, options.language
    ('data/mine', ('vgg19',), 'english')
    """
    known = [option.name for option in fields(PrepOptions)]
    asked = {name or "dataset": value for name, value in given.items() if value is not None}
    for name in asked:
        if name not in known:
            raise BadInput(f"{name}: no option of a preparation; {did_you_mean(name, known)}")
    if asked.get("dataset") in CONTAINERS and "images" in asked:
        asked.setdefault("captions", asked["images"])
    options = PrepOptions(**_typed(asked))
    check_given(options)
    options = _with_weights_named(options)
    head = recorded(options.folder, options.dataset)
    if options.text_encoder and not options.asks_for_features and head:
        options = replace(options, makes_features=False)
        of_captions = ("images", "captions", "splits", "split_ratio", "restval", "ids", "language")
        if not any(name in asked for name in of_captions) and (options.folder / CAPTIONS).is_file():
            return replace(options, reads_captions=False)
    before, source = _recall(options, "images" in asked, head)
    resolved = replace(options, **_typed({name: value for name, value in before.items() if name not in asked}))
    names = ("images", *(() if options.dataset in CONTAINERS else ("captions",)), "splits", "precomputed")
    words = {name: getattr(resolved, name) for name in names}
    filled_in = [f"`{name}` {shlex.quote(str(words[name]))}" for name in words if name in before and name not in asked]
    return replace(resolved, remembered=" ".join(filled_in), precomputed_before=source)


def recorded(folder: Path, dataset: str) -> dict[str, Any]:
    """Return what dataset.json of `folder` says, if it is of this dataset; else nothing.

    Raises BadInput if it is of another format.
    """
    try:
        head = read_json(folder / DATASET, "prepare it again")
    except BadInput:  # damaged: prepared again, from what is given
        return {}
    if not isinstance(head, dict):
        return {}
    check_format(folder / DATASET, head.get("format", FORMAT), FORMAT, "prepare it under another `name`")
    return head if head.get("dataset") == dataset else {}


def source_of(options: PrepOptions) -> dict[str, Any]:
    """Return what dataset.json is to remember of these options."""
    if options.dataset == DRAWN:
        return {"language": options.language}
    paths = {name: getattr(options, name) for name in ("captions", "splits", "precomputed", "ids")}
    source: dict[str, Any] = {name: str(path.resolve()) for name, path in paths.items() if path is not None}
    source |= {"split_ratio": options.split_ratio, "restval": options.restval, "language": options.language}
    if options.features_file is None:
        return {**options.precomputed_before, **source}
    return {**source, "crops": options.crops, **({"backbone": options.backbone} if options.backbone else {})}


def _typed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Paths as Path, lists as tuples; one name, or several without repeats, as a tuple too."""
    typed: dict[str, Any] = {name: Path(value) if name in PATHS else value for name, value in values.items()}
    for name in ("backbone", "text_encoder"):
        if name in typed:
            typed[name] = dict.fromkeys([typed[name]] if isinstance(typed[name], str) else typed[name])
    return {name: tuple(value) if isinstance(value, list | dict) else value for name, value in typed.items()}


def _with_weights_named(options: PrepOptions) -> PrepOptions:
    """Write `weights` behind the open_clip models that lack them. Raises BadInput if a backbone has its own."""

    def lacks(name: str) -> bool:
        return name.startswith(OPEN_CLIP) and "@" not in name

    def named(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"{name}@{options.weights}" if lacks(name) else name for name in names)

    for name in options.backbone if options.weights is not None else ():
        if is_dual(name) and not lacks(name):
            raise BadInput(f"`weights` {options.weights}: {name} says where its weights are; leave `weights` out")
    if options.weights is None or not any(map(lacks, (*options.backbone, *options.text_encoder))):
        return options
    others = any(not lacks(name) for name in options.backbone)
    return replace(
        options,
        backbone=named(options.backbone),
        text_encoder=named(options.text_encoder),
        weights=options.weights if others else None,
    )


def _recall(options: PrepOptions, images_given: bool, head: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options that an earlier preparation settles if they are not given, and its precomputed features."""
    said = head.get("source")
    entries = said.items() if isinstance(said, dict) else ()  # else damaged
    source = {name: value for name, value in entries if isinstance(value, REMEMBERED.get(name, ()))}

    def take(*names: str) -> dict[str, Any]:
        return {name: source[name] for name in names if name in source}

    if options.dataset == DRAWN or "captions" not in source:
        return take("language"), {}
    before = take("language", "captions")
    captions = options.captions or Path(source["captions"])
    if not is_vsepp(captions) and isinstance(head.get("images"), str):
        before["images"] = head["images"]
    if str(captions.resolve()) != source["captions"]:
        return before, {}
    before |= take("splits", "split_ratio", "restval")
    if not options.asks_for_features and not images_given:
        before |= take("precomputed")
    precomputed = options.precomputed or before.get("precomputed")
    if brings_features(captions) or (precomputed and str(Path(precomputed).resolve()) == source.get("precomputed")):
        before |= take("ids", *(() if options.backbone else ("backbone", "crops")))
    return before, take("precomputed", "ids", "backbone", "crops")


def check_given(options: PrepOptions) -> None:
    """Raise BadInput for an option that is impossible by itself, before anything is read."""
    if options.dataset not in DATASETS:
        raise BadInput(f"dataset {options.dataset}: unknown; {did_you_mean(options.dataset, DATASETS)}")
    if options.batch_size < 1:
        raise BadInput(f"`batch_size` {options.batch_size}: at least one image at a time")
    if options.workers < 0:
        raise BadInput(f"`workers` {options.workers}: 0 decodes images in the program itself, more beside it")
    if options.engine not in ENGINES:
        raise BadInput(f"`engine` {options.engine}: unknown; choose one of {', '.join(ENGINES)}")
    if options.precision not in (None, *PRECISIONS):
        raise BadInput(f"`precision` {options.precision}: unknown; choose one of {', '.join(PRECISIONS)}")
    name = options.name
    if name is not None and (Path(name).name != name or name in ("", ".", "..")):
        raise BadInput(f"`name` {name}: the name of a folder under `data`, without a path")
    if options.weights not in (None, "random") and len(options.backbone) > 1:
        raise BadInput(f"`weights` {options.weights}: one file fits one backbone; prepare them one after the other")
    files = [text_store_name(encoder) for encoder in options.text_encoder]
    for encoder, file in zip(options.text_encoder, files, strict=True):
        if files.count(file) > 1:
            kept = f"another one would be kept as {file}.text.h5, too"
            raise BadInput(f"`text_encoder` {encoder}: {kept}; name one of them")


def check_sources(options: PrepOptions) -> None:
    """Raise BadInput if images, captions and features come from nowhere, or from sources that do not go together."""
    if options.dataset == DRAWN:
        yours = f"goes with a dataset of yours; name it: {', '.join(DATASETS[1:])}"
        return _refuse(options, ("images", "captions", "splits", "precomputed", "ids"), yours)
    if options.dataset in CONTAINERS:
        if options.images is None:
            raise BadInput(f"`images` is missing: name the files of {options.dataset}, or their folder")
        if options.captions != options.images:
            raise BadInput(f"`captions` {options.captions}: those of {options.dataset} are in its files; leave it out")
    if options.captions is None:
        raise BadInput("`captions` is missing: name the file that holds them, or the folder")
    if options.images is None and options.features_file is None:
        raise BadInput("`images` is missing: name the folder of the images, or features of yours with `precomputed`")
    if options.ids is not None and options.precomputed is None:
        raise BadInput("`ids` goes with `precomputed`: it names the rows of precomputed features")
    if options.images is not None and is_vsepp(options.captions):
        raise BadInput(f"`images`: {options.captions} brings features and no images; leave `images` out")
    if options.features_file is not None:
        as_they_are = "goes with a backbone; precomputed features are taken as they are"
        _refuse(options, ("layer", "weights", "dtype", "map", "views", "size"), as_they_are)


def _refuse(options: PrepOptions, names: tuple[str, ...], why: str) -> None:
    for name in names:
        if getattr(options, name) != getattr(PrepOptions, name):
            raise BadInput(f"`{name}` {why}")
