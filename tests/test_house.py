"""The house keeps its order: imports go down the ladder only, rooms stay small, no script imports another."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# The ladder, from the ground up: a room may import from its own floor's folder and from the floors below.
FLOORS = [
    {"utils", "settings"},
    {"features"},
    {"pooling"},
    {"model", "losses", "cca"},
    {"runs"},
    {"retrieval"},
    {"training"},
    {"sweep"},
    {"prep", "train", "eval", "search", "app"},
]
ROOMS = [path for path in (*ROOT.glob("*.py"), *ROOT.glob("features/*.py"), *ROOT.glob("retrieval/*.py"))]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}


def floor_of(path):
    return path.stem if path.parent == ROOT else path.parent.name


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_the_ladder_only(path):
    here = floor_of(path)
    assert here in LEVEL, f"{path.name} stands on no floor: say where it belongs"
    for module in imports_of(path):
        there = module.split(".")[0]
        if there in LEVEL:
            same_folder = there == here and path.parent != ROOT
            assert same_folder or LEVEL[there] < LEVEL[here] or (here, there) == ("settings", "utils"), (
                f"{path.name} imports {module}: upwards"
            )


def test_similarity_ranks_metrics_and_statistics_know_nothing_but_arrays():
    for name in ("similarity", "ranks", "metrics", "statistics"):
        known = {m.split(".")[0] for m in imports_of(ROOT / "retrieval" / f"{name}.py")} & set(LEVEL)
        assert known <= {"retrieval"}


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_room_outgrows_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_room_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text()))
