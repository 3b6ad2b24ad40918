"""The web page: search an index with a sentence, or with an image that you drop, paste or choose.

python app.py photographs.index                    a page on http://127.0.0.1:7860/, for this machine alone
python app.py photographs.index --host 0.0.0.0     for everybody who can reach this machine

It asks no other host for anything, and shows no file but the images of the index.
"""

import argparse
import contextlib
import socket
import sys
from pathlib import Path

from utils import BadInput, run_script


def main() -> None:
    args = arguments()
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how a page ends
        from retrieval.web import check_packages

        check_packages()
        with listen(args.host, args.port) as listening:
            searcher = open_index(args)
            serve(searcher, listening, args)


def listen(host: str, port: int) -> socket.socket:
    """The address, taken before anything is read. Raises BadInput if another program has it."""
    try:
        family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError, OverflowError):
        raise BadInput(f"--host {host}: is no address of this machine; choose another, such as 127.0.0.1") from None
    try:
        return socket.create_server(place[:2], family=family, backlog=1000)
    except PermissionError:
        raise BadInput(f"--port {port}: may not be used by you; choose one above 1023") from None
    except OSError as error:
        raise BadInput(
            f"--port {port}: cannot be used on {host} ({error.strerror}); choose another, or 0 for any free one"
        ) from None


def open_index(args: argparse.Namespace):
    """The index and its run, with one query behind them: the first is the slowest."""
    from retrieval.searcher import Searcher

    searcher = Searcher.open(args.index, args.run, exact=args.exact)
    with contextlib.suppress(BadInput):  # this run knows no such word
        searcher.search("a", k=1)
    return searcher


def serve(searcher, listening: socket.socket, args: argparse.Namespace) -> None:
    """Answer until Ctrl-C."""
    import uvicorn

    from retrieval.web.server import application

    app = application(searcher, args.host, args.max_upload)
    config = uvicorn.Config(
        app,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=2**18,  # a query of many letters, each of which may take twelve in an address
    )
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    images = f"{len(searcher.index):,} images"
    print(f"app.py: {images} on http://{shown}:{port}/ (Ctrl-C ends it)", file=sys.stderr, flush=True)
    uvicorn.Server(config).run(sockets=[listening])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path, metavar="INDEX", help="the folder of an index, from search.py index")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: 127.0.0.1, this machine")
    parser.add_argument("--port", type=int, default=7860, help="default: 7860; 0 for any free one")
    parser.add_argument("--run", type=Path, metavar="RUN", help="the index's run, if it has moved")
    parser.add_argument("--exact", action="store_true", help="search all, where the index is made approximate")
    parser.add_argument("--max-upload", type=float, default=20, metavar="MB", help="of an image sent; default: 20")
    args = parser.parse_args()
    if not 0 <= args.port <= 65535:
        raise BadInput(f"--port {args.port}: ports are numbered 0 to 65535; choose one of them")
    if not args.max_upload > 0:
        raise BadInput(f"--max-upload {args.max_upload:g}: no image is so small; choose 1 or more")
    return args


if __name__ == "__main__":
    run_script(main)
