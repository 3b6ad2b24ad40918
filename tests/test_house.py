"""The house keeps its order: imports go down the ladder, walls stand, rooms stay small, words are the field's."""

import ast
import doctest
import importlib
import re
import subprocess
import sys

import pytest

from tests.helpers import ROOT

SCRIPTS = {"prep", "train", "eval", "search", "app"}
# The ladder, from the ground up: a room may import from its own folder and from the floors below, never from beside it.
FLOORS = [
    {"utils"},
    {"reading"},
    {"settings"},
    {"features"},
    {"layers"},
    {"model", "losses", "metrics"},
    {"training"},
    {"evaluation", "retrieval", "script"},
    SCRIPTS,
]
FOLDERS = ("features", "layers", "metrics", "training", "evaluation", "retrieval")
ROOMS = [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in ROOT.glob(f"{folder}/**/*.py"))]
LIBRARY = [path for path in ROOMS if path.stem not in SCRIPTS or path.parent != ROOT]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
# What the field has other words for; see the words that stand in their place in CONTRIBUTING.md.
BANNED = {"picture", "pictures", "photograph", "photographs", "own", "owner", "owners", "place", "places", "found"}
BANNED |= {"some", "there", "here", "told", "over"}
BRITISH = re.compile(r"(?i)\b(normalis|optimis|tokenis|regularis|colour|centre|neighbour|grey\b|behaviour|favour)")


def named(path):
    return str(path.relative_to(ROOT))


every_room = pytest.mark.parametrize("path", ROOMS, ids=named)
every_library_room = pytest.mark.parametrize("path", LIBRARY, ids=named)


def floor_of(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports_of(path):
    """The modules that a room imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def packages_of(path):
    return {module.split(".")[0] for module in imports_of(path)}


def test_the_top_holds_the_scripts_and_five_rooms():
    rooms = {"model", "losses", "script", "settings", "reading", "utils"}
    assert {path.stem for path in ROOT.glob("*.py")} == SCRIPTS | rooms


@every_room
def test_imports_go_down_the_ladder_only(path):
    room = floor_of(path)
    for module in imports_of(path):
        other = module.split(".")[0]
        if other in LEVEL:
            same_folder = other == room and path.parent != ROOT
            assert same_folder or LEVEL[other] < LEVEL[room], (
                f"{path.name} imports {module}: upwards, or through a wall"
            )


@every_room
def test_walls(path):
    room, packages = floor_of(path), packages_of(path)
    if room in ("metrics", "losses"):
        assert packages & set(LEVEL) <= {"metrics"}, "knows only arrays"
    if room == "features":
        assert "settings" not in packages, "the frozen half is the same for every recipe"
    if room not in SCRIPTS:
        assert "argparse" not in packages, "a library function says in its signature what it needs"
    if room != "retrieval":
        assert not {"starlette", "faiss", "pymilvus", "emoji"} & packages, "the three scripts run without them"


@every_library_room
def test_library_rooms_name_no_flags_and_every_name_in_backquotes_is_one(path):
    """`script.run_script` makes flags of the names in backquotes, so each must be a flag of a script, or a setting."""
    from settings import all_keys

    flags = re.findall(r'"--?([a-z-]+)"', "".join((ROOT / f"{script}.py").read_text() for script in SCRIPTS))
    known = {flag.replace("-", "_") for flag in flags} | set(all_keys())
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise):
            texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            for text in (text for text in texts if isinstance(text, str)):
                assert not re.search(r"(?<![\w-])--?[a-z][a-z-]+\b", text), f"{path.name}:{node.lineno}: {text}"
                for name in re.findall(r"`([a-z][a-z_]*(?:\.[a-z_]+)?)`", text):
                    assert name in known, f"{path.name}:{node.lineno}: `{name}` is no flag and no setting"


@every_room
def test_words(path):
    text = path.read_text()
    if path.name != "scenes.py":  # its captions may say "grey"
        assert not BRITISH.search(text), BRITISH.search(text)
    names = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    assert not names & BANNED


@every_room
def test_no_room_outgrows_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400


@every_room
def test_every_room_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


@every_library_room
def test_examples_in_docstrings_are_true(path):
    name = named(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    module = importlib.import_module(name)
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_help_waits_for_nothing_heavy(script):
    code = f"import sys; sys.argv = ['{script}.py', '--help']; import {script}\n"
    code += f"try: {script}.main()\nexcept SystemExit: pass\n"
    code += "print({'torch', 'numpy', 'h5py', 'nltk', 'scipy', 'sklearn'} & set(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set()"
    assert "usage:" in done.stdout


TESTS = sorted((ROOT / "tests").rglob("*.py"))


@pytest.mark.parametrize("path", TESTS, ids=named)
def test_tests_import_no_other_test_file_and_no_private_name(path):
    tree = ast.parse(path.read_text())
    rooms = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert not any(part.startswith("test_") for part in node.module.split(".")), f"imports {node.module}"
            assert not any(alias.name.startswith("_") for alias in node.names), f"imports {node.module}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in rooms:
            assert not re.match(r"_[a-z]", node.attr), f"line {node.lineno}: {node.value.id}.{node.attr}"
