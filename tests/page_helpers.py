"""What the tests of the page and of the browser share: an index, a server, and images that nobody should send."""

import contextlib
import http.client
import io
import os
import socket
import struct
import subprocess
import sys
import threading
import zlib

import pytest
from PIL import Image as PILImage

import prep
import train
from retrieval.build import build_index
from tests.helpers import QUICK, ROOT, call, draw_images, prep_args
from training import fill_bank
from training.run import Run

pytest.importorskip("uvicorn")

ODD = ["a b/c%20d.png", "new\nline.png", "<b>&'\".png", os.fsdecode(b"no-unicode-\xff.png")]


LIMIT = 0.5  # MB of a request


def make_index(folder):
    """Drawn images, a run trained on them (not to perfection: some true images stand below others), an index of their
    prepared folder and one of images with odd names."""
    draw_images(folder)
    train_args = ["strong", "--data", folder / "data/folder", "--runs", folder / "runs", *QUICK, "training.min_steps=0"]
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, prep, *prep_args(folder)) == 0
        patch.setattr(fill_bank, "MIN_IMAGES", 1)  # so few of val make a curve, too
        assert call(patch, train, *train_args) == 0
    run = Run.open(next((folder / "runs").iterdir()))
    for number, name in enumerate(ODD):
        path = folder / "odd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PILImage.open(folder / f"images/{number}.png").resize((300, 200)).save(path)
    build_index(run, [folder / "data/folder"], folder / "index")
    build_index(run, [folder / "odd"], folder / "odd.index")
    return run


@contextlib.contextmanager
def served(searcher, host="127.0.0.1", megabytes=LIMIT, ready=True, token=None):
    """The page on a free port; yields the port. ready: once all is read, and tests may use the searcher themselves."""
    from retrieval.web.connection import server_of
    from retrieval.web.server import application

    with socket.create_server(("127.0.0.1", 0), backlog=200) as listening:
        server = server_of(application(searcher, host, megabytes, token))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        port = listening.getsockname()[1]
        if ready:
            assert ask(port, "/api/image", jpeg(), Cookie=f"token-{port}={token}")[0] == 200
        yield port
        server.should_exit = True
        thread.join(20)


@contextlib.contextmanager
def run_app(*args):
    """app.py in a process of its own, which ends with what went wrong here."""
    command = [sys.executable, str(ROOT / "app.py"), *map(str, args)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as app:
        try:
            yield app
        except BaseException:
            app.kill()
            raise


def ask(port, path, body=None, method=None, **headers):
    """Status, headers and body, the path sent just as it is written."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method or ("GET" if body is None else "POST"), path, body, headers)
    with contextlib.closing(connection):
        reply = connection.getresponse()
        content = reply.read()
    assert b"Traceback" not in content
    assert reply.headers["Content-Security-Policy"].startswith("default-src 'none';")
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["Referrer-Policy"] == "no-referrer"
    assert "Server" not in reply.headers
    return reply.status, reply.headers, content


def png(width, height, *chunks, data=b"\0\0"):
    """A PNG written by hand, that says what it likes of its size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )


def jpeg(size=(64, 48), **options):
    buffer = io.BytesIO()
    PILImage.effect_noise(size, 60).convert("RGB").save(buffer, "JPEG", **options)
    return buffer.getvalue()


def bomb(side=8000):
    """64 million pixels in ten kilobytes."""
    buffer = io.BytesIO()
    PILImage.new("1", (side, side)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


HOSTILE = [
    ("header.png", png(50_000, 50_000), "more than 50,000,000 pixels"),
    ("header.png", png(8000, 9000), "8,000 × 9,000 pixels"),
    ("bomb.png", bomb(), "8,000 × 8,000 pixels"),
    ("text-bomb.png", png(4, 4, (b"zTXt", b"a\0\0" + zlib.compress(bytes(2**25)))), "no image that can be read"),
    ("thin.png", png(40_000, 2, data=bytes(80_002)), "too thin"),
    ("drawing.svg", SVG, "no image that can be read"),
    ("text.jpg", b"this is no image\n" * 9, "no image that can be read"),
    ("page.jpg", b"<!DOCTYPE html><script>alert(1)</script>", "no image that can be read"),
    ("drawing.eps", EPS, "no image that can be read"),
    ("cut.jpg", jpeg()[:900], "cannot be read (image file is truncated"),
    ("cut.png", png(64, 64), "cannot be read ("),
    ("empty.jpg", b"", "the image is empty"),
]
