"""The server of the web page over a search index: its addresses, requests and responses, and what is refused.

GET  /                     the page; ?q=SENTENCE or ?similar=ID with its answer in it, &k=N images
POST /                     the page with what an image finds (multipart, field `image`)
GET  /api/search?q=&k=     the same answers as JSON
GET  /api/similar?id=&k=
POST /api/image?k=         an image as the body, or multipart
GET  /thumbnail/ROW        an image of the index, small
GET  /image/ROW            the same at most 1,600 pixels large

Images are looked up by their row in the index: no address is ever joined to a folder. Errors are one sentence, in the
page or as {"error": sentence}.
"""

import asyncio
import base64
import contextlib
import ipaddress
import json
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError, Executor, ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jinja2
from PIL import Image as PILImage
from starlette.applications import Starlette
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from features.images.decode import jpeg_bytes
from retrieval.searcher import MAX_QUERY_CHARS, Searcher, plain
from retrieval.web.answers import MAX_K, Answers, address
from retrieval.web.images import PREVIEW_PIXELS, QUALITY, large_jpeg, open_upload, version_of
from utils import BadInput

PAGE = Path(__file__).with_name("page")
FILES = {"style.css": "text/css", "script.js": "text/javascript", "icon.svg": "image/svg+xml"}
LOOPBACK = {"127.0.0.1", "localhost", "[::1]"}
DEFAULT_K, K_CHOICES = 20, (10, 20, 50, 100, MAX_K)  # images of one answer
MAX_UPLOAD_MB = 20
MAX_WAIT_SECONDS = 10  # for the emoji to be read
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
GENERAL_ERRORS = {
    404: "there is nothing at this address; the page is at /",
    405: "this address does not take such a request; the page is at /",
    500: "something went wrong here; what it was is said where app.py runs",
}
NO_FACTS = {"answer": None, "sentence": "", "asked_image": "", "image_url": "", "error": ""}  # of the template


def application(searcher: Searcher, host: str = "127.0.0.1", max_upload: float = MAX_UPLOAD_MB) -> ASGIApp:
    """Return the page as an ASGI application. host: the address it is served at; max_upload: of a request, MB."""
    page = Page(searcher, max_upload)
    routes = [
        Route("/", page.show),
        Route("/", page.show_upload, methods=["POST"]),
        Route("/api/search", page.search),
        Route("/api/similar", page.similar),
        Route("/api/image", page.upload, methods=["POST"]),
        Route("/thumbnail/{row:int}", page.thumbnail),
        Route("/image/{row:int}", page.image),
        *(Route(f"/{name}", page.file) for name in FILES),
    ]
    handlers: dict[Any, Any] = {BadInput: page.refuse, HTTPException: page.refuse, Exception: page.refuse}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=page.lifespan)
    # from another host's page, a browser could be led here under a name of that host
    hosts = {*LOOPBACK, host.lower()} if is_loopback(host) else None
    return Guard(app, hosts, int(max_upload * 1_000_000))


