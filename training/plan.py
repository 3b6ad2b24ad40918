"""Runs that are asked for, before anything is trained: their settings, features and folder, and what cannot be."""

import itertools
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from features.images.store import FeatureStore
from features.prepared import Prepared
from features.text.sentences import sentence_encoder
from layers.pooling import heads_for
from settings import CLOSED_FORMS, Settings, TextSettings
from training import closed_form
from training.run import Run, RunInfo, RunPlan
from training.start import check_start
from utils import BadInput, NotPrepared


def parse_changes(assignments: list[str]) -> list[dict[str, Any]]:
    """Return every combination of the values in "key=value,value" …, in the order given; one empty dict for none.

    >>> parse_changes(["loss.margin=0.1,0.2", "embed_dim=64"])
    [{'loss.margin': 0.1, 'embed_dim': 64}, {'loss.margin': 0.2, 'embed_dim': 64}]
    """
    options: dict[str, list[Any]] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals:
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


def plan_run(
    data: Prepared,
    settings: Settings,
    *,
    recipe: str,
    features: Sequence[str] = (),
    seed: int = 0,
    root: Path = Path("runs"),
    captions: str = "",
    start: Run | None = None,
) -> RunPlan:
    """Plan a run on a prepared folder. Raises BadInput if the folder lacks what the settings ask for.

    features: names; by default what the settings name, or else the newest. captions: `data.digest()`, where known.
    start: the run that it begins with, whose features are then the default.
    """
    of_start = start.info.features if start else ()
    names = list(dict.fromkeys(features or of_start or settings.features or data.stores()[:1]))
    if not names:
        raise NotPrepared(f"{data.folder}: has no features", {"": data.name, "backbone": "NAME"})
    if settings.loss.name in CLOSED_FORMS:
        closed_form.check_settings(settings)
    stores = [data.store(name) for name in names]
    for store in stores:
        check_shape(store, settings)
    info = RunInfo(
        recipe=recipe,
        dataset=data.name,
        data=str(data.folder.resolve()),
        features=tuple(names),
        digests=tuple(store.digest for store in stores),
        sizes=tuple(store.shape[-1] for store in stores),
        seed=seed,
        captions=captions or data.digest(),
        backbones=tuple({**store.attributes, "dtype": store.dtype} for store in stores),
        grid=stores[0].grid,
        **encoder_info(data, settings.text),
    )
    if settings.loss.name == "none":
        settings = closed_form.untrained(settings, info.digests, info.sizes[0], info.encoder_digest)
    if start:
        check_start(start, settings, info)
        info = replace(info, from_run=str(start.folder.resolve()), from_digest=start.digest())
    return RunPlan(root / info.run_name(settings), settings, info)


def check_shape(store: FeatureStore, settings: Settings) -> None:
    """Raise BadInput unless the image branch takes such features."""
    maps, branch = bool(store.grid), settings.image.branch
    pools = branch in ("attention", "gpo")
    if maps and not pools:
        raise BadInput(
            f"{store.path}: holds spatial maps; take them with `image.branch`=attention or gpo, or choose other "
            f"`features`"
        )
    if pools and not maps:
        raise BadInput(
            f"{store.path}: holds no spatial maps, which image.branch = {branch!r} pools; name those that prep.py "
            f"makes of maps with `features`, such as {store.path.stem}.map"
        )
    if branch == "attention":
        heads_for(store.shape[-1], settings.image.num_heads)


def encoder_info(data: Prepared, text: TextSettings) -> dict[str, Any]:
    """Return what a run notes of its text encoder. Raises BadInput if it, or its features, are missing."""
    if not text.encoder:
        return {}
    if text.finetune:
        encoder = sentence_encoder(text.encoder)
        return {"encoder_digest": encoder.digest, "encoder_size": encoder.size}
    store = data.text_store(text.encoder)
    return {"encoder_digest": str(store.attributes["digest"]), "encoder_size": store.size}
