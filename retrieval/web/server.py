"""The web page over a search index: its addresses, what goes in and out of it, and what is refused.

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
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jinja2
from PIL import Image as Pictures
from starlette.applications import Starlette
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retrieval.searcher import MAX_QUERY_CHARS, Searcher, plain
from retrieval.web.answers import MAX_K, Answers, address
from retrieval.web.images import PREVIEW_PIXELS, as_jpeg, large_jpeg, open_upload, version_of
from utils import BadInput

PAGE = Path(__file__).with_name("page")
FILES = {"style.css": "text/css", "script.js": "text/javascript", "icon.svg": "image/svg+xml"}
LOOPBACK = {"127.0.0.1", "localhost", "[::1]"}
DEFAULT_K, CHOICES = 20, (10, 20, 50, 100, MAX_K)  # images of one answer
UPLOAD_MB = 20  # MB
WAIT_SECONDS = 10  # seconds, for the emoji to be read
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
GENERAL = {
    404: "there is nothing at this address; the page is at /",
    405: "this address does not take such a request; the page is at /",
    500: "something went wrong here; what it was is said where app.py runs",
}


def application(searcher: Searcher, host: str = "127.0.0.1", megabytes: float = UPLOAD_MB) -> ASGIApp:
    """The page as an ASGI application. host: the address it is served at; megabytes: of the largest request."""
    page = Page(searcher, megabytes)
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
    return Guard(app, hosts, int(megabytes * 1_000_000))


class Page:
    """Requests come in by the hundred; those for the network wait in one queue, and so each is soon done."""

    def __init__(self, searcher: Searcher, megabytes: float):
        self.searcher, self.answers, self.megabytes = searcher, Answers(searcher), megabytes
        # One query uses all cores: a second beside it would only take them away. And while a frozen network is opened,
        # no other may be at work at all: tracing its layers bends the call of every module there is.
        self.queue = ThreadPoolExecutor(1, thread_name_prefix="search")
        self.decoders = ThreadPoolExecutor(2, thread_name_prefix="decode")
        self.files = {name: (PAGE / name).read_bytes() for name in FILES}
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(PAGE),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= {"plain": plain, "score": lambda score: f"{score:.3f}".replace("-", "−")}
        environment.globals |= {
            "images": len(searcher.index),
            "examples": [(text, address(DEFAULT_K, q=text)) for text in self.answers.examples()],
            "longest": MAX_QUERY_CHARS,
            "megabytes": f"{megabytes:g}",
        }
        self.template = environment.get_template("index.html")

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Meanwhile the emoji and the frozen network are read, between the first queries."""
        threading.Thread(target=self.get_ready).start()
        yield
        for pool in (self.queue, self.decoders):
            pool.shutdown(wait=False, cancel_futures=True)

    def get_ready(self) -> None:
        def in_turn(work: Callable[..., Any], *args: Any) -> Any:
            return self.queue.submit(work, *args).result()

        with contextlib.suppress(RuntimeError, CancelledError):  # the queue is closed: the server has ended
            self.answers.read_emoji(in_turn)
            with contextlib.suppress(BadInput):  # whoever sends an image will be told
                in_turn(self.searcher.embed_image, Pictures.new("RGB", (64, 64)))

    async def in_turn(self, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.queue, work, *args)

    async def decode(self, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.decoders, work, *args)

    async def show(self, request: Request) -> Response:
        """The page: empty, or with the answer to what its address asks."""
        asked = parameters(request)
        k = number_of(asked)
        if "similar" in asked:
            image = id_of(asked["similar"])
            answer = await self.answer_similar(image, k)
            row = self.searcher.row_of(image)
            return self.html(k, answer, asked_image=image, picture=f"/thumbnail/{row}")
        if "q" in asked:
            sentence = text_of(asked["q"])
            return self.html(k, await self.in_turn(self.answers.of_sentence, sentence, k), sentence=sentence)
        return self.html(k)

    async def show_upload(self, request: Request) -> Response:
        answer, jpeg, k = await self.answer_upload(request)
        return self.html(k, answer, picture=f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}")

    async def search(self, request: Request) -> Response:
        asked = parameters(request)
        k = number_of(asked)
        return as_json(await self.in_turn(self.answers.of_sentence, text_of(asked.get("q", b"")), k))

    async def similar(self, request: Request) -> Response:
        asked = parameters(request)
        return as_json(await self.answer_similar(id_of(asked.get("id", b"")), number_of(asked)))

    async def upload(self, request: Request) -> Response:
        answer, _, _ = await self.answer_upload(request)
        return as_json(answer)

    async def answer_similar(self, image: str, k: int) -> dict[str, Any]:
        if self.searcher.index.row_of(image) is None:
            raise HTTPException(404, f"the index has no image {plain(image)[:200]}; it may have been taken out since")
        await self.emoji_read()
        return await self.in_turn(self.answers.of_image, image, k)

    async def answer_upload(self, request: Request) -> tuple[dict[str, Any], bytes, int]:
        """The answer, the image that was sent as a small JPEG, and the number of images asked for."""
        k = number_of(parameters(request))
        picture = await self.decode(open_upload, await body_of(request))
        await self.emoji_read()
        answer = await self.in_turn(self.answers.of_picture, picture, k)
        return answer, await self.decode(as_jpeg, picture, PREVIEW_PIXELS), k

    async def emoji_read(self) -> None:
        """Soon after the start, an image waits for them."""
        for _ in range(10 * WAIT_SECONDS):
            if self.answers.emoji_done.is_set():
                return
            await asyncio.sleep(0.1)

    async def thumbnail(self, request: Request) -> Response:
        row = self.row_of(request)
        jpeg = self.searcher.index.thumbnail(row)
        if jpeg is None:
            raise HTTPException(404, "there is no photograph of this image")
        return self.picture(request, self.digest(row), jpeg)

    async def image(self, request: Request) -> Response:
        """From its file, encoded anew; from the index if the file has gone or is no image any more."""
        row = self.row_of(request)
        path = self.searcher.index.path(row)
        version = version_of(path)
        if path is None or version is None:
            return await self.thumbnail(request)
        etag = f"{self.digest(row)}-{version}"
        if is_known(request, etag):
            return self.picture(request, etag, b"")
        jpeg = await self.decode(large_jpeg, path)
        return await self.thumbnail(request) if jpeg is None else self.picture(request, etag, jpeg)

    def row_of(self, request: Request) -> int:
        row = request.path_params["row"]
        if row >= len(self.searcher.index):
            raise HTTPException(404, f"the index has no image of number {str(row)[:20]}")
        return row

    def digest(self, row: int) -> str:
        return self.searcher.index.rows[row]["digest"].tobytes().hex()[:32]

    @staticmethod
    def picture(request: Request, etag: str, jpeg: bytes) -> Response:
        """Kept by the browser, but asked after every time: another build of the index numbers its images anew."""
        headers = {"ETag": f'"{etag}"', "Cache-Control": "private, no-cache"}
        if is_known(request, etag):
            return Response(status_code=304, headers=headers)
        return Response(jpeg, media_type="image/jpeg", headers=headers)

    async def file(self, request: Request) -> Response:
        name = request.url.path.removeprefix("/")
        return Response(self.files[name], media_type=FILES[name], headers={"Cache-Control": "no-cache"})

    async def refuse(self, request: Request, error: Exception) -> Response:
        """One sentence: in the page where the page was asked for, or as JSON."""
        status, sentence = 500, GENERAL[500]
        if isinstance(error, BadInput):
            status, sentence = 400, str(error)
        elif isinstance(error, HTTPException):
            status, sentence = error.status_code, error.detail
            if sentence == HTTPStatus(status).phrase:  # nobody has said more
                sentence = GENERAL.get(status, sentence)
        if request.url.path != "/":
            return as_json({"error": sentence}, status)
        asked = parameters(request)
        sentence_asked = text_of(asked.get("q", b""))[:MAX_QUERY_CHARS]
        return self.html(known_number(asked), error=sentence, sentence=sentence_asked, status_code=status)

    def html(
        self,
        k: int,
        answer: Mapping[str, Any] | None = None,
        *,
        sentence: str = "",
        asked_image: str = "",
        picture: str = "",
        error: str = "",
        status_code: int = 200,
    ) -> Response:
        text = self.template.render(
            k=k,
            choices=sorted({*CHOICES, k}),
            answer=answer,
            sentence=sentence,
            asked_image=asked_image,
            picture=picture,
            error=error,
        )
        headers = {"Cache-Control": "no-store"}
        return Response(text.encode("utf-8", "replace"), status_code, headers, "text/html; charset=utf-8")