class Page:
    """The handlers of all addresses; what needs the run waits in one queue, so that each request is soon done."""

    def __init__(self, searcher: Searcher, max_upload: float):
        self.searcher, self.answers = searcher, Answers(searcher)
        # One query uses all cores: a second beside it would only take them away. And while a backbone is opened,
        # nothing else may run at all: tracing its layers changes the call of every torch module.
        self.queue = ThreadPoolExecutor(1, thread_name_prefix="search")
        self.decoders = ThreadPoolExecutor(2, thread_name_prefix="decode")
        self.files = {name: (PAGE / name).read_bytes() for name in FILES}
        loader, strict = jinja2.FileSystemLoader(PAGE), jinja2.StrictUndefined
        environment = jinja2.Environment(
            loader=loader, autoescape=True, undefined=strict, trim_blocks=True, lstrip_blocks=True
        )
        environment.filters |= {"plain": plain, "score": lambda score: f"{score:.3f}".replace("-", "−")}
        environment.globals |= {
            "images": len(searcher.index),
            "examples": [(text, address(DEFAULT_K, q=text)) for text in self.answers.examples()],
            "max_query_chars": MAX_QUERY_CHARS,
            "max_upload": f"{max_upload:g}",
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
        """Load what the first image needs."""

        def in_turn(work: Callable[..., Any], *args: Any) -> Any:
            return self.queue.submit(work, *args).result()

        with contextlib.suppress(RuntimeError, CancelledError):  # the queue is closed: the server has ended
            self.answers.read_emoji(in_turn)
            with contextlib.suppress(BadInput):  # whoever sends an image will read why
                in_turn(self.searcher.embed_image, PILImage.new("RGB", (64, 64)))

    async def show(self, request: Request) -> Response:
        """Show the page: empty, or with the answer to what its address asks."""
        k, sentence, image = k_of(request), text_of(request, "q"), id_of(request, "similar")
        if image is not None:
            answer = await self.answer_similar(image, k)
            row = self.searcher.row_of(image)
            return self.html(k, answer=answer, asked_image=image, image_url=f"/thumbnail/{row}")
        if sentence is not None:
            answer = await run_in(self.queue, self.answers.of_sentence, sentence, k)
            return self.html(k, answer=answer, sentence=sentence)
        return self.html(k)

    async def show_upload(self, request: Request) -> Response:
        """Show the page with what an image finds."""
        answer, jpeg, k = await self.answer_upload(request)
        url = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"
        return self.html(k, answer=answer, image_url=url)

    async def search(self, request: Request) -> Response:
        return as_json(await run_in(self.queue, self.answers.of_sentence, text_of(request, "q") or "", k_of(request)))

    async def similar(self, request: Request) -> Response:
        return as_json(await self.answer_similar(id_of(request, "id") or "", k_of(request)))

    async def upload(self, request: Request) -> Response:
        return as_json((await self.answer_upload(request))[0])

    async def answer_similar(self, image: str, k: int) -> dict[str, Any]:
        if self.searcher.index.row_of(image) is None:
            raise HTTPException(404, f"the index has no image {plain(image)[:200]}; it may have been taken out since")
        await self.emoji_read()
        return await run_in(self.queue, self.answers.of_image, image, k)

    async def answer_upload(self, request: Request) -> tuple[dict[str, Any], bytes, int]:
        """Return the answer, the image that was sent as a small JPEG, and the number of images asked for."""
        k = k_of(request)
        image = await run_in(self.decoders, open_upload, await body_of(request))
        await self.emoji_read()
        answer = await run_in(self.queue, self.answers.of_upload, image, k)
        return answer, await run_in(self.decoders, jpeg_bytes, image, PREVIEW_PIXELS, QUALITY), k

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
        row = self.row_of(request)
        path = self.searcher.index.path(row)
        version = version_of(path)
        if path is None or version is None:
            return await self.thumbnail(request)
        etag = f"{self.digest(row)}-{version}"
        if is_known(request, etag):
            return jpeg_response(request, etag, b"")
        jpeg = await run_in(self.decoders, large_jpeg, path)
        return await self.thumbnail(request) if jpeg is None else jpeg_response(request, etag, jpeg)

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
        """Answer with one sentence: in the page where the page was asked for, or as JSON."""
        status, sentence = 500, GENERAL_ERRORS[500]
        if isinstance(error, BadInput):
            status, sentence = 400, str(error)
        elif isinstance(error, HTTPException):
            status, sentence = error.status_code, error.detail
            if sentence == HTTPStatus(status).phrase:  # nobody has said more
                sentence = GENERAL_ERRORS.get(status, sentence)
        if request.url.path != "/":
            return as_json({"error": sentence}, status)
        k = DEFAULT_K
        with contextlib.suppress(BadInput):
            k = k_of(request)
        return self.html(k, status, error=sentence, sentence=(text_of(request, "q") or "")[:MAX_QUERY_CHARS])

    def html(self, k: int, status_code: int = 200, **facts: Any) -> Response:
        """Render the page. facts: those of NO_FACTS that differ."""
        text = self.template.render(NO_FACTS | facts, k=k, choices=sorted({*K_CHOICES, k}))
        headers = {"Cache-Control": "no-store"}
        return Response(text.encode("utf-8", "replace"), status_code, headers, "text/html; charset=utf-8")


class Guard:
    """An application around another: refuses requests for other hosts and too large ones, and adds HEADERS."""

    def __init__(self, app: ASGIApp, hosts: set[str] | None, max_bytes: int):
        self.app, self.hosts, self.max_bytes = app, hosts, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        announced, received = int(length) if length.isdecimal() else 0, 0

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        async def receive_guarded() -> Message:
            nonlocal received
            if announced <= self.max_bytes:
                message = await receive()
                received += len(message.get("body", b""))
                if received <= self.max_bytes:
                    return message
            raise HTTPException(413, f"the file is too large; choose one of {self.max_bytes / 1e6:g} MB at most")

        if self.hosts is not None and host_of(headers.get("host", "")) not in self.hosts:
            refused = as_json({"error": "this page answers to its own address only, as app.py has printed it"}, 400)
            return await refused(scope, receive, send_guarded)
        await self.app(scope, receive_guarded, send_guarded)


async def run_in(pool: Executor, work: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(pool, work, *args)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def host_of(header: str) -> str:
    """Return the name in a Host header.

    >>> host_of("LOCALHOST:7860"), host_of("[::1]:7860")
    ('localhost', '[::1]')
    """
    host, bracket, _ = header.lower().partition("]")
    return host + bracket if bracket else host.partition(":")[0]


def text_of(request: Request, name: str, errors: str = "replace") -> str | None:
    """Return a parameter of an address; None without it."""
    query = request.scope["query_string"].decode("latin-1")
    values = parse_qs(query, keep_blank_values=True, encoding="latin-1").get(name)
    return values[-1].encode("latin-1").decode("utf-8", errors) if values else None


def id_of(request: Request, name: str) -> str | None:
    """Return an id as `retrieval.web.answers.address` writes it: it need not be Unicode."""
    try:
        return text_of(request, name, "surrogatepass")
    except UnicodeDecodeError:
        return text_of(request, name)  # no id of the index


def k_of(request: Request) -> int:
    """Return how many images are asked for. Raises BadInput unless it is 1 to MAX_K."""
    text = text_of(request, "k")
    if text is None:
        return DEFAULT_K
    try:
        k = int(text)
    except ValueError:
        k = 0
    if not 1 <= k <= MAX_K:
        raise BadInput(f"k={text[:20]}: is no number of images; choose one from 1 to {MAX_K}")
    return k


async def body_of(request: Request) -> bytes:
    """Read the image that a request brings: its body, or the field `image` of a form."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await request.body()
    async with request.form(max_files=1, max_fields=10) as form:
        image = form.get("image")
        if not isinstance(image, UploadFile):
            raise BadInput("no image came along; choose one, or send it as the field `image`")
        return await image.read()


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
