"""The server of the web page over a search index: its addresses, requests and responses, and what is refused.

GET  /                     the page; with its answer in it where its address asks (retrieval/web/query.py)
POST /                     the same for an image (multipart, field `image`): leads to the address of its answer
GET  /api/search?q=…       the answer as JSON: q=SENTENCE, like=ID, upload=DIGEST, minus=SENTENCE, k=N
GET  /api/search.csv?q=…   its images as a table; ranks=1,2 leaves out all others
POST /api/image?k=N        what an image finds, that is the body, or multipart; `upload` in the answer is its DIGEST
GET  /thumbnail/ROW        an image of the index, small
GET  /image/ROW            the same at most 1,600 pixels large; /full/ROW: in all its pixels
GET  /about/ROW            its caption, pixels, bytes and date, as JSON, and its path where only this machine asks
GET  /upload/DIGEST        an image that was sent, small

Images are looked up by their row in the index: no address is ever joined to a folder. Errors are one sentence, in the
page where a browser opens an address, or as {"error": sentence}.
"""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError, Executor, ThreadPoolExecutor
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image as PILImage
from starlette.applications import Starlette
from starlette.convertors import IntegerConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from features.images.decode import jpeg_bytes
from features.images.files import open_image_file
from retrieval.searcher import Searcher, plain
from retrieval.web.answers import Answers
from retrieval.web.export import results_csv
from retrieval.web.guard import LOOPBACK, Guard, is_loopback
from retrieval.web.home import Home
from retrieval.web.images import (
    FULL_PIXELS,
    FULL_QUALITY,
    PREVIEW_PIXELS,
    QUALITY,
    VIEW_PIXELS,
    file_facts,
    large_jpeg,
    open_upload,
    version_of,
)
from retrieval.web.query import MAX_K, MORE_K, Query, body_of, k_of, text_of
from retrieval.words import MAX_QUERY_CHARS
from utils import BadInput

PAGE = Path(__file__).with_name("page")
SCRIPTS = ("script.js", "tiles.js", "larger.js")
FILES = {"style.css": "text/css", "icon.svg": "image/svg+xml"} | dict.fromkeys(SCRIPTS, "text/javascript")
MAX_UPLOAD_MB = 20
MAX_WAIT_SECONDS = 10  # for the emoji to be read
UNKNOWN_WORD = "qxzvjqxzvj"
MAX_DECODING = 2  # images that were sent and lie decoded, of 300 MB each at most
GENERAL_ERRORS = {
    404: "there is nothing at this address; the page is at /",
    405: "this address does not take such a request; the page is at /",
    500: "something went wrong here; what it was is said where app.py runs",
}


def application(
    searcher: Searcher, host: str = "127.0.0.1", max_upload: float = MAX_UPLOAD_MB, token: str | None = None
) -> ASGIApp:
    """Return the page as an ASGI application.

    host: the address it is served at; max_upload: of a request, MB; token: what it is opened with, if it asks for one.
    """
    page = Page(searcher, max_upload, is_loopback(host))
    routes = [
        Route("/", page.show),
        Route("/", page.show_upload, methods=["POST"]),
        Route("/api/search", page.search),
        Route("/api/search.csv", page.export),
        Route("/api/image", page.upload, methods=["POST"]),
        Route("/thumbnail/{row:row}", page.thumbnail),
        Route("/image/{row:row}", page.image),
        Route("/full/{row:row}", page.full),
        Route("/original/{row:row}", page.original),
        Route("/about/{row:row}", page.about),
        Route("/upload/{digest}", page.sent),
        *(Route(f"/{name}", page.file) for name in FILES),
    ]
    handlers: dict[Any, Any] = dict.fromkeys((BadInput, HTTPException, ClientDisconnect, Exception), page.refuse)
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=page.lifespan)
    app.router.redirect_slashes = False  # to an address that the request's Host header would name
    # from another host's page, a browser could be led here under a name of that host
    hosts = {*LOOPBACK, host.lower()} if is_loopback(host) else None
    return Guard(app, hosts, int(max_upload * 1_000_000), token)


class RowConvertor(IntegerConvertor):
    """The number of a row in an address; Python turns no number of thousands of digits into an int."""

    regex = "[0-9]{1,18}"


register_url_convertor("row", RowConvertor())


