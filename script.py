"""How a script runs: what goes wrong is one sentence, Ctrl-C and SIGTERM end it within a second, and its arguments."""

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from utils import BadInput, NotPrepared, as_script, command_line, refused, with_flags

STOPPED = "stopped; repeat the command, without --fresh, and it continues"
STOPS = (signal.SIGINT, signal.SIGTERM)
SECONDS_TO_END = 0.5  # for what is under way to be put in order; what is left then, a kill would leave, too

_stoppable = False  # whether this process hears STOPS as `stoppable` says


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`; bad input ends in one sentence on stderr and exit status 2, never in a traceback.

    Of the processes that torchrun starts on a machine one alone is heard, until they have joined.
    """
    stderr, heard = sys.stderr, list[int]()
    if int(os.environ.get("LOCAL_RANK", "0")):
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until features.distributed.joined)
    try:
        with as_script():
            status = _status_of(main, heard)
    finally:
        sys.stderr = stderr
    flush_or_discard()
    if heard:  # at once: a thread of a library may still be at work, and would be waited for
        os._exit(status and 128 + heard[0])
    if status:
        sys.exit(status)


def _status_of(main: Callable[[], None], heard: list[int]) -> int:
    """Call `main`, say in one sentence what ended it, if anything did, and return the exit status."""
    try:
        with stoppable(heard):
            main()
        sys.stdout.flush()  # what goes to a full disk is an error
    except NotPrepared as error:
        return _say(f"{with_flags(str(error))}; prepare them with: {command_line('prep.py', error.options)}", 2)
    except BadInput as error:
        return _say(with_flags(str(error)), 2)
    except KeyboardInterrupt:
        return _say(STOPPED, 130)
    except ModuleNotFoundError as error:
        if (sentence := missing_package(error.name or "")) is None:
            raise
        return _say(sentence, 2)
    except BrokenPipeError:  # the reader of a pipe (head, less) went away: not an error of ours
        return 0
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        return _say(refused(error), 2)
    return 0


def _say(sentence: str, status: int) -> int:
    with contextlib.suppress(OSError):  # stderr may go to the disk that is full
        print(f"{Path(sys.argv[0]).name}: {sentence}", file=sys.stderr)
    return status


def flush_or_discard() -> None:
    """Write what has been printed; what cannot be written goes nowhere, and is no error once the program ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def stoppable(heard: list[int]) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM raise KeyboardInterrupt, and add its number to those `heard`.

    A library may be at work for long without hearing it, or what is to be put in order may take long: then the process
    ends after SECONDS_TO_END as by a kill, of which nothing takes harm. Forked processes leave both to their parent.
    """
    global _stoppable
    reader, writer = os.pipe()

    def stop(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        for each in STOPS:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    def watch() -> None:  # in a thread: the first one hears a signal only between two steps of Python
        with open(reader, "rb", buffering=0) as signals:
            while number := signals.read(1):
                if number[0] in STOPS:
                    time.sleep(SECONDS_TO_END)
                    if _stoppable:
                        _say(STOPPED, 0)
                    os._exit(128 + number[0])

    def report(error: Any) -> None:  # one that met a callback, of a weak reference, is lost there: `watch` ends all
        if not issubclass(error.exc_type, KeyboardInterrupt):
            unraisable(error)

    unraisable, sys.unraisablehook = sys.unraisablehook, report
    os.set_blocking(writer, False)
    before = [(number, signal.signal(number, stop)) for number in STOPS]
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True).start()
    _stoppable = True
    try:
        yield
    finally:
        _stoppable = False
        sys.unraisablehook = unraisable
        signal.set_wakeup_fd(wakeup)
        for number, handler in before:
            signal.signal(number, signal.SIG_IGN if heard else handler)
        os.close(writer)


def _leave_to_parent() -> None:
    if _stoppable:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_leave_to_parent)


def missing_package(module: str) -> str | None:
    """Return what to do where a module cannot be imported; None if it is of no package that this project asks for."""
    root, name = Path(__file__).parent, module.partition(".")[0]
    package = {"PIL": "pillow", "sklearn": "scikit-learn"}.get(name, name.replace("_", "-"))
    for file in ("requirements.txt", "requirements-search.txt", "requirements-dev.txt"):
        text = (root / file).read_text(encoding="utf-8") if (root / file).is_file() else ""
        if re.search(rf"(?mi)^{re.escape(package)}\b", text):
            made = (root / ".venv/bin/activate").is_file()
            activate = "call source .venv/bin/activate" if made else "call make demo, then source .venv/bin/activate"
            return f"{sys.executable} has no {package}; {activate}, or else pip install -r {file}"
    return None


def complete(parser: Any, **choices: Callable[[Any], Iterable[str]]) -> None:
    """Answer a shell that asks what may follow (argcomplete's protocol), which ends the program; else do nothing.

    choices: for an argument, by its name, a function of what stands on the command line already.
    """
    if "_ARGCOMPLETE" not in os.environ:
        return
    try:
        import argcomplete
    except ImportError:
        sys.exit(1)

    def complete_all(parser: Any) -> None:
        for action in parser._actions:
            if isinstance(action.choices, dict):  # commands, each with a parser of its own
                for command in action.choices.values():
                    complete_all(command)
            elif action.dest in choices:
                action.completer = lambda prefix, parsed_args, dest=action.dest, **_: choices[dest](parsed_args)

    complete_all(parser)
    argcomplete.autocomplete(parser)


def one_sentence(parser: Any) -> Any:
    """Let a parser of argparse, and those of its commands, raise BadInput for what it cannot read; return it."""

    def refuse(message: str) -> None:
        sentence = f"{message}; {parser.prog} --help says what it takes"
        raise BadInput(sentence)

    parser.error = refuse
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for command in action.choices.values():
                one_sentence(command)
    return parser


def folders_with(file: str, root: Path) -> list[str]:
    """Return the names of the folders in `root` that hold a file of this name."""
    return sorted(path.parent.name for path in root.glob(f"*/{file}"))
