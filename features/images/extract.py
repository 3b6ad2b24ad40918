"""From photographs to rows of features, kept block by block, so that a kill costs little."""

import functools
import itertools
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from features.datasets.dataset import Image
from features.images.backbones import Backbone
from features.images.decode import Unreadable, read_image
from features.images.store import FORMAT, FeatureStore, write_store
from utils import BadInput, atomic_write, make_folder, read_json, write_json

ROWS_PER_BLOCK = 128  # images in a finished block: what a kill may cost
THINNEST = 50  # a longer side of more than so many shorter ones would fill the memory once the shorter is scaled up
IDENTITY_KEYS = ("backbone", "layer", "digest", "transform", "map", "crops")  # rows that differ in one do not mix

Result = np.ndarray | str  # a row of features, or why there is none


class _Photographs(torch.utils.data.Dataset):
    """Decoded and transformed photographs; in place of one that cannot be read, the reason."""

    def __init__(self, paths: Sequence[Path | str | IO[bytes] | None], transform: Any) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> tuple[int, Tensor | str]:
        path = self.paths[place]
        if path is None:
            return place, "has no file"
        try:
            return place, self.transform(read_image(path))
        except Unreadable as error:
            return place, str(error)


def _collate(batch: int, samples: list[tuple[int, Tensor | str]]) -> tuple[list[int], list[str | None], Tensor | None]:
    """Places, reasons, and pixels (batch, …), with zeros for what cannot be read and up to the full batch.

    A convolution may round differently in batches of different size: all of one size, and a row depends on its image
    alone, wherever a run was interrupted.
    """
    places = [place for place, _ in samples]
    reasons = [sample if isinstance(sample, str) else None for _, sample in samples]
    shape = next((sample.shape for _, sample in samples if isinstance(sample, Tensor)), None)
    if shape is None:
        return places, reasons, None
    pixels = torch.zeros(batch, *shape)
    for row, (_, sample) in enumerate(samples):
        if isinstance(sample, Tensor):
            pixels[row] = sample
    return places, reasons, pixels


def features_of(
    paths: Sequence[Path | str | IO[bytes] | None],
    backbone: Backbone,
    *,
    batch: int = 16,
    workers: int = 0,
    block: int = ROWS_PER_BLOCK,
) -> Iterator[tuple[int, Result]]:
    """For every path in turn: its place, and its features (*backbone.shape) float32 or why it cannot be read.

    No batch reaches over a multiple of `block` images. Decoding runs in `workers` processes beside the network.
    """
    groups = [range(start, min(start + block, len(paths))) for start in range(0, len(paths), block)]
    yield from _features_of(paths, groups, backbone, batch, workers)


def _features_of(
    paths: Sequence[Path | str | IO[bytes] | None],
    groups: Iterable[Sequence[int]],
    backbone: Backbone,
    batch: int,
    workers: int,
) -> Iterator[tuple[int, Result]]:
    batches = [list(group[start : start + batch]) for group in groups for start in range(0, len(group), batch)]
    loader = torch.utils.data.DataLoader(
        _Photographs(paths, backbone.transform),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=functools.partial(_collate, batch),
    )
    for places, reasons, pixels in _watched(loader):
        rows = None if pixels is None else backbone.module(pixels).numpy()
        for number, (place, reason) in enumerate(zip(places, reasons, strict=True)):
            if reason is not None or rows is None:
                yield place, reason or "not an image"
            else:
                yield place, rows[number]


def _watched(loader: Iterable[Any]) -> Iterator[Any]:
    """A decoding process that the system killed ends in one sentence; finished blocks are safe."""
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise BadInput(
            "--workers: a process that decodes images was killed, probably for want of memory; "
            "repeat the command with --workers 0, it continues"
        ) from error


