"""What a build of an index did, and how it is told."""

from dataclasses import dataclass, field
from typing import Any

from retrieval.searcher import plain

MAX_UNREADABLE_SHOWN = 20  # unreadable images that are named one by one


@dataclass
class BuildReport:
    """What a build did. unreadable: (image, reason). notes: what to tell the user. approximate: what was measured."""

    new: int = 0
    changed: int = 0
    moved: int = 0
    removed: int = 0
    kept: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    images: int = 0
    captions: int = 0
    approximate: dict[str, Any] | None = None
    correction: str | None = None

    def counts(self) -> str:
        """Return the counts as text.

        >>> BuildReport(new=3, moved=1, kept=7995).counts()
        '3 new, 0 changed, 1 moved, 0 removed, 7,995 kept'
        """
        parts = ("new", "changed", "moved", "removed", "kept")
        return ", ".join(f"{getattr(self, name):,} {name}" for name in parts)

    def lines(self) -> list[str]:
        """Return what is to be said of a build beside its counts."""
        count, about = len(self.unreadable), self.approximate
        shown = self.unreadable[:MAX_UNREADABLE_SHOWN]
        lines = [*self.notes, *(f"cannot be read: {plain(image)}: {plain(reason)}" for image, reason in shown)]
        if count > len(shown):
            lines.append(f"cannot be read: {count - len(shown):,} more")
        if count:
            what = "image that cannot be read" if count == 1 else "images that cannot be read"
            lines.append(f"{count:,} {what} left out; the next build tries again")
        if about:
            lines.append(
                f"approximate search, {about['search']}: recall@10 {about['recall@10']:.3f} against exact on "
                f"{about['queries']:,} sentences, effort {about['effort']}, built in {about['seconds']:,.1f} s; "
                f"an exact search leaves it out"
            )
        return lines
