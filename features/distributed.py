"""Several processes of one command, on one machine or several, as torchrun starts them; without it there is one.

The first process says what there is to say and writes what all share; what the others must know they are told by it.
One that ends before its time ends the others, and the first of them to end says why.
"""

import contextlib
import itertools
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from utils import BadInput, be_quiet

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # how long one waits for another, which may validate, or read its data

_rank, _size = 0, 1
_store: Any = None  # torch.distributed's, which all of them read and write


def rank() -> int:
    """Return the number of this process, from 0."""
    return _rank


def size() -> int:
    """Return how many processes there are.

    >>> rank(), size()
    (0, 1)
    """
    return _size


@contextlib.contextmanager
def joined(patience: timedelta = PATIENCE) -> Iterator[None]:
    """Join the processes that torchrun has started beside this one; alone, nothing happens.

    patience: how long one waits for another. All but the first are silent, and whichever ends first with an error.
    Raises BadInput if a machine has fewer GPUs than processes.
    """
    global _rank, _size, _store
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _size > 1:
        yield
        return
    import torch
    from torch import distributed

    gpus, local = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
    if gpus and local >= gpus:
        raise BadInput(f"process {local + 1} of a machine with {gpus} GPUs; start one process for each of them")
    if gpus:
        torch.cuda.set_device(local)
    store, _rank, _size = next(distributed.rendezvous("env://", timeout=patience))
    _store = distributed.PrefixStore("image-text-retrieval", store)
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    distributed.init_process_group(backend, store=store, rank=_rank, world_size=_size, timeout=patience)
    sys.stderr = sys.__stderr__  # see `script.run_script`
    if _rank:
        be_quiet(warnings=True)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (what results say, the first one says)
    try:
        yield
        distributed.destroy_process_group()
    except BaseException:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's word that another ended: this one does, and says why
        if not _first_to_end():
            sys.exit(2)
        raise
    finally:
        _rank, _size, _store = 0, 1, None


def _first_to_end() -> bool:
    try:
        return _store.add("ended", 1) == 1
    except RuntimeError:  # the store went down with the process that held it
        return True


@contextlib.contextmanager
def in_touch() -> Iterator[None]:
    """Say in one sentence that another process is lost, which torch's collectives and stores raise RuntimeError for."""
    try:
        yield
    except RuntimeError as error:
        reason = re.sub(r"^(\[[^]]*\]\s*)+", "", str(error)).splitlines()[0].partition(". ")[0]
        lost = "another process of this job has ended, or cannot be reached"
        raise BadInput(f"{lost} ({reason}); repeat the command and it continues") from error


def from_first(make: Callable[[], T]) -> T:
    """Return what `make` returns in the first process, which alone calls it; what JSON can write.

    >>> from_first(lambda: [1, 2])
    [1, 2]
    """
    if _size == 1:
        return make()
    return _broadcast(make() if _rank == 0 else None, 0)


def from_all(value: T) -> list[T]:
    """Return the value of each process, in their order; what JSON can write.

    >>> from_all("a")
    ['a']
    """
    return [value] if _size == 1 else [_broadcast(value, source) for source in range(_size)]


def _broadcast(value: Any, source: int) -> Any:
    import torch
    from torch import distributed

    data = torch.empty(0, dtype=torch.uint8)
    if _rank == source:
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    length = torch.tensor([len(data)])
    with in_touch():
        distributed.broadcast(length, source)
        data = data.resize_(int(length))
        distributed.broadcast(data, source)
    return json.loads(data.numpy().tobytes())


def deal(
    groups: Sequence[Sequence[Any]], name: str, others: Callable[[int], object] = lambda count: None
) -> Iterator[Sequence[Any]]:
    """Yield the groups that this process is to work on: alone all of them, else always the next that is still free.

    name: the same for all processes, and used once. others: hears how many items of the groups before went to others.

    >>> list(deal([[0, 1], [2]], "numbers"))
    [[0, 1], [2]]
    """
    if _size == 1:
        yield from groups
        return
    behind = 0
    while True:
        with in_touch():
            number = min(_store.add(name, 1) - 1, len(groups))
        others(sum(map(len, itertools.islice(groups, behind, number))))
        if number == len(groups):
            return
        yield groups[number]
        behind = number + 1