def extract(
    images: Sequence[Image],
    backbone: Backbone,
    path: Path | str,
    *,
    batch: int = 16,
    workers: int = 1,
    dtype: str = "float32",
    skip_unreadable: bool = False,
    fresh: bool = False,
) -> list[tuple[str, str]]:
    """Bring the store at `path` to hold a row for each of `images`; returns (id, reason) of those that cannot be read.

    Finished blocks lie in `path`.part until all is there: a second run goes on from them, and from the rows of an
    earlier store with fewer images. The store appears when it is complete, which images that cannot be read prevent
    unless `skip_unreadable`; a later run does just the missing ones. `fresh` throws away what is there first.
    Raises BadInput if what is there was made by another backbone, or a feature is not finite in `dtype`.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    if fresh:
        path.unlink(missing_ok=True)
        shutil.rmtree(part, ignore_errors=True)
    store = _earlier_store(path, backbone, dtype)
    missing = [image for image in images if store is None or image.id not in store]
    if not missing:
        shutil.rmtree(part, ignore_errors=True)  # a run was killed between its last two steps
        return []
    _open_part(part, backbone, dtype)
    done = _finished(part)
    groups = [
        [image for image in missing[start : start + ROWS_PER_BLOCK] if image.id not in done]
        for start in range(0, len(missing), ROWS_PER_BLOCK)
    ]
    found, failed = _extract_groups(groups, backbone, part, batch, workers, dtype, len(images))
    done.update(found)
    if failed:
        write_json(part / "failed.json", dict(failed))
        if not skip_unreadable:
            return failed
    new = [image.id for image in missing if image.id in done]
    if new or store is None:
        _assemble(path, images, store, done, backbone, dtype)
    shutil.rmtree(part, ignore_errors=True)
    return failed


def _earlier_store(path: Path, backbone: Backbone, dtype: str) -> FeatureStore | None:
    if not path.exists():
        return None
    store = FeatureStore.open(path)
    _check_same(path, {**store.attributes, "dtype": store.dtype}, backbone, dtype)
    return store


def _check_same(path: Path, attributes: dict[str, Any], backbone: Backbone, dtype: str) -> None:
    """Raises BadInput if rows made under `attributes` and rows of `backbone` do not mix."""
    here: dict[str, Any] = {**backbone.attributes, "dtype": dtype}
    for name in (*IDENTITY_KEYS, "dtype"):
        if attributes.get(name) != here[name]:
            was, now = (str(values.get(name))[:60] for values in (attributes, here))
            raise BadInput(
                f"{path}: was made with another {name} ({was}, not {now}); "
                f"repeat with --fresh to make it again, or with the weights and flags it was made with"
            )


def _open_part(part: Path, backbone: Backbone, dtype: str) -> None:
    """Make the folder of blocks, or make sure that it belongs to this backbone."""
    make_folder(part, "--data")
    meta = part / "meta.json"
    if meta.exists():
        _check_same(part, read_json(meta, "repeat with --fresh"), backbone, dtype)
    else:
        write_json(meta, {**backbone.attributes, "dtype": dtype, "format": FORMAT})


def _finished(part: Path) -> dict[str, tuple[Path, int]]:
    """Where the row of each image that is done lies: block and place. A block that cannot be read is done again."""
    done = {}
    for file in sorted(part.glob("block-*.npz")):
        try:
            with np.load(file) as block:
                ids = block["image"].tolist()
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            file.unlink()
            continue
        done.update({image: (file, row) for row, image in enumerate(ids)})
    return done


def _extract_groups(
    groups: list[list[Image]], backbone: Backbone, part: Path, batch: int, workers: int, dtype: str, total: int
) -> tuple[dict[str, tuple[Path, int]], list[tuple[str, str]]]:
    """Run every group and write the block of each; returns where the rows lie, and what cannot be read and why."""
    from tqdm import tqdm

    groups = [group for group in groups if group]
    todo = list(itertools.chain.from_iterable(groups))
    ends = list(itertools.accumulate(map(len, groups)))
    ranges = [range(end - len(group), end) for end, group in zip(ends, groups, strict=True)]
    results = _features_of([image.path for image in todo], ranges, backbone, batch, workers)
    number = max((int(file.stem.removeprefix("block-")) for file in part.glob("block-*.npz")), default=-1) + 1
    done: dict[str, tuple[Path, int]] = {}
    failed: list[tuple[str, str]] = []
    with tqdm(total=total, initial=total - len(todo), unit="image", desc=backbone.store, mininterval=1) as progress:
        for number, group in enumerate(groups, number):  # noqa: B020
            ids, rows = [], []
            for place, result in itertools.islice(results, len(group)):
                if isinstance(result, str):
                    failed.append((todo[place].id, result))
                else:
                    ids.append(todo[place].id)
                    rows.append(_checked(result, dtype, todo[place].id, backbone))
                progress.update()
            if rows:
                file = part / f"block-{number:06d}.npz"
                with atomic_write(file, "wb") as stream:
                    np.savez(stream, image=np.array(ids), features=np.stack(rows))
                done.update({image: (file, row) for row, image in enumerate(ids)})
    return done, failed


def _checked(row: np.ndarray, dtype: str, image: str, backbone: Backbone) -> np.ndarray:
    with np.errstate(over="ignore"):
        kept = row.astype(dtype)
    if not np.isfinite(kept).all():
        remedy = "keep the features as float32" if np.isfinite(row).all() else "check the weights"
        raise BadInput(f"{backbone.name}: the feature of image {image} is not finite in {dtype}; {remedy}")
    return kept


def _assemble(
    path: Path,
    images: Sequence[Image],
    store: FeatureStore | None,
    done: dict[str, tuple[Path, int]],
    backbone: Backbone,
    dtype: str,
) -> None:
    """Write the store in the order of `images`, then what an earlier store has besides: nothing computed is lost."""
    ids = [image.id for image in images if image.id in done or (store is not None and image.id in store)]
    if store is not None:
        wanted = set(ids)
        ids += [image for image in store.ids if image not in wanted]
    blocks = _rows_of(ids, store, done, backbone.shape, dtype)
    write_store(path, ids, backbone.shape, dtype, backbone.attributes, blocks)


def _rows_of(
    ids: list[str], store: FeatureStore | None, done: dict[str, tuple[Path, int]], shape: tuple[int, ...], dtype: str
) -> Iterator[np.ndarray]:
    """The rows of `ids`, ROWS_PER_BLOCK at a time, each from its block or from the earlier store."""

    @functools.lru_cache(maxsize=4)
    def features(file: Path) -> np.ndarray:
        with np.load(file) as block:
            return block["features"]

    for start in range(0, len(ids), ROWS_PER_BLOCK):
        some = ids[start : start + ROWS_PER_BLOCK]
        rows = np.empty((len(some), *shape), dtype)
        kept = [place for place, image in enumerate(some) if image not in done]
        if kept and store is not None:
            rows[kept] = store.read(store.rows([some[place] for place in kept]), dtype)
        for place, image in enumerate(some):
            if image in done:
                file, row = done[image]
                rows[place] = features(file)[row]
        yield rows
