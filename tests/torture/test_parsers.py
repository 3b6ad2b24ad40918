"""Every reader of a file returns or raises BadInput within a second, whatever the bytes are; the process lives on."""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import traceback
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import utils
from tests.helpers import ROOT
from tests.torture.mutations import mutate
from tests.torture.parsers import PARSERS
from utils import BadInput

SHORT, LONG = 6, 400  # mutations of each kind of file
GUIDED_SECONDS = 10  # of fuzzing guided by coverage, for each kind of text
TEXTS = [name for name in PARSERS if name.rpartition(".")[2] in ("csv", "tsv", "json", "jsonl", "toml", "txt", "token")]
SECONDS = 1.0  # of computing for one file
MEMORY = 2**31  # bytes that reading may take beyond what the process has


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Return a function that makes the folder of a kind of file, once for all kinds that lie in the same folder."""

    @cache
    def made(make):
        folder = tmp_path_factory.mktemp("sound")
        return folder, make(folder)

    return made


@pytest.mark.parametrize("name", PARSERS)
def test_whatever_the_bytes_are(name, sound, tmp_path, torture):
    parser = PARSERS[name]
    made, file = sound(parser.make)
    folder = tmp_path / "folder"
    shutil.copytree(made, folder)
    path = folder / file.relative_to(made)
    for text in folder.rglob("*"):
        if text.suffix in (".json", ".toml") and str(made) in text.read_text(errors="replace"):
            text.write_text(text.read_text().replace(str(made), str(folder)))
    parser.read(path)
    failures = attack(name, path, LONG if torture else SHORT, tmp_path / "said.txt")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("name", TEXTS)
def test_guided_by_coverage(name, tmp_path, torture):
    if not torture:
        pytest.skip("make torture")
    pytest.importorskip("atheris")
    command = [sys.executable, "-m", "tests.torture.guided", name, tmp_path, f"-max_total_time={GUIDED_SECONDS}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    print(done.stderr.strip().splitlines()[-1])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(TEXTS), st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode()))
def test_any_bytes(sound, name, data):
    _, file = sound(PARSERS[name].make)
    content = file.read_bytes()
    try:
        file.write_bytes(data)
        with contextlib.suppress(BadInput):
            PARSERS[name].read(file)
    finally:
        file.write_bytes(content)


def attack(name: str, path: Path, count: int, said: Path) -> list[str]:
    """Read `count` mutations of a file in a child process; return what was neither read nor refused."""
    said.touch()
    if not (child := os.fork()):
        status = 1
        try:
            _read_all(name, path, count, said)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    lines = said.read_text().splitlines()
    if os.WIFSIGNALED(status):
        lines.append(f"{lines.pop()} ended the process: {signal.Signals(os.WTERMSIG(status)).name}")
    return [line for line in lines if not line.endswith(" done")]


def _read_all(name: str, path: Path, count: int, said: Path) -> None:
    sound, parser = path.read_bytes(), PARSERS[name]
    utils.be_quiet(warnings=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 2**40
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with open(said, "a") as log:
        for number in range(count):
            path.write_bytes(mutate(random.Random(f"{name} {number}"), sound, name))
            log.write(f"mutation {number} of {name}")
            log.flush()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                parser.read(path)
            except BadInput:
                pass
            except Exception:
                log.write(" raised " + "; ".join(traceback.format_exc().splitlines()[-3:]) + "\n")
                continue
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            log.write(" done\n")
