"""Progress: a bar on a terminal alone, one line in a log, warnings alone where it shall be quiet."""

import os
import pty
import subprocess
import sys
import termios

import pytest

from tests.helpers import ROOT

COUNT = """
import sys
from features import progress
from features.progress import progress_bar
from utils import be_quiet, log, warn
progress.STAGE_SECONDS = float(sys.argv[1])
if sys.argv[2:]:
    be_quiet()
log("said")
warn("a warning")
for _ in progress_bar(range(3), "look", unit=" images", mininterval=0):
    pass
with progress_bar(name="embed", total=5, unit=" rows", mininterval=0) as bar:
    bar.update(5)
    bar.set_postfix(loss=1)
with progress_bar([1], "epoch", line=False, mininterval=0) as bar:
    list(bar)
list(progress_bar([1], "hidden", disable=True))
"""


def said(*args, terminal):
    """What the program above writes on stderr, into a terminal or a pipe."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    if terminal:
        termios.tcsetwinsize(theirs, (24, 80))
    done = subprocess.run([sys.executable, "-c", COUNT, *args], cwd=ROOT, stderr=theirs, check=False)
    os.close(theirs)
    text = b""
    try:
        while block := os.read(ours, 4096):
            text += block
    except OSError:  # how a terminal ends
        pass
    os.close(ours)
    assert done.returncode == 0
    return text.decode()


def test_bars_are_shown_on_a_terminal():
    text = said("0", terminal=True)
    assert "look: 100%" in text
    assert "5/5" in text
    assert "epoch" in text
    assert "hidden" not in text
    assert "\r" in text
    assert "3 images in" not in text


def test_a_redirected_log_has_a_line_of_each_stage_that_took_long():
    lines = ["said", "a warning", "look: 3 images in 0 s", "embed: 5 rows in 0 s"]
    assert said("0", terminal=False).splitlines() == lines
    assert said("60", terminal=False).splitlines() == lines[:2]


@pytest.mark.parametrize("terminal", [True, False])
def test_warnings_alone_where_it_shall_be_quiet(terminal):
    assert said("0", "quiet", terminal=terminal).split() == ["a", "warning"]
