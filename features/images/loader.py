"""From image files to batches of pixels, decoded beside the network; a process that dies costs one image at most."""

import contextlib
import functools
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from features.images.decode import ImageSource, Unreadable, read_image
from utils import BadInput

DIED = "ends the process that reads it, by a crash or for want of memory"
Sample = tuple[int, Tensor | str]  # a row, and its pixels or why there are none
Batch = tuple[list[int], list[str | None], Tensor | None]  # rows, reasons, pixels


class _Images(torch.utils.data.Dataset):
    """Decoded and transformed images; for one that cannot be read, the reason."""

    def __init__(self, paths: Sequence[ImageSource | None], transform: Any) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Sample:
        path = self.paths[row]
        if path is None:
            return row, "has no file"
        try:
            return row, self.transform(read_image(path))
        except Unreadable as error:
            return row, str(error)


def pixel_batches(
    paths: Sequence[ImageSource | None], transform: Any, batches: Iterable[list[int]], *, batch: int, workers: int
) -> Iterator[Batch]:
    """Yield of each of `batches`, rows of `paths`, the rows, why they cannot be read, and their pixels (batch, …).

    Pixels are None where none can be read. workers: processes that decode; 0: this one, which an image may end. Where
    one of them has died, the images that it had are read again, each in a process of its own, and the one that ends
    that too is unreadable. Raises BadInput if processes end whatever they read.
    """
    images, to_do = _Images(paths, transform), iter(batches)
    under_way: deque[list[int]] = deque()

    def handed_out() -> Iterator[list[int]]:
        for rows in to_do:
            under_way.append(rows)
            yield rows

    while True:
        try:
            for loaded in _load(images, handed_out(), workers, functools.partial(_collate, batch)):
                under_way.popleft()
                yield loaded
            return
        except _Died:
            yield _collate(batch, [_alone(images, row) for row in under_way.popleft()])
        to_do = chain([*under_way], to_do)
        under_way.clear()


class _Died(Exception):
    """A process that decodes has died."""


def _load(images: _Images, batches: Iterable[list[int]], workers: int, collate: Callable[..., Any]) -> Iterator[Any]:
    """Yield each of `batches` as `collate` puts it together. Raises _Died."""
    loader = DataLoader(
        images, batch_sampler=batches, num_workers=workers, collate_fn=collate, worker_init_fn=end_first
    )
    handler = signal.getsignal(signal.SIGCHLD)
    loading = iter(loader)
    if threading.current_thread() is threading.main_thread():
        # torch has set one that raises the death wherever the main thread is just then, such as in the network.
        signal.signal(signal.SIGCHLD, handler)
    try:
        yield from loading
    except (RuntimeError, OSError, EOFError) as error:  # the last two where it cannot hand over any more what it sent
        if not workers or (isinstance(error, RuntimeError) and "DataLoader worker" not in str(error)):
            raise
        raise _Died from error


def end_first(_: int) -> None:
    """Have Linux end this process before any other when memory runs out: the run goes on without the image."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _alone(images: _Images, row: int) -> Sample:
    """Read an image in a process of its own. Raises BadInput if one without an image dies, too."""
    try:
        [[sample]] = _load(images, [[row]], 1, list)
        return sample
    except _Died:
        pass
    try:
        list(_load(_Images([None], None), [[0]], 1, list))
    except _Died:
        raise BadInput(
            "`workers`: a process that decodes images is killed whatever it reads, probably for want of memory; "
            "repeat the command with `workers` 0, it continues"
        ) from None
    return row, DIED


def _collate(batch: int, samples: list[Sample]) -> Batch:
    """Return rows, reasons, and pixels (batch, …), with zeros for what cannot be read and up to the full batch.

    A convolution may round differently in batches of different size: all of one size, and a row depends on its image
    alone, wherever a run was interrupted.
    """
    rows = [row for row, _ in samples]
    reasons = [sample if isinstance(sample, str) else None for _, sample in samples]
    shape = next((sample.shape for _, sample in samples if isinstance(sample, Tensor)), None)
    if shape is None:
        return rows, reasons, None
    pixels = torch.zeros(batch, *shape)
    for i, (_, sample) in enumerate(samples):
        if isinstance(sample, Tensor):
            pixels[i] = sample
    return rows, reasons, pixels