class Page:
    """The handlers of all addresses; what needs the run waits in one queue, so that each request is soon done.

    paths: whether answers may name files of this machine.
    """

    def __init__(self, searcher: Searcher, max_upload: float, paths: bool):
        self.searcher, self.answers, self.paths = searcher, Answers(searcher), paths
        # One query uses all cores: a second beside it would only take them away. And while a backbone is opened,
        # nothing else may run at all: tracing its layers changes the call of every torch module.
        self.queue = ThreadPoolExecutor(1, thread_name_prefix="search")
        self.decoders = ThreadPoolExecutor(2, thread_name_prefix="decode")
        self.decoding = asyncio.Semaphore(MAX_DECODING)
        self.files = {name: (PAGE / name).read_bytes() for name in FILES}
        loader, strict = jinja2.FileSystemLoader(PAGE), jinja2.StrictUndefined
        environment = jinja2.Environment(
            loader=loader, autoescape=True, undefined=strict, trim_blocks=True, lstrip_blocks=True
        )
        environment.filters |= {"plain": plain, "score": lambda score: f"{score:.3f}".replace("-", "−")}
        environment.globals |= {
            "home": Home(self.answers),
            "max_query_chars": MAX_QUERY_CHARS,
            "max_upload": f"{max_upload:g}",
            "more_k": MORE_K,
        }
        self.template = environment.get_template("index.html")

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Load the emoji and the backbones in a thread, between the first queries."""
        threading.Thread(target=self.warm_up).start()
        yield
        for pool in (self.queue, self.decoders):
            pool.shutdown(wait=False, cancel_futures=True)

    def warm_up(self) -> None:
        """Load what the first image needs, and the first word that the run does not know."""

        def in_turn(work: Callable[..., Any], *args: Any) -> Any:
            return self.queue.submit(work, *args).result()

        with contextlib.suppress(RuntimeError, CancelledError):  # the queue is closed: the server has ended
            self.answers.read_emoji(in_turn)
            with contextlib.suppress(BadInput):  # whoever sends an image will read why
                in_turn(self.searcher.embed_image, PILImage.new("RGB", (64, 64)))
            with contextlib.suppress(BadInput):  # there is none like it
                in_turn(self.searcher.ask, UNKNOWN_WORD, 1)

    async def show(self, request: Request) -> Response:
        """Show the page: its home, or the answer to what its address asks."""
        query = Query.of(request)
        return self.html(query, await self.answer(query) if query.asked else None)

    async def show_upload(self, request: Request) -> Response:
        """Lead to the address of what an image finds: so it can be loaded again."""
        return RedirectResponse((await self.keep(request)).address(), 303)

    async def search(self, request: Request) -> Response:
        return as_json(await self.answer(Query.of(request)))

    async def upload(self, request: Request) -> Response:
        query = await self.keep(request)
        return as_json(await self.answer(query) | {"upload": query.upload})

    async def export(self, request: Request) -> Response:
        """Send the images of an answer as a CSV file."""
        answer, ranks = await self.answer(Query.of(request)), text_of(request, "ranks")
        rows = [row for row in answer["images"] if not ranks or str(row["rank"]) in ranks.split(",")]
        headers = {"Content-Disposition": 'attachment; filename="results.csv"'}
        return Response(results_csv(rows, self.name_of), headers=headers, media_type="text/csv; charset=utf-8")

    def name_of(self, image: str) -> str:
        """Return the path of an image's file where only this machine asks; else its id."""
        path = self.searcher.path(image)
        return str(path) if self.paths and path is not None else image

    async def answer(self, query: Query) -> dict[str, Any]:
        if query.like and self.searcher.index.row_of(query.like) is None:
            raise HTTPException(
                404, f"the index has no image {plain(query.like)[:200]}; it may have been taken out since"
            )
        if query.only_image:
            await self.emoji_read()
        return await run_in(self.queue, self.answers.of, query)

    async def keep(self, request: Request) -> Query:
        """Keep the image that a request brings; return the question for what it finds."""
        query = Query(k=k_of(request))
        data = await body_of(request)
        async with self.decoding:
            image = await run_in(self.decoders, open_upload, data)
            jpeg = await run_in(self.decoders, jpeg_bytes, image.copy(), PREVIEW_PIXELS, QUALITY)
            return replace(query, upload=await run_in(self.queue, self.answers.keep_upload, data, image, jpeg))

    async def emoji_read(self) -> None:
        """Wait for the emoji, soon after the start."""
        for _ in range(10 * MAX_WAIT_SECONDS):
            if self.answers.emoji_done.is_set():
                return
            await asyncio.sleep(0.1)

    async def thumbnail(self, request: Request) -> Response:
        row = self.row_of(request)
        jpeg = self.searcher.index.thumbnail(row)
        if jpeg is None:
            raise HTTPException(404, "this image has no thumbnail")
        return jpeg_response(request, self.digest(row), jpeg)

    async def image(self, request: Request) -> Response:
        """Send an image from its file, encoded anew; its thumbnail if the file has gone or is no image any more."""
        return await self.encoded(request, VIEW_PIXELS, QUALITY)

    async def full(self, request: Request) -> Response:
        """Send the same in all its pixels."""
        return await self.encoded(request, FULL_PIXELS, FULL_QUALITY)

    async def original(self, request: Request) -> Response:
        """Send an image's file as it is, to this machine alone: it may say where it was taken."""
        path = self.searcher.index.path(self.row_of(request))
        kind = (await run_in(self.decoders, file_facts, path))["type"] if self.paths else None
        if path is None or kind is None:
            raise HTTPException(404, "its file is not shown as it is; the image is at /full")
        with open_image_file(path) as file:
            return Response(file.read(), media_type=kind, headers={"Cache-Control": "private, no-cache"})

    async def encoded(self, request: Request, side: int, quality: int) -> Response:
        row = self.row_of(request)
        path = self.searcher.index.path(row)
        version = version_of(path)
        if path is None or version is None:
            return await self.thumbnail(request)
        etag = f"{self.digest(row)}-{version}-{side}"
        if is_known(request, etag):
            return jpeg_response(request, etag, b"")
        jpeg = await run_in(self.decoders, large_jpeg, path, side, quality)
        return await self.thumbnail(request) if jpeg is None else jpeg_response(request, etag, jpeg)

    async def about(self, request: Request) -> Response:
        row = self.row_of(request)
        image = self.searcher.index.ids[row]
        facts = await run_in(self.decoders, file_facts, self.searcher.index.path(row))
        facts["original"] = f"/original/{row}" if facts.pop("type") and self.paths else None
        (caption,) = await run_in(self.queue, self.answers.tiles.describe, [row])
        return as_json({"image": image, "path": self.name_of(image), "caption": caption, **facts})

    async def sent(self, request: Request) -> Response:
        digest = request.path_params["digest"]
        try:
            return jpeg_response(request, digest, self.answers.uploads.get(digest).jpeg)
        except BadInput as error:
            raise HTTPException(404, str(error)) from None

    def row_of(self, request: Request) -> int:
        row = request.path_params["row"]
        if row >= len(self.searcher.index):
            raise HTTPException(404, f"the index has no image of number {str(row)[:20]}")
        return row

    def digest(self, row: int) -> str:
        return self.searcher.index.rows[row]["digest"].tobytes().hex()[:32]

    async def file(self, request: Request) -> Response:
        name = request.url.path.removeprefix("/")
        return Response(self.files[name], media_type=FILES[name], headers={"Cache-Control": "no-cache"})

    async def refuse(self, request: Request, error: Exception) -> Response:
        """Answer with one sentence: in the page, where that or any other page was asked for, or as JSON."""
        status, sentence = 500, GENERAL_ERRORS[500]
        if isinstance(error, BadInput):
            status, sentence = 400, str(error)
        elif isinstance(error, HTTPException):
            status, sentence = error.status_code, error.detail
            if sentence == HTTPStatus(status).phrase:  # nobody has said more
                sentence = GENERAL_ERRORS.get(status, sentence)
        path = request.url.path
        reads = "text/html" in request.headers.get("accept", "") and not path.startswith("/api/")
        if path != "/" and not reads:
            return as_json({"error": sentence}, status)
        query = Query(asked=False)
        with contextlib.suppress(BadInput):
            query = Query.of(request)
        return self.html(replace(query, sentence=query.sentence[:MAX_QUERY_CHARS]), None, status, sentence)

    def html(self, query: Query, answer: dict[str, Any] | None, status_code: int = 200, error: str = "") -> Response:
        """Render the page with an answer, or without; error: a sentence that stands in it."""
        preview, rows = None, answer["images"] if answer else []
        if query.upload:
            preview = f"/upload/{query.upload}"
        elif (row := self.searcher.index.row_of(query.like)) is not None:
            preview = f"/thumbnail/{row}"
        copies: dict[int, list[Any]] = {}
        for tile in rows:
            if tile["copy_of"] is not None:
                copies.setdefault(tile["copy_of"], []).append(tile)
        groups = [(tile, copies.get(tile["rank"], [])) for tile in rows if tile["copy_of"] is None]
        more = query.address(k=min(query.k + MORE_K, MAX_K)) if self.has_more(query, rows) else None
        facts = {"query": query, "answer": answer, "error": error, "preview": preview, "groups": groups, "more": more}
        headers = {"Cache-Control": "no-store"}
        text = self.template.render(facts)
        return Response(text.encode("utf-8", "replace"), status_code, headers, "text/html; charset=utf-8")

    def has_more(self, query: Query, rows: list[Any]) -> bool:
        """Return whether more images can be asked for than are shown."""
        shown = sum(not row["below"] for row in rows)
        return shown == query.k < min(MAX_K, len(self.searcher.index))


async def run_in(pool: Executor, work: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(pool, work, *args)


def is_known(request: Request, etag: str) -> bool:
    """Return whether the browser has this version of an image already."""
    return f'"{etag}"' in request.headers.get("if-none-match", "")


def jpeg_response(request: Request, etag: str, jpeg: bytes) -> Response:
    """Send a JPEG that the browser keeps, but asks after every time: another build of the index numbers anew."""
    headers = {"ETag": f'"{etag}"', "Cache-Control": "private, no-cache"}
    if is_known(request, etag):
        return Response(status_code=304, headers=headers)
    return Response(jpeg, media_type="image/jpeg", headers=headers)


def as_json(value: Any, status_code: int = 200) -> Response:
    """Send JSON in ASCII: a file name may hold what no encoding has."""
    return Response(json.dumps(value), status_code, media_type="application/json")
