"""What every request passes and every response carries: the host it may ask for, its size, and headers."""

import ipaddress

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = {"127.0.0.1", "localhost", "[::1]"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """An application around another: refuses requests for other hosts and too large ones, and adds HEADERS."""

    def __init__(self, app: ASGIApp, hosts: set[str] | None, max_bytes: int):
        self.app, self.hosts, self.max_bytes = app, hosts, max_bytes

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
                received += len(message.get("body", b""))
                if received <= self.max_bytes:
                    return message
            raise HTTPException(413, f"the file is too large; choose one of {self.max_bytes / 1e6:g} MB at most")

        if self.hosts is not None and host_of(headers.get("host", "")) not in self.hosts:
            sentence = "this page answers to its own address only, as app.py has printed it"
            return await JSONResponse({"error": sentence}, 400)(scope, receive, send_guarded)
        await self.app(scope, receive_guarded, send_guarded)


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
