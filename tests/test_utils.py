"""What every room needs: sentences with flags, commands, whole files, locks."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from tests.helpers import ROOT
from utils import BadInput, atomic_write, command_line, lock_folder, with_flags


def start(code, *args):
    """Start a program of these lines, which says one line when it is under way."""
    program = subprocess.Popen([sys.executable, "-c", code, *map(str, args)], cwd=ROOT, stdout=subprocess.PIPE)
    assert program.stdout is not None
    program.stdout.readline()
    return program


def kill(program):
    os.kill(program.pid, signal.SIGKILL)
    program.wait()
    program.stdout.close()


@pytest.mark.parametrize(
    ("sentence", "flags"),
    [
        ("start over with `fresh`", "start over with --fresh"),
        ("lower `training.lr` or `batch_size`", "lower --set training.lr or --batch-size"),
        ("`k` 0: too few", "-k 0: too few"),
        ("a `b c` is no name, nor is `B`", "a `b c` is no name, nor is `B`"),
    ],
)
def test_parameters_in_backquotes_become_flags(sentence, flags):
    assert with_flags(sentence) == flags


def test_a_command_quotes_what_a_shell_would_split():
    options = {"": "flickr8k", "images": "my images", "map": True, "ids": None, "backbone": ["a", "b"], "crops": 10}
    expected = "python prep.py flickr8k --images 'my images' --map --backbone a b --crops 10"
    assert command_line("prep.py", options) == expected


HOLD = """
import os, sys, time
from pathlib import Path
from utils import lock_folder
sys.argv[0] = "prep.py"
with lock_folder(Path(sys.argv[1])):
    child = sys.argv[2:] and os.fork()
    if not child:  # the child says so, if there is one: by then it has let go
        print("held", flush=True)
    time.sleep(10 if child == 0 else 60)
    os._exit(0)
"""


@pytest.mark.parametrize("fork", [[], ["fork"]])
def test_the_second_program_hears_who_is_at_work_and_no_lock_outlives_a_kill(tmp_path, fork):
    holder = start(HOLD, tmp_path, *fork)
    holds = rf"process {holder.pid} \(prep\.py\) is at work in it; wait for its end"
    with pytest.raises(BadInput, match=holds), lock_folder(tmp_path):
        pass
    kill(holder)
    with lock_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_on_a_folder_that_was_taken_away_is_none(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with lock_folder(folder):
        (folder / ".lock").unlink()
        folder.rmdir()
        folder.mkdir()
        with lock_folder(folder):
            pass


def test_nothing_is_locked_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/.lock").symlink_to(tmp_path / "precious")
    with lock_folder(tmp_path / "folder"):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    """As of a network, mounted so."""

    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    named = r": its file system has no locks \(No locks available\); mount it with locks"
    with pytest.raises(BadInput, match=named), lock_folder(tmp_path):
        pass


WRITE = """
import sys, time
from utils import atomic_write
with atomic_write(sys.argv[1]) as file:
    file.write("half of it")
    file.flush()
    print("under way", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_writer_left_goes_and_what_another_is_writing_stays(tmp_path):
    path = tmp_path / "[a].txt"
    writer = start(WRITE, path)
    (in_progress,) = tmp_path.iterdir()
    with atomic_write(path) as file:
        file.write("whole")
    assert set(tmp_path.iterdir()) == {path, in_progress}
    assert in_progress.read_text() == "half of it"
    kill(writer)
    with atomic_write(path) as file:
        file.write("new")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_several_killed_writers_leave_nothing(tmp_path):
    writers = [start(WRITE, tmp_path / "a.txt") for _ in range(3)]
    assert len(list(tmp_path.iterdir())) == 3
    for writer in writers:
        kill(writer)
    with atomic_write(tmp_path / "a.txt") as file:
        file.write("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_nothing_is_written_through_a_link(tmp_path, link):
    (tmp_path / "precious").write_text("precious")
    with atomic_write(tmp_path / "a.txt"):
        (scratch,) = tmp_path.glob(".a.txt*")
    getattr(scratch, link)(tmp_path / "precious")
    with atomic_write(tmp_path / "a.txt") as file:
        file.write("whole")
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "a.txt").read_text() == "whole"
