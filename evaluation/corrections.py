"""Corrected rows of a table: which are asked for, and whether a run's bank may correct them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from evaluation.groups import Correction, Group
from features.prepared import Split
from metrics.correction import CORRECTIONS, SINKHORN
from training.bank import BANK, RunBank
from utils import BadInput, did_you_mean, warn


def asked_corrections(names: Sequence[str], banks: Sequence[str]) -> list[Correction]:
    """Return each correction with each bank, "train" or "test"; Sinkhorn has none. Raises BadInput for unknown names.

    >>> [one.label for one in asked_corrections(["nnn", "sinkhorn"], ["train"])]
    ['nnn (inductive)', 'sinkhorn (transductive)']
    """
    for name in names:
        if name not in (*CORRECTIONS, SINKHORN):
            raise BadInput(f"`correction` {name}: no such correction; {did_you_mean(name, [*CORRECTIONS, SINKHORN])}")
    every = [Correction(name, "test" if name == SINKHORN else bank) for bank in banks for name in names]
    return list(dict.fromkeys(every))


def with_corrections(groups: Sequence[Group], corrections: Sequence[Correction], split: str) -> list[Group]:
    """Return the groups, each followed by itself with each correction; what has no bank is named in a log line.

    Raises BadInput for a bank of the very split that is measured, and where no model of others has the bank asked for.
    """
    if split == "train" and any(not one.transductive for one in corrections):
        raise BadInput(
            "`split` train: the banks are drawn from it, so that no correction by them is inductive; measure val or "
            "test, or correct by the queries themselves with `bank` test"
        )
    rows, said = [], []
    for group in groups:
        rows.append(group)
        lacking = [] if group.files else [run.name for run in group.runs if _lacks_bank(run, groups)]
        possible = [one for one in corrections if one.bank in group.banks and one.name not in group.excluded]
        said += [
            f"{group.name}: {one.label} {reason_against(one, group)}" for one in corrections if one not in possible
        ]
        if corrections and lacking:
            said.append(
                f"{group.name}: not corrected, for {', '.join(lacking)} has no {BANK}: it was trained before runs kept "
                f"one; train it again with `fresh`"
            )
        else:
            rows += [replace(group, name=f"{group.name} + {one.label}", correction=one) for one in possible]
    if corrections and all(group.files for group in groups) and len(rows) == len(groups):
        one, group = corrections[0], groups[0]
        raise BadInput(
            f"`correction` {one.name}: corrects none of these rows; in {group.name} it {reason_against(one, group)}"
        )
    for line in said:
        warn(line)
    return rows


def reason_against(one: Correction, group: Group) -> str:
    """Return why a row is not corrected, as the end of a sentence."""
    if not group.banks:
        return "has no scores but those that a TREC run lists, which is too few; give scores or embeddings"
    if one.name in group.excluded:
        return "compares images with images and captions with captions, which scores do not say; give embeddings"
    return "has no training data to correct by; give some with `bank_embeddings`, or correct with `bank` test"


def _lacks_bank(run: Path, groups: Sequence[Group]) -> bool:
    """Return whether a run keeps no bank. That of a model of others is told by its group."""
    external = any(group.files and run in group.runs for group in groups)
    return not external and not (run / BANK).is_file()


def check_bank(folder: Path, bank: RunBank, split: Split) -> None:
    """Raise BadInput if a bank holds an image or a caption of the split that is measured."""
    if held := bank.held(split):
        raise BadInput(
            f"{folder / BANK}: holds {len(held):,} images of the {split.name} split, such as {held[0]}, or their "
            f"captions: no correction by it is inductive; measure another `split`, or train again with `fresh`"
        )
