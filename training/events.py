"""TensorBoard: the log of a run as an event file, for whoever compares runs there."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from metrics.ranks import DIRECTIONS
from settings import flat_table
from training.run import RunPlan
from utils import BadInput, make_folder


def check_tensorboard() -> None:
    """Raise BadInput if tensorboard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401 (it imports tensorboard)
    except ImportError:
        raise BadInput("`tensorboard` needs a package: pip install tensorboard") from None


class EventWriter:
    """The event file of one run below `root`, written anew; without `root` nothing is written.

    >>> with EventWriter(Path("boards"), plan) as events:  # doctest: +SKIP
    ...     events.update(trainer.log)
    """

    def __init__(self, root: Path | None, plan: RunPlan):
        self.plan, self.written, self.writer = plan, 0, None
        if root is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        folder = make_folder(root / plan.folder.name, "tensorboard")
        for path in folder.glob("events.out.tfevents.*"):  # of earlier, which the log holds, too
            path.unlink()
        self.writer = SummaryWriter(str(folder))

    def update(self, log: Sequence[dict[str, Any]]) -> None:
        """Add the epochs of a log that are not there yet."""
        if self.writer is None:
            return
        for row in log[self.written :]:
            for tag, value in scalars_of(row):
                self.writer.add_scalar(tag, value, row["epoch"])
        self.written = len(log)
        self.writer.flush()

    def finish(self, result: dict[str, Any]) -> None:
        """Add the settings of the run and its metrics on val, for TensorBoard's table of hyperparameters."""
        if self.writer is not None:
            info = self.plan.info
            about = {"recipe": info.recipe, "features": "+".join(info.features), "seed": info.seed}
            metrics = {f"hparam/{tag}": value for tag, value in scalars_of({"rsum": result["rsum"], "val": result})}
            self.writer.add_hparams({**about, **flat_table(self.plan.settings)}, metrics, run_name=".")

    def __enter__(self) -> "EventWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.writer is not None:
            self.writer.close()


def scalars_of(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield name and value of all that a row of the log measures.

    >>> dict(scalars_of({"epoch": 1, "loss": None, "rsum": 9.0, "val": {}}))
    {'val/rsum': 9.0}
    """
    for name, tag in (("loss", "loss"), ("rate", "lr"), ("rsum", "val/rsum"), ("seconds", "seconds")):
        if row.get(name) is not None:
            yield tag, row[name]
    for direction in DIRECTIONS:
        for column, value in row["val"].get(direction, {}).items():
            yield f"val/{direction}/{column}", value
