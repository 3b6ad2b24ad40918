"""Ask another process to read a file that the library for it might crash on, hang in or take all memory for.

The process is started with the first question and waits for the next one; where a file ends it, that is an error about
this file, and the next question starts another.
"""

import atexit
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

SCRIPT = Path(__file__).with_name("reader_process.py")
SECONDS, BYTES_PER_SECOND = 1.0, 2**24  # of computing that reading a file may take: so many, and more for a larger one


def ask(path: Path, call: str, *arguments: Any, data: bytes = b"") -> tuple[Any, np.ndarray]:
    """Call a function of features/reader_process.py on a file; return its value and its array, empty if it has none.

    Raises OSError with the reason if the file cannot be read, or if reading it ends the process.
    """
    try:
        seconds = SECONDS + os.stat(path).st_size / BYTES_PER_SECOND
        request = json.dumps([os.path.abspath(path), seconds, call, arguments, len(data)])
        with _lock:
            answer, array = _process.exchange(request.encode() + b"\n" + data)
    except ValueError as error:  # a path with a zero byte in it
        raise OSError(str(error)) from None
    if "error" in answer:
        raise OSError(answer["error"])
    return answer["value"], array


class _Process:
    """The process, started when it is needed. used: whether it has answered before."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.used = False

    def exchange(self, request: bytes) -> tuple[dict[str, Any], np.ndarray]:
        """Send a request, return the answer. Raises OSError if the process ends."""
        for _ in range(2):
            used, answer = self.used, self._try(request)
            if answer is not None:
                return answer
            status = self.stop()
            if status == -signal.SIGPROF:
                raise OSError("reading it would take for ever")
            if not used:  # else what it read before may be to blame
                break
        raise OSError("reading it ends the process that does so")

    def _try(self, request: bytes) -> tuple[dict[str, Any], np.ndarray] | None:
        """None if the process has ended before it answered."""
        if self.process is None:
            command = [sys.executable, "-P", str(SCRIPT)]  # -P: the rooms beside it are no packages to be imported
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        self.used = True
        questions, answers = self.process.stdin, self.process.stdout
        assert isinstance(questions, io.BufferedWriter)
        assert isinstance(answers, io.BufferedReader)
        try:
            questions.write(request)
            questions.flush()
            line = answers.readline()
            if not line.endswith(b"\n"):
                return None
            answer = json.loads(line)
            array = np.empty(answer.get("shape", 0), answer.get("dtype", "f4"))
            if answers.readinto(array.reshape(-1).view(np.uint8).data) < array.nbytes:
                return None
        except BrokenPipeError:
            return None
        except BaseException:  # interrupted between question and answer
            self.process.kill()
            self.stop()
            raise
        return answer, array

    def stop(self) -> int:
        """End the process; return how it ended, as `subprocess` says it."""
        process, self.process, self.used = self.process, None, False
        if process is None:
            return 0
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        try:
            return process.wait(1)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def forget(self) -> None:
        """Leave the process to the parent, in a forked child."""
        if self.process is not None:
            self.process.returncode = 0  # it is no child of this process, which must not wait for it
            for pipe in (self.process.stdin, self.process.stdout):
                pipe.close()  # type: ignore[union-attr]
        self.process, self.used = None, False


_process = _Process()
_lock = threading.Lock()  # one question at a time, and no fork within it


def _after_fork() -> None:
    _process.forget()
    _lock.release()


os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_after_fork)
atexit.register(_process.stop)
