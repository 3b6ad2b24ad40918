"""A run on the Hugging Face hub, hub:USER/NAME or hub:USER/NAME@REVISION: opened from there, and pushed there.

Nothing is asked of the hub unless such a name is given. What is read is the files of a run, by their names, none of
which is a pickle; they lie in the hub's own cache.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from training.run import MODEL, RECIPE, RESULT, VOCABULARY
from utils import BadInput, warn

HUB = "hub:"
CARD, BANK = "README.md", "bank.safetensors"
NEEDED = (RECIPE, MODEL, VOCABULARY, RESULT)
FILES = (*NEEDED, BANK, CARD)
# Bytes at most: a file that claims to be larger is none of a run's.
MAX_BYTES = {MODEL: 8 * 2**30, BANK: 2**30, VOCABULARY: 2**28, RECIPE: 2**20, RESULT: 2**20, CARD: 2**20}


class HubName(NamedTuple):
    """Where on the hub a run lies. revision: a branch, a tag or a commit; None for the newest."""

    repo: str
    revision: str | None

    @property
    def name(self) -> str:
        return self.repo.rpartition("/")[2]


def is_hub(name: Path | str) -> bool:
    """Return whether a name is that of a run on the hub."""
    return str(name).startswith(HUB)


def parse_name(name: Path | str) -> HubName:
    """Read hub:USER/NAME@REVISION. Raises BadInput if it is none.

    >>> parse_name("hub:somebody/strong-flickr8k@v1")
    HubName(repo='somebody/strong-flickr8k', revision='v1')
    """
    repo, at, revision = str(name).removeprefix(HUB).partition("@")
    if not re.fullmatch(r"[\w-]+(\.[\w-]+)*/[\w-]+(\.[\w-]+)*", repo, re.ASCII) or (at and not revision):
        raise BadInput(f"{name}: not a name on the hub; write it as hub:USER/NAME, or hub:USER/NAME@REVISION")
    return HubName(repo, revision or None)


def download_run(name: Path | str) -> Path:
    """Return the folder of the hub's cache that holds the run `name`, downloaded where it is not there yet.

    Without a network, what the cache holds is taken, and said so. Raises BadInput if the hub or the run cannot be had.
    """
    import huggingface_hub
    from huggingface_hub import constants

    from features.images.weights import cache_only_without_network  # late: with torch

    where = parse_name(name)
    with _hub_errors(str(name)), cache_only_without_network():
        if constants.HF_HUB_OFFLINE:
            warn(f"{name}: the Hugging Face hub cannot be reached; its cache is asked alone")
            files = _cached(where)
        else:
            about = huggingface_hub.HfApi().model_info(where.repo, revision=where.revision, files_metadata=True)
            sizes = {sibling.rfilename: sibling.size for sibling in about.siblings or []}
            check_files(name, sizes)
            files = [file for file in FILES if file in sizes]
        paths = [Path(huggingface_hub.hf_hub_download(where.repo, file, revision=where.revision)) for file in files]
    if len({path.parent for path in paths}) > 1:
        raise BadInput(f"{name}: has changed while it was downloaded; repeat the command")
    return paths[0].parent


def _cached(where: HubName) -> list[str]:
    """The files of a run that the cache holds, and all that are needed: to ask for one that is missing is an error."""
    import huggingface_hub

    cached = {file: huggingface_hub.try_to_load_from_cache(where.repo, file, revision=where.revision) for file in FILES}
    return [file for file in FILES if file in NEEDED or isinstance(cached[file], str)]


def check_files(name: Path | str, sizes: dict[str, int | None]) -> None:
    """Raise BadInput unless a repository with files of these sizes holds a run.

    >>> check_files("hub:a/b", dict.fromkeys(NEEDED, 1000))
    """
    missing = [file for file in NEEDED if file not in sizes]
    if missing:
        raise BadInput(f"{name}: holds no run (no {missing[0]}); name a repository that eval.py shared one to")
    for file in FILES:
        size = sizes.get(file, 0)
        if size is None or size > MAX_BYTES[file]:
            said = "without a size" if size is None else f"of {size / 2**20:,.0f} MB"
            raise BadInput(f"{name}: has a {file} {said}, which no run of this project has; name another")


def check_push(name: Path | str) -> HubName:
    """Return where to push to. Raises BadInput for a wrong name, without a network, or without a token."""
    import huggingface_hub

    from features.images.weights import cache_only_without_network

    where = parse_name(name)
    if where.revision:
        raise BadInput(f"`share` {name}: a run is pushed to the main branch; leave the @ out")
    with _hub_errors(f"`share` {name}"), cache_only_without_network():
        huggingface_hub.HfApi().whoami()
    return where


def push_run(folder: Path, name: Path | str) -> str:
    """Upload the files of a shared run as one commit, into a repository that is made if need be; return its address.

    Raises BadInput as `check_push` does, and if this token may not write there.
    """
    import huggingface_hub

    where = parse_name(name)
    api = huggingface_hub.HfApi()
    with _hub_errors(f"`share` {name}"):
        address = api.create_repo(where.repo, exist_ok=True)
        api.upload_folder(
            repo_id=where.repo,
            folder_path=folder,
            allow_patterns=list(FILES),
            commit_message="A run, its card and table",
        )
    return str(address)


@contextlib.contextmanager
def _hub_errors(given: str) -> Iterator[None]:
    """Turn what the hub's client raises into one sentence."""
    from huggingface_hub import errors

    login = "log in with hf auth login"
    try:
        yield
    except errors.GatedRepoError as error:
        raise BadInput(f"{given}: is given only to those who asked for it; ask there and {login}") from error
    except errors.RevisionNotFoundError as error:
        raise BadInput(f"{given}: has no such revision; check what stands behind the @, or leave it out") from error
    except errors.RepositoryNotFoundError as error:
        raise BadInput(
            f"{given}: no such repository on the Hugging Face hub, or a private one; check its spelling, or {login}"
        ) from error
    except errors.LocalTokenNotFoundError as error:
        raise BadInput(f"{given}: needs a token that may write there; {login}, or set HF_TOKEN") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise BadInput(f"{given}: this token may not do that ({status}); {login} with one that may") from error
        raise BadInput(f"{given}: the Hugging Face hub answers with an error ({status}); repeat this later") from error
    except (errors.HTTPError, errors.LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:
        raise BadInput(
            f"{given}: the Hugging Face hub could not be reached, and its cache does not hold it; repeat this with a "
            f"network"
        ) from error
