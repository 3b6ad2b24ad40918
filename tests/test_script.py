"""How scripts end: a sentence for what goes wrong, and within a second of Ctrl-C or SIGTERM."""

import importlib
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from script import missing_package
from tests.helpers import ROOT, call


def test_a_python_without_the_packages_hears_where_they_are(tmp_path):
    """Without site-packages, as a system's Python is."""
    done = subprocess.run([sys.executable, "-S", "train.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(
        r"train.py: .+ has no torch; call .*source .venv/bin/activate, or else pip install -r requirements.txt\n",
        done.stderr,
    )


def test_packages_are_known_by_their_modules():
    for module, file in (("PIL.Image", "requirements.txt"), ("starlette", "requirements-search.txt")):
        assert (missing_package(module) or "").endswith(file)
    assert "scikit-learn" in (missing_package("sklearn") or "")
    assert missing_package("features.nothing") is None, "that is an error of ours"


@pytest.mark.parametrize(
    ("script", "args", "said"),
    [
        ("eval", ["--format", "jsno"], "argument --format: invalid choice: 'jsno'"),
        (
            "search",
            ["find", "x.index", "a dog", "--at-least", "50%"],
            "argument --at-least: invalid float value: '50%'",
        ),
        ("search", [], "the following arguments are required: COMMAND"),
        ("prep", ["--crops", "3"], "argument --crops: invalid choice: 3"),
        ("train", ["--jobs", "two"], "argument --jobs: invalid int value: 'two'"),
        ("app", ["x.index", "--port", "a"], "argument --port: invalid int value: 'a'"),
    ],
)
def test_what_a_parser_cannot_read_is_one_sentence_too(script, args, said, monkeypatch, capsys):
    assert call(monkeypatch, importlib.import_module(script), *args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{script}.py: {said}")
    assert line.endswith(f"; {script}.py{' find' if 'find' in args else ''} --help says what it takes")


STOPPED = "-c: stopped; repeat the command, without --fresh, and it continues\n"
BUSY = {
    "in Python": "say(); time.sleep(60)",
    "in a library that hears nothing": "say(); hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)",
    "in what takes it for its own": "say()\n  while True:\n    try: time.sleep(60)\n    except KeyboardInterrupt: pass",
    "beside a thread": "threading.Thread(target=time.sleep, args=(60,)).start(); say(); time.sleep(60)",
    "with a file open": "\n  try: say(); time.sleep(60)\n  finally: print('put in order')",
}
BUSY_SCRIPT = """
import functools, hashlib, threading, time
from script import run_script
say = functools.partial(print, "busy", flush=True)
def main():
  {}
run_script(main)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("busy", BUSY)
def test_a_stop_is_heard_within_a_second_and_says_how_to_go_on(busy, number):
    command = [sys.executable, "-c", BUSY_SCRIPT.format(BUSY[busy])]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout
        assert program.stdout.readline() == "busy\n"
        program.send_signal(number)
        began = time.monotonic()
        said, error = program.communicate(timeout=60)
    assert time.monotonic() - began < 5, "a second on a machine that does nothing else"
    assert (program.returncode, error) == (128 + number, STOPPED)
    assert said == ("put in order\n" if busy == "with a file open" else "")


def test_forked_processes_leave_stops_to_their_parent():
    """One that a library forks is ended by it with SIGTERM, in silence, and hears no Ctrl-C of the terminal."""
    code = """
import os, signal, time
from script import run_script
def main():
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    time.sleep(0.1)
    os.kill(child, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
run_script(main)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{-signal.SIGTERM}\n", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize("size", [10, 100_000])  # less and more than Python keeps back
def test_what_is_printed_to_a_full_disk_or_a_closed_pipe(size):
    code = f"from script import run_script; run_script(lambda: print('a' * {size}))"
    command = [sys.executable, "-c", code]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 2
        assert re.fullmatch(r"-c: No space left on device; check that it exists, .*\n", done.stderr)
        assert subprocess.run(command, cwd=ROOT, stdout=full, stderr=full, check=False).returncode == 2
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout
        program.stdout.close()  # as head does
        assert program.stderr
        assert (program.stderr.read(), program.wait()) == ("", 0)
