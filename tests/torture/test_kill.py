"""Killed at any moment and repeated until done, the scripts leave what an undisturbed run leaves, bit for bit."""

import os
import random
import re
import shutil
import signal
import sys
import time

import pytest

from tests.torture.attempts import at_change, check_whole, record_work, start

SCRIPTS = ["prep", "train", "index"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_killed_at_random_moments(name, tasks, tmp_path, torture):
    task, moments = tasks[name], random.Random(name)
    whole = start(task, tmp_path / "whole", tmp_path / "said.txt")
    assert whole.end() == 0, whole.sentence()
    duration, expected = time.monotonic() - whole.began, task.outcome(tmp_path / "whole")
    work, kills, left = tmp_path / "work.txt", 0, 100 if torture else 4
    while kills < left:
        to, known = tmp_path / "killed", set()
        status = None
        while status != 0:
            work.write_text("")
            attempt = start(task, to, tmp_path / "said.txt", lambda: record_work(work))
            status = attempt.end(after=moments.uniform(0, duration) if kills < left else 60)
            check_whole(to)
            done = set(work.read_text().splitlines())
            assert len(done & known) <= task.interval, "what was finished is done again"
            known |= done
            assert status in (0, -signal.SIGKILL), attempt.sentence()
            kills += status != 0
        assert task.outcome(to) == expected
        shutil.rmtree(to)


@pytest.mark.parametrize("name", SCRIPTS)
def test_killed_before_a_change_on_disk(name, tasks, tmp_path, torture):
    """Random moments seldom lie between two files: so before every change of the file system, or before a few."""
    task, to, said = tasks[name], tmp_path / "to", tmp_path / "said.txt"
    whole = start(task, to, said, lambda: at_change(to, 0, lambda what: print(what, file=sys.stderr)))
    assert whole.end() == 0, whole.sentence()
    changes = re.findall(r"^(?:open|os\.[a-z]+) /", said.read_text(), re.MULTILINE)
    expected = task.outcome(to)
    numbers = range(len(changes))
    for number in numbers if torture else random.Random(name).sample(numbers, 3):
        shutil.rmtree(to)
        killed = start(
            task, to, said, lambda n=number: at_change(to, n, lambda what: os.kill(os.getpid(), signal.SIGKILL))
        )
        assert killed.end() == -signal.SIGKILL
        check_whole(to)
        again = start(task, to, said)
        assert again.end() == 0, again.sentence()
        assert task.outcome(to) == expected, f"killed before {changes[number]}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_stopped_at_random_moments(name, tasks, tmp_path, torture):
    """By Ctrl-C, or SIGTERM: a sentence within a second, and nothing but finished work is left."""
    task, moments, to = tasks[name], random.Random(name), tmp_path / "to"
    whole = start(task, tmp_path / "whole", tmp_path / "said.txt")
    assert whole.end() == 0, whole.sentence()
    duration, expected = time.monotonic() - whole.began, task.outcome(tmp_path / "whole")
    stops, waits = 0, []
    while stops < (100 if torture else 2):
        attempt, number = start(task, to, tmp_path / "said.txt"), moments.choice([signal.SIGINT, signal.SIGTERM])
        after = 0.05 + moments.uniform(0, duration)
        status = attempt.end(number, after)
        waits.append(time.monotonic() - attempt.began - after)
        check_whole(to)
        if status == 0:
            assert task.outcome(to) == expected
            shutil.rmtree(to)
            continue
        assert status == 128 + number
        assert attempt.sentence().endswith(": stopped; repeat the command, without --fresh, and it continues")
        stops += 1
    print(f"{name}: {stops} stops, the longest wait {max(waits):.2f} s")
    assert max(waits) < 2, "a second on a machine that does nothing else"