class Guard:
    """Stands before everything: sees that no request is for another host or too large, and adds the same headers."""

    def __init__(self, app: ASGIApp, hosts: set[str] | None, most_bytes: int):
        self.app, self.hosts, self.most_bytes = app, hosts, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        announced, came = int(length) if length.isdecimal() else 0, 0

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        async def receive_guarded() -> Message:
            nonlocal came
            if announced <= self.most_bytes:
                message = await receive()
                came += len(message.get("body", b""))
                if came <= self.most_bytes:
                    return message
            most = f"{self.most_bytes / 1_000_000:g} MB"
            raise HTTPException(413, f"the file is too large; choose one of {most} at most")

        if self.hosts is not None and host_of(headers.get("host", "")) not in self.hosts:
            refused = as_json({"error": "this page answers to its own address only, as app.py has said it"}, 400)
            return await refused(scope, receive, send_guarded)
        await self.app(scope, receive_guarded, send_guarded)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def host_of(header: str) -> str:
    """
    >>> host_of("LOCALHOST:7860"), host_of("[::1]:7860")
    ('localhost', '[::1]')
    """
    host, bracket, _ = header.lower().partition("]")
    return host + bracket if bracket else host.partition(":")[0]


def parameters(request: Request) -> dict[str, bytes]:
    """What stands behind the ? of an address, as bytes: an id need not be Unicode."""
    asked = parse_qs(request.scope["query_string"].decode("latin-1"), keep_blank_values=True, encoding="latin-1")
    return {name: values[-1].encode("latin-1") for name, values in asked.items()}


