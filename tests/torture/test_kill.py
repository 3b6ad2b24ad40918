"""Killed at any moment and repeated until done, the scripts leave what an undisturbed run leaves, bit for bit."""

import os
import random
import shutil
import signal
import time
from functools import partial

import pytest

from tests.helpers import run_together
from tests.torture.attempts import ANEW, RESUMED, changes_of, check_whole, chosen, kill_at_change, record_work, start


@pytest.mark.parametrize("name", RESUMED)
def test_killed_at_random_moments(name, tasks, tmp_path, torture):
    task, moments = tasks[name], random.Random(name)
    whole = start(task, tmp_path / "whole", tmp_path / "said.txt")
    assert whole.end() == 0, whole.sentence()
    duration, expected = time.monotonic() - whole.began, task.outcome(tmp_path / "whole")
    work, kills, left = tmp_path / "work.txt", 0, 100 if torture else 4
    while kills < left:
        to, known = tmp_path / "killed", set[str]()
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
            print(f"{name}: {kills} kills", flush=True)  # long as it takes, and seen with -s
        assert task.outcome(to) == expected
        shutil.rmtree(to)


@pytest.mark.parametrize("name", [*RESUMED, *ANEW])
def test_killed_before_a_change_on_disk(name, tasks, tmp_path, torture):
    """Random moments seldom lie between two files: so before every change of the file system, or before a few."""
    if name in ANEW and not torture:
        pytest.skip("at full length only")
    task, to, said = tasks[name], tmp_path / "to", tmp_path / "said.txt"
    changes, expected = changes_of(task, to, said)
    for number in chosen(changes, name, torture):
        shutil.rmtree(to)
        killed = start(task, to, said, partial(kill_at_change, to, number))
        assert killed.end() == -signal.SIGKILL
        check_whole(to)
        again = start(task, to, said)
        assert again.end() == 0, again.sentence()
        assert task.outcome(to) == expected, f"killed before {changes[number]}"
        print(f"{name}: killed before change {number} of {len(changes)}", flush=True)


@pytest.mark.parametrize("name", RESUMED)
def test_stopped_at_random_moments(name, tasks, tmp_path, torture):
    """By Ctrl-C, or SIGTERM: a sentence within a second, and nothing but finished work is left."""
    task, moments, to = tasks[name], random.Random(name), tmp_path / "to"
    whole = start(task, tmp_path / "whole", tmp_path / "said.txt")
    assert whole.end() == 0, whole.sentence()
    duration, expected = time.monotonic() - whole.began, task.outcome(tmp_path / "whole")
    stops, waits = 0, []
    while stops < (100 if torture else 2):
        attempt, number = start(task, to, tmp_path / "said.txt"), moments.choice([signal.SIGINT, signal.SIGTERM])
        after = moments.uniform(0, duration)
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
        print(f"{name}: {stops} stops, the longest wait {max(waits):.2f} s", flush=True)
    assert max(waits) < 5, "a second on a machine that does nothing else"


KILLED, STOPPED = signal.SIGKILL, signal.SIGTERM
PAIRS = [("prep", KILLED), ("train", STOPPED), ("prep", STOPPED), ("train", KILLED)]


@pytest.mark.parametrize(("name", "number"), PAIRS, ids=str)
def test_one_of_two_processes_killed_or_both_stopped(name, number, tasks, tmp_path, torture):
    """torchrun sends SIGTERM to the others as soon as one has ended, and to all of them when it gets one itself."""
    if (name, number) in PAIRS[2:] and not torture:
        pytest.skip("at full length only")
    task, moments, to = tasks[name], random.Random(f"{name} {number}"), tmp_path / "to"
    began = time.monotonic()
    assert run_together(tmp_path, task.script.main, *task.args(to)) == ([0, 0], [])
    duration, expected = time.monotonic() - began, task.outcome(to)
    shutil.rmtree(to)

    def disturb(processes):
        victim, other = random.Random(kills).sample(processes, 2)
        victim.join(moments.uniform(0, duration))
        for process in (victim, other):
            if process.is_alive():
                os.kill(process.pid, number if process is victim else signal.SIGTERM)
                if number == KILLED:
                    process.join()
        ended.append(time.monotonic())

    kills, ended, waits = 0, list[float](), list[float]()
    while kills < (20 if torture else 1):
        statuses, sentences = run_together(tmp_path, task.script.main, *task.args(to), disturb=disturb)
        waits.append(time.monotonic() - ended.pop())
        check_whole(to)
        if statuses == [0, 0]:
            assert task.outcome(to) == expected
            shutil.rmtree(to)
            continue
        kills += 1
        print(f"{name}: {kills} of two processes ended, the longest wait {max(waits):.2f} s", flush=True)
        assert all(sentence.endswith("and it continues") for sentence in sentences)
    assert max(waits) < 5, "a second on a machine that does nothing else"
    assert run_together(tmp_path, task.script.main, *task.args(to)) == ([0, 0], [])
    assert task.outcome(to) == expected
