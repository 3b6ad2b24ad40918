"""The house keeps its order: imports go down the ladder, walls stand, rooms stay small, no script imports another."""

import ast

import pytest

from tests.helpers import ROOT

SCRIPTS = {"prep", "train", "eval", "search", "app"}
# The ladder, from the ground up: a room may import from its own folder and from the floors below, never from beside it.
FLOORS = [
    {"utils", "settings"},
    {"features"},
    {"model", "losses", "metrics"},
    {"training"},
    {"evaluation", "retrieval"},
    SCRIPTS,
]
FOLDERS = ("features", "metrics", "training", "evaluation", "retrieval")
ROOMS = [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in ROOT.glob(f"{folder}/**/*.py"))]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
every_room = pytest.mark.parametrize("path", ROOMS, ids=lambda path: str(path.relative_to(ROOT)))


def floor_of(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports_of(path):
    """The modules that a room imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_the_top_holds_the_scripts_and_four_rooms():
    assert {path.stem for path in ROOT.glob("*.py")} == SCRIPTS | {"model", "losses", "settings", "utils"}


@every_room
def test_imports_go_down_the_ladder_only(path):
    room = floor_of(path)
    for module in imports_of(path):
        other = module.split(".")[0]
        if other in LEVEL:
            same_folder = other == room and path.parent != ROOT
            assert same_folder or LEVEL[other] < LEVEL[room] or (room, other) == ("settings", "utils"), (
                f"{path.name} imports {module}: upwards, or through a wall"
            )


@every_room
def test_metrics_and_losses_know_nothing_of_ours(path):
    if floor_of(path) in ("metrics", "losses"):
        assert {module.split(".")[0] for module in imports_of(path)} & set(LEVEL) <= {"metrics"}


@every_room
def test_packages_that_search_needs_are_imported_there_only(path):
    if floor_of(path) != "retrieval":
        assert not {"starlette", "faiss", "emoji"} & {module.split(".")[0] for module in imports_of(path)}


@every_room
def test_no_room_outgrows_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400


@every_room
def test_every_room_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text()))
