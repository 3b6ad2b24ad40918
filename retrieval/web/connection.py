"""The server's connections: how many there may be, and how long each may take to say what it wants and to take it.

uvicorn closes a connection that is silent between two requests; a client that sends a byte now and then, or does not
read what it has asked for, would keep it for ever.
"""

import asyncio
import logging

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 500  # files that are open at once; many systems let a program have 1,024
LIMITS = {"head": 10.0, "body": 120.0, "answer": 120.0}  # seconds from the first byte to the last
LOOK_SECONDS = 1.0


def server_of(app: ASGIApp) -> uvicorn.Server:
    """Return a server of the page's application, which says on stderr what is an error of its own, and no address."""
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # of a damaged form, its sender is told
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=2**18,  # bytes; each character of a query may take twelve in an address
    )
    return uvicorn.Server(config)


class Connection(H11Protocol):
    """A connection that is cut where it takes longer than LIMITS, or is one too many."""

    stage: tuple[str, object] = ("", None)
    since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self.look()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; what the application answers to the request before it is not sent any more."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def look(self) -> None:
        """Cut the connection if its stage takes too long; while the server computes, nothing does."""
        if self not in self.connections:  # it has ended
            return
        cycle, now = self.cycle, self.loop.time()
        if self.transport.get_write_buffer_size():
            name = "answer"
        elif cycle is None or cycle.response_complete:
            name = "head"
        else:
            name = "body" if cycle.more_body else "computing"
        if self.stage != (name, cycle):
            self.stage, self.since = (name, cycle), now
        if now - self.since > LIMITS.get(name, float("inf")):
            self.transport.abort()
        else:
            self.loop.call_later(LOOK_SECONDS, self.look)
