"""Two programs at once: whatever the first one is about to do, the second waits for nobody, and says who is at work.

The first one stops before a change of the file system, as a slow machine might let it; the second runs meanwhile.
"""

import os
import re
import shutil
import signal
from dataclasses import replace

import pytest

from tests.torture.attempts import Attempt, at_change, changes_of, check_whole, chosen, start


def stopped_at(task, to, said, number) -> Attempt:
    """Start a task that stops itself before its change of this number."""
    attempt = start(task, to, said, lambda: at_change(to, number, stop_once()))
    os.waitid(os.P_PID, attempt.process.pid or 0, os.WSTOPPED | os.WNOWAIT)
    return attempt


def stop_once():
    """Return what stops the process that calls it, the first time."""
    left = [signal.SIGSTOP]

    def stop(what):
        if left:
            os.kill(os.getpid(), left.pop())

    return stop


def go_on(attempt: Attempt) -> int:
    os.kill(attempt.process.pid or 0, signal.SIGCONT)
    return attempt.end()


@pytest.mark.parametrize("name", ["prep", "sentences", "train", "index"])
def test_two_of_one_command(name, tasks, tmp_path, torture):
    """sentences: the second fills a text store of the folder whose images the first one sees."""
    first, to = tasks["prep" if name == "sentences" else name], tmp_path / "to"
    changes, expected = changes_of(first, to, tmp_path / "said.txt")
    second = first
    if name == "sentences":
        second = replace(first, args=lambda to: ["folder", "--data", to, *first.args(to)[-2:]])
    refused = 0
    for number in chosen(changes, name, torture):
        shutil.rmtree(to)
        one = stopped_at(first, to, tmp_path / "first.txt", number)
        two = start(second, to, tmp_path / "second.txt")
        status, sentence = two.end(), two.sentence()
        check_whole(to)
        if status:
            who = (
                rf"process {one.process.pid} \({first.script.__name__}\.py\)|another program"  # about to write its name
            )
            unprepared = name == "sentences" and "--captions" in sentence
            assert unprepared or re.search(rf"({who}) is at work in it; wait for its end and repeat", sentence), (
                sentence
            )
            refused += 1
        assert go_on(one) == 0, one.sentence()
        assert first.outcome(to) == expected, f"beside one that was about to {changes[number]}"
    assert refused


def test_a_search_beside_a_build_finds_what_was_there_or_what_is_new(tasks, tmp_path, torture):
    """Whatever the build is about to do; the page holds what it has opened, and the same files are read by it."""
    build, to = tasks["index"], tmp_path / "to"
    find = replace(build, args=lambda to: ["find", to / "index", "a red circle", "--format", "jsonl"])
    images = tmp_path / "images"
    shutil.copytree(build.args(to)[1], images)

    def over(count):
        """A build of an index of so many of the images."""
        files = sorted(images.iterdir())[:count]
        return replace(build, args=lambda to: ["index", *files, *build.args(to)[2:]])

    def answer():
        asked = start(find, to, tmp_path / "find.txt")
        assert asked.end() == 0, asked.sentence()
        return asked.said.read_text().splitlines()[1:]  # behind who answers

    assert start(over(20), to, tmp_path / "said.txt").end() == 0
    shutil.copytree(to, tmp_path / "before")
    before = answer()
    changes, _ = changes_of(over(24), to, tmp_path / "said.txt")
    after = answer()
    assert before != after
    for number in chosen(changes, "index", torture):
        shutil.rmtree(to)
        shutil.copytree(tmp_path / "before", to)
        one = stopped_at(over(24), to, tmp_path / "said.txt", number)
        assert answer() in (before, after)
        assert go_on(one) == 0
        assert answer() == after
