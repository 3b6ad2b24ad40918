"""A disk that is full, read-only or not ours, at every write of every script: a sentence, and nothing is lost."""

import contextlib
import errno
import os
import random
import shutil
import subprocess
from functools import partial

import pytest

from tests.torture.attempts import ANEW, RESUMED, at_change, changes_of, check_whole, chosen, start

REMEDY = "; check that it exists, that you may read and write there, and that the disk is not full"
CODES = [errno.ENOSPC, errno.EROFS, errno.EACCES]


@pytest.mark.parametrize("name", [*RESUMED, *ANEW])
def test_refused_from_a_change_on(name, tasks, tmp_path, torture):
    """A full disk takes no new file and lets others go; of one that is read-only, or not ours, nothing goes either."""
    if name in ANEW[2:] and not torture:
        pytest.skip("at full length only")
    task, to, said = tasks[name], tmp_path / "to", tmp_path / "said.txt"
    changes, expected = changes_of(task, to, said)
    for number in chosen(changes, name, torture):
        code = CODES[number % 3]

        def refuse(what, code=code):
            change, path = what.split(" ", 1)
            if code != errno.ENOSPC or change not in ("os.remove", "os.rmdir", "os.rename"):
                raise OSError(code, os.strerror(code), path)

        shutil.rmtree(to)
        attempt = start(task, to, said, partial(at_change, to, number, refuse))
        status, sentence = attempt.end(), attempt.sentence()
        check_whole(to)
        if status:  # what could not be taken away at the very end is no error
            assert status == 2
            assert os.strerror(code) in sentence, sentence
        again = start(task, to, said)
        assert again.end() == 0, again.sentence()
        assert task.outcome(to) == expected, f"refused from {changes[number]} on"


@contextlib.contextmanager
def small_disk(folder):
    """A disk in memory, whose size is what `resize` is called with, in KB."""
    folder.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=False).returncode
    ):
        pytest.skip("only who may mount a disk can fill one")
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}k", folder], check=True)
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("name", RESUMED)
def test_a_full_disk(name, tasks, tmp_path, torture):
    """A true one, of a size between nothing and what the script needs; then there is room, and it goes on."""
    task, said, sizes = tasks[name], tmp_path / "said.txt", random.Random(name)
    with small_disk(tmp_path / "disk") as resize:
        resize(2**16)
        to = tmp_path / "disk/to"
        assert start(task, to, said).end() == 0
        expected, needed = task.outcome(to), shutil.disk_usage(to).used // 1024
        full = 0
        while full < (50 if torture else 2):
            shutil.rmtree(to)
            resize(sizes.randrange(4, needed, 4))
            attempt = start(task, to, said)
            status, sentence = attempt.end(), attempt.sentence()
            check_whole(to)
            resize(2**16)
            if status:
                assert (status, os.strerror(errno.ENOSPC) in sentence) == (2, True), sentence
                full += 1
                print(f"{name}: {full} disks were too small", flush=True)
                assert start(task, to, said).end() == 0
            assert task.outcome(to) == expected