def text_of(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def id_of(value: bytes) -> str:
    """As `retrieval.answers.address` writes it."""
    try:
        return value.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return text_of(value)  # no id of the index


def number_of(asked: Mapping[str, bytes]) -> int:
    """How many images are asked for. Raises BadInput unless it is 1 to MAX_K."""
    text = text_of(asked.get("k", str(DEFAULT_K).encode()))
    try:
        k = int(text)
    except ValueError:
        k = 0
    if not 1 <= k <= MAX_K:
        raise BadInput(f"k={text[:20]}: is no number of images; choose one from 1 to {MAX_K}")
    return k


def known_number(asked: Mapping[str, bytes]) -> int:
    try:
        return number_of(asked)
    except BadInput:
        return DEFAULT_K


async def body_of(request: Request) -> bytes:
    """The image that a request brings: its body, or the field `image` of a form."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await request.body()
    async with request.form(max_files=1, max_fields=10) as form:
        image = form.get("image")
        if not isinstance(image, UploadFile):
            raise BadInput("no image came along; choose one, or send it as the field `image`")
        return await image.read()


def is_known(request: Request, etag: str) -> bool:
    """Whether the browser has this version of an image already."""
    return f'"{etag}"' in request.headers.get("if-none-match", "")


def as_json(value: Any, status_code: int = 200) -> Response:
    """In ASCII: a file name may hold what no encoding has."""
    return Response(json.dumps(value), status_code, media_type="application/json")
