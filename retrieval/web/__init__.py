"""The page over a search index: server, answers, images in and out, and the page's plain files."""

import contextlib
import importlib
import math
import socket
from pathlib import Path

from utils import BadInput, log, warn


def serve(
    index: Path | str,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    run: Path | str | None = None,
    exact: bool = False,
    index_url: str | None = None,
    max_upload: float = 20,
    token: str | None = None,
) -> None:
    """Serve the page until Ctrl-C.

    index: its folder; port: 0 for any free one; run: where the index's run lies, if it has moved; exact: also where
    the index has a graph; index_url: where Milvus is, if it searches the index; max_upload: of an image that is sent,
    MB; token: what the page is opened with, at /?token=TOKEN; None for one that is drawn and said, where other machines
    reach the host. Raises BadInput where a package is missing, the address cannot be used, or the index cannot be
    opened.

    >>> serve("photos.index", port=0)  # doctest: +SKIP
    """
    if not 0 < max_upload < math.inf:
        raise BadInput(f"`max_upload` {max_upload:g}: no image has so many MB; choose 1 or more")
    try:
        for package in ("jinja2", "python_multipart", "starlette", "uvicorn"):
            importlib.import_module(package)
    except ImportError as error:
        raise BadInput(f"{error.name}: the page needs this package; pip install -r requirements-search.txt") from None
    from retrieval.web.guard import TOKEN, checked_token, is_loopback

    secret = checked_token(token, host)
    with contextlib.suppress(KeyboardInterrupt), listen(host, port) as listening:
        from retrieval.searcher import Searcher
        from retrieval.web.connection import server_of
        from retrieval.web.server import application

        searcher = Searcher.open(index, run, exact, index_url)
        with contextlib.suppress(BadInput):  # this run knows no such word
            searcher.search("a!", k=1)  # the first query is the slowest, and the first that is not plain imports NLTK
        server = server_of(application(searcher, host, max_upload, secret))
        if not is_loopback(host):
            warn(
                f"`host` {host}: other machines reach this page, and nothing on the way is encrypted; they open it by "
                f"this machine's name or address, with the same token"
            )
        host, port = listening.getsockname()[:2]
        name = f"[{host}]" if ":" in host else host
        # a token that was given is known, and need not stand in a log
        opened = "" if secret is None else f"?{TOKEN}={secret if token is None else '…'}"
        log(f"{len(searcher.index):,} images on http://{name}:{port}/{opened} (Ctrl-C ends it)")
        server.run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """Take the address, before anything is read. Raises BadInput if another program has it."""
    if not 0 <= port <= 65535:
        raise BadInput(f"`port` {port}: ports are numbered 0 to 65535; choose one of them")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError, OverflowError):
        raise BadInput(f"`host` {host}: is no address of this machine; choose another, such as 127.0.0.1") from None
    try:
        return socket.create_server(address[:2], family=family, backlog=1000)
    except PermissionError:
        raise BadInput(f"`port` {port}: may not be used by you; choose one above 1023") from None
    except OSError as error:
        raise BadInput(
            f"`port` {port}: cannot be used on {host} ({error.strerror}); choose another, or 0 for any free one"
        ) from None
