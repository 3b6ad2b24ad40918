"""The process that reads HDF5 and MATLAB files: what ends it, or takes it too long, is an error about the file."""

import multiprocessing
import os
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest

from features import apart
from features.apart import ask
from features.hdf5 import read_head, read_sorted
from tests.helpers import ROOT


@pytest.fixture
def file(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as store:
        store["rows"] = np.arange(6, dtype=np.float32).reshape(3, 2)
    return tmp_path / "a.h5"


def children():
    return [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]


def test_what_ends_the_process_is_blamed_on_the_file(file, tmp_path, monkeypatch):
    (tmp_path / "crash.py").write_text("import os, sys; sys.stdin.buffer.readline(); os.abort()")
    for pid in children():
        os.kill(pid, signal.SIGKILL)
    with monkeypatch.context() as patch:
        patch.setattr(apart, "SCRIPT", tmp_path / "crash.py")
        with pytest.raises(OSError, match="reading it ends the process that does so"):
            read_head(file)
    assert read_head(file).numbers("rows") == ((3, 2), np.dtype("f4")), "another process answers the next question"


def test_what_takes_too_long_is_ended(file, tmp_path, monkeypatch):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from features import reader_process as process\n"
    code += "def head(path, names):\n    while True: pass\nprocess.CALLS['head'] = head; process.serve()"
    (tmp_path / "hang.py").write_text(code)
    for pid in children():
        os.kill(pid, signal.SIGKILL)
    with monkeypatch.context() as patch:
        patch.setattr(apart, "SCRIPT", tmp_path / "hang.py")
        patch.setattr(apart, "SECONDS", 0.1)
        with pytest.raises(OSError, match="reading it would take for ever"):
            read_head(file)
    assert read_head(file).numbers("rows")


def test_a_process_that_died_meanwhile_is_not_blamed_on_the_file(file):
    read_head(file)
    for pid in children():
        os.kill(pid, signal.SIGKILL)
    assert read_head(file).numbers("rows")


def test_a_forked_process_asks_one_of_its_own(file):
    expected = read_sorted(file, "rows", np.array([0, 2])).tolist()
    queue = multiprocessing.get_context("fork").SimpleQueue()
    process = multiprocessing.get_context("fork").Process(
        target=lambda: queue.put(read_sorted(file, "rows", np.array([0, 2])).tolist())
    )
    process.start()
    assert read_sorted(file, "rows", np.array([0, 2])).tolist() == expected
    assert queue.get() == expected
    process.join(30)
    assert process.exitcode == 0


def test_paths_are_those_of_the_asking_process(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_head(Path("a.h5")).numbers("rows")
    with pytest.raises(OSError, match="No such file"):
        read_head(Path("b.h5"))
    with pytest.raises(OSError, match="null"):
        ask(Path("a\0.h5"), "head", [])
