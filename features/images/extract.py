"""From images to rows of features, kept block by block, so that a kill costs little."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice, tee
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from features.blocks import AUTO, Blocks, Identity, Work, as_before, clear, hand_out, lock_part, part_attributes
from features.datasets.dataset import Image
from features.distributed import from_all
from features.engines import Engine, TorchEngine, run_ahead
from features.images.backbones import Backbone
from features.images.decode import ImageSource
from features.images.engine import image_engine
from features.images.files import image_file
from features.images.loader import Batch, pixel_batches
from features.images.store import FORMAT, FeatureStore, write_store
from features.progress import progress_bar
from utils import BadInput, write_json

ROWS_PER_BLOCK = 128  # images in a finished block: what a kill may cost
# Rows that differ in one do not mix.
IDENTITY_KEYS = ("backbone", "layer", "digest", "transform", "map", "crops", "dtype", "engine", "precision")
REMEDY = "repeat with `fresh` to make it again, or with the weights and options it was made with"

Result = np.ndarray | str  # a row of features, or why there is none


def features_of(
    paths: Sequence[ImageSource | None],
    backbone: Backbone,
    *,
    batch: int = 16,
    workers: int = 0,
    groups: Iterable[Sequence[int]] | None = None,
    engine: Engine | None = None,
) -> Iterator[tuple[int, Result]]:
    """Yield for every path in turn its row number, and its features (*backbone.shape) float32 or why it is unreadable.

    groups: the rows that are wanted; no batch reaches over two groups. None takes all, ROWS_PER_BLOCK in a group.
    workers: processes that decode beside the network. engine: made for batches of `batch`, None for PyTorch.
    """
    engine = engine or TorchEngine(backbone.module)
    if groups is None:
        starts = range(0, len(paths), ROWS_PER_BLOCK)
        groups = [range(start, min(start + ROWS_PER_BLOCK, len(paths))) for start in starts]
    batches = (list(group[start : start + batch]) for group in groups for start in range(0, len(group), batch))
    loaded = pixel_batches(paths, backbone.transform, batches, batch=batch, workers=workers)
    for (numbers, reasons, _), rows in run_ahead(functools.partial(_start, engine), loaded, engine.ahead):
        features = rows.numpy()
        for i, (number, reason) in enumerate(zip(numbers, reasons, strict=True)):
            yield number, reason or features[i]


def _start(engine: Engine, batch: Batch) -> Callable[[], Tensor]:
    _, _, pixels = batch
    return torch.Tensor if pixels is None else engine.start(pixels)  # no image of the batch can be read


def extract(  # noqa: PLR0913 (its options, keyword-only)
    images: Sequence[Image],
    backbone: Backbone,
    path: Path | str,
    *,
    batch: int = 16,
    workers: int = 1,
    dtype: str = "float32",
    skip_unreadable: bool = False,
    fresh: bool = False,
    engine: str = AUTO,
    precision: str | None = None,
) -> list[tuple[str, str]]:
    """Bring the store at `path` to hold a row for each of `images`; return (id, reason) of those that cannot be read.

    Finished blocks lie in `path`.part until all is done: a second run goes on from them, and from the rows of an
    earlier store with fewer images. The store appears when it is complete, which images that cannot be read prevent
    unless `skip_unreadable`; a later run does just the missing ones. `fresh` throws away earlier features first.
    engine: AUTO goes on with that of earlier features, and begins with the quicker one; precision: None goes on, too,
    and begins with float32.
    Raises BadInput if earlier features were made by another backbone or engine, a feature is not finite in `dtype`, the
    engine cannot take the backbone, or another program fills the same store.
    """
    path = Path(path)
    with lock_part(path, fresh) as part:
        store = FeatureStore.open(path) if path.exists() else None
        earlier = {**store.attributes, "dtype": store.dtype} if store else part_attributes(part)
        engine, precision = as_before(engine, precision, earlier)
        if earlier:
            before = _identity(replace(backbone, engine=engine, precision=precision), dtype, REMEDY)
            before.check(path if store else part, earlier)
        missing = [image for image in images if store is None or image.id not in store]
        if not missing:
            clear(part)  # a run was killed between its last two steps
            return []
        running = image_engine(backbone, len(missing), batch=batch, engine=engine, precision=precision)
        backbone = replace(backbone, engine=running.name, precision=running.precision)
        identity = _identity(backbone, dtype, REMEDY)
        blocks, keys = Blocks(part, identity), [image.id for image in missing]
        groups = blocks.missing(keys, ROWS_PER_BLOCK)
        hand_out(path.name, blocks, identity, keys, (str(image.path or "") for image in missing), groups)
        initial = len(images) - sum(map(len, groups))
        with progress_bar(
            name=backbone.store, total=len(images), unit=" images", initial=initial, mininterval=1
        ) as progress:
            paths = [image.path for image in missing]
            rows_of = functools.partial(features_of, paths, backbone, batch=batch, workers=workers, engine=running)
            failed = _fill(blocks, keys, groups, rows_of, f"{backbone.name}: the feature of", dtype, progress)
        blocks.scan_others()
        if failed:
            write_json(part / "failed.json", dict(failed))
            if not skip_unreadable:
                return failed
        if store is None or any(image.id in blocks for image in missing):
            _assemble(path, images, store, blocks, backbone, dtype)
        clear(part)
    return failed


def extract_share(work: Work, backbone: Backbone, batch: int, workers: int) -> None:
    """Compute this process's share of what the first one extracts, with the engine that it has chosen.

    Raises BadInput if the backbone is another, or the engine cannot be had here.
    """
    dtype, engine, precision = (str(work.attributes[key]) for key in ("dtype", "engine", "precision"))
    backbone = replace(backbone, engine=engine, precision=precision)
    _identity(backbone, dtype, "give all processes the same weights and options").check(
        Path(work.part), work.attributes
    )
    running = image_engine(backbone, len(work.keys), batch=batch, engine=engine, precision=precision)
    paths = [image_file(source) if source else None for source in work.sources]
    rows_of = functools.partial(features_of, paths, backbone, batch=batch, workers=workers, engine=running)
    with progress_bar(disable=True) as progress:
        _fill(work.blocks(), work.keys, work.groups, rows_of, f"{backbone.name}: the feature of", dtype, progress)


def _identity(backbone: Backbone, dtype: str, remedy: str) -> Identity:
    return Identity({**backbone.attributes, "dtype": dtype, "format": FORMAT}, IDENTITY_KEYS, remedy)


def _fill(
    blocks: Blocks,
    keys: Sequence[str],
    groups: list[list[int]],
    rows_of: Callable[..., Iterator[tuple[int, Result]]],
    what: str,
    dtype: str,
    progress: Any,
) -> list[tuple[str, str]]:
    """Write a block of each of the groups that this process gets; return those that no process can read, and why.

    rows_of: `features_of` but for its groups; what: what a row is called, before "image ID".
    """
    failed: list[tuple[str, str]] = []
    ahead, taken = tee(blocks.deal(groups, progress.update))
    results = rows_of(groups=ahead)
    for group in taken:
        rows: dict[str, np.ndarray] = {}
        for number, result in islice(results, len(group)):
            image = keys[number]
            if isinstance(result, str):
                failed.append((image, result))
            else:
                rows[image] = _finite(result, dtype, f"{what} image {image}")
            progress.update()
        if rows:
            blocks.write(list(rows), features=np.stack(list(rows.values())))
    return [(image, reason) for each in from_all(failed) for image, reason in each]


def _finite(row: np.ndarray, dtype: str, what: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        stored = row.astype(dtype)
    if not np.isfinite(stored).all():
        remedy = "keep the features as float32" if np.isfinite(row).all() else "check the weights"
        raise BadInput(f"{what} is not finite in {dtype}; {remedy}")
    return stored


def _assemble(
    path: Path,
    images: Sequence[Image],
    store: FeatureStore | None,
    blocks: Blocks,
    backbone: Backbone,
    dtype: str,
) -> None:
    """Write the store in the order of `images`, then what an earlier store has besides: nothing computed is lost."""
    ids = [image.id for image in images if image.id in blocks or (store is not None and image.id in store)]
    if store is not None:
        wanted = set(ids)
        ids += [image for image in store.ids if image not in wanted]

    def earlier(numbers: list[int]) -> np.ndarray:
        assert store is not None
        return store.read(store.rows([ids[number] for number in numbers]), dtype)

    row = np.dtype((dtype, backbone.shape))
    rows = blocks.assemble(ids, "features", row, ROWS_PER_BLOCK, earlier)
    write_store(path, ids, backbone.shape, dtype, backbone.attributes, rows)
