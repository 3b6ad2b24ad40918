"""What the shells complete: recipes, runs, backbones, settings and flags of the five scripts, behind `python`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from settings import all_keys, assignments
from tests.helpers import ROOT

pytest.importorskip("argcomplete")
BASH = """
eval "$(activate-global-python-argcomplete --dest=-)"
COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; COMP_WORDS=($*); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_python_argcomplete_global python
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(shell, line, folder):
    """What a shell offers behind a line, in a folder where the scripts lie and runs have been trained."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(ROOT)
    command = ["bash", "-c", BASH, "bash", *line.split()]
    if shell == "fish":
        command = ["fish", "--no-config", "-c", f"source {ROOT}/completions.fish; complete -C '{line}'"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return {answer.partition("\t")[0].strip() for answer in done.stdout.splitlines()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completion")
    for script in ("prep", "train", "eval", "search", "app"):
        (folder / f"{script}.py").symlink_to(ROOT / f"{script}.py")
    for name in ("strong-scenes-a-0-1", "vse0-scenes-a-0-2"):
        (folder / "runs" / name).mkdir(parents=True)
        (folder / "runs" / name / "recipe.toml").touch()
    (folder / "data/scenes").mkdir(parents=True)
    for name in ("vgg19.h5", "vgg16.h5", "minilm.text.h5"):
        (folder / "data/scenes" / name).touch()
    return folder


LINES = [
    ("train.py vse", {"vse0", "vsepp", "vse_infinity"}),
    ("train.py strong --set similarity", {"similarity=cosine", "similarity=order"}),
    ("train.py strong --features v", {"vgg16", "vgg19"}),
    ("train.py --from str", {"strong-scenes-a-0-1"}),
    ("eval.py vse0-", {"vse0-scenes-a-0-2"}),
    ("search.py em", {"embed", "emoji"}),
    ("search.py index images --run vse", {"vse0-scenes-a-0-2"}),
    ("app.py images.index --ho", {"--host"}),
    ("prep.py fl", {"flickr8k", "flickr30k"}),
    ("prep.py flickr8k --backbone vgg", {"vgg16", "vgg19"}),
]


@pytest.mark.parametrize(("line", "answers"), LINES, ids=[line for line, _ in LINES])
def test_bash(folder, line, answers):
    assert completed("bash", f"python {line}", folder) == answers


@pytest.mark.parametrize(("line", "answers"), LINES[:2])
def test_fish(folder, line, answers):
    if not shutil.which("fish"):
        pytest.skip("fish is not installed")
    assert completed("fish", f"python {line}", folder) == answers


def test_every_setting_is_offered():
    assert list(dict.fromkeys(text.partition("=")[0] for text in assignments())) == all_keys()


def test_a_shell_that_asks_where_argcomplete_is_missing_starts_no_training(folder):
    """Without site-packages, as a system's Python is."""
    environment = {**os.environ, "_ARGCOMPLETE": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-S", ROOT / "train.py"], cwd=folder, env=environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")
