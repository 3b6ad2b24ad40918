"""What every request passes and every response carries: the host it may ask for, a token, its size, and headers.

The token comes once, in the address that app.py has printed (/?token=…), and from then on as a cookie, which no script
and no other site reads. The answer to that address leads on to the one without it, so that none is in a link.
"""

import hmac
import ipaddress
import re
import secrets
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from utils import BadInput

TOKEN = "token"
MAX_HELD = 400_000_000  # bytes of all that is being sent
LOOPBACK = {"127.0.0.1", "localhost", "[::1]"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """An application around another: refuses requests for other hosts, without token or too large; adds HEADERS."""

    def __init__(self, app: ASGIApp, hosts: set[str] | None, max_bytes: int, token: str | None = None):
        self.app, self.hosts, self.max_bytes, self.token = app, hosts, max_bytes, token
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        announced, received = int(length[:18]) if length.isdecimal() else 0, 0

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        async def receive_guarded() -> Message:
            nonlocal received
            if announced <= self.max_bytes:
                message = await receive()
                size = len(message.get("body", b""))
                received, self.held = received + size, self.held + size
                if self.held > MAX_HELD:
                    raise HTTPException(503, "too much is sent here at once; send it again in a moment")
                if received <= self.max_bytes:
                    return message
            raise HTTPException(413, f"the file is too large; choose one of {self.max_bytes / 1e6:g} MB at most")

        if self.hosts is not None and host_of(headers.get("host", "")) not in self.hosts:
            sentence = "this page answers to its own address only, as app.py has printed it"
            return await JSONResponse({"error": sentence}, 400)(scope, receive, send_guarded)
        if self.token is not None and (answer := token_answer(scope, self.token)):
            return await answer(scope, receive, send_guarded)
        try:
            await self.app(scope, receive_guarded, send_guarded)
        finally:
            self.held -= received


def token_answer(scope: Scope, token: str) -> Response | None:
    """Return what a request gets in place of its answer; None if its cookie has the token.

    The address with the right token gets the cookie, and a page that leads on to the address without: not a redirect,
    which would not take a strict cookie along where the address was followed from another site.
    """

    def is_right(given: str) -> bool:
        return hmac.compare_digest(given.encode(), token.encode())

    cookie = f"{TOKEN}-{(scope.get('server') or ('', 0))[1]}"  # of its port: those of a host go to all its ports
    pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True, encoding="latin-1")
    if scope["path"] == "/" and any(name == TOKEN and is_right(value) for name, value in pairs):
        rest = urlencode([pair for pair in pairs if pair[0] != TOKEN], encoding="latin-1")
        headers = {"Refresh": f"0; url=/{'?' if rest else ''}{rest}", "Cache-Control": "no-store"}
        answer = Response(headers=headers, media_type="text/html")
        answer.set_cookie(cookie, token, httponly=True, samesite="strict")
        return answer
    if is_right(cookie_parser(Headers(scope=scope).get("cookie", "")).get(cookie, "")):
        return None
    sentence = "this page answers to who has opened the address that app.py has printed, with its token; open it once"
    return JSONResponse({"error": sentence}, 403)


def checked_token(token: str | None, host: str) -> str | None:
    """Return the token that a page asks for: the one given, or beyond loopback one drawn; None where it asks for none.

    Raises BadInput if it is short, or holds what addresses and cookies do not take.

    >>> checked_token(None, "127.0.0.1"), len(checked_token(None, "0.0.0.0"))
    (None, 22)
    """
    if token is None:
        return None if is_loopback(host) else secrets.token_urlsafe(16)
    if not re.fullmatch("[A-Za-z0-9_.~-]{8,200}", token):
        raise BadInput("`token`: takes 8 to 200 letters, digits and . _ ~ -; choose another, or let one be drawn")
    return token


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a host.

    >>> is_loopback("127.0.0.1"), is_loopback("0.0.0.0")
    (True, False)
    """
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
