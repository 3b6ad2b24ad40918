"""The page's server, asked over real connections: every address, hostile requests, a hundred queries at once."""

import asyncio
import contextlib
import csv
import io
import json
import os
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
from PIL import Image as PILImage

import app
from metrics.table import no_formula
from retrieval.build import build_index
from retrieval.searcher import Searcher
from retrieval.web.answers import Answers
from retrieval.web.query import MAX_MINUS, Query
from retrieval.web.server import application
from retrieval.web.uploads import Upload, Uploads
from retrieval.words import MAX_QUERY_CHARS
from tests.helpers import FakeRun, call
from tests.page_helpers import HOSTILE, LIMIT, ODD, SVG, ask, jpeg, run_app, served

pytest.importorskip("starlette")
uvicorn = pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def port(searcher):
    with served(searcher) as port:
        yield port


@pytest.fixture(scope="module")
def odd_port(page_folder):
    with served(Searcher.open(page_folder / "odd.index")) as port:
        yield port


def ask_json(port, path, body=None, **headers):
    status, got, content = ask(port, path, body, **headers)
    assert got["Content-Type"] == "application/json"
    return status, json.loads(content)


def refusal(port, path, body=None, **headers):
    """The status and the one sentence of a request that is refused."""
    status, answer = ask_json(port, path, body, **headers)
    assert list(answer) == ["error"]
    assert len(answer["error"].splitlines()) == 1
    return status, answer["error"]


class Page(HTMLParser):
    """The texts of a page by the id of the element around them, and every address in it."""

    def __init__(self, content):
        super().__init__()
        self.at, self.texts, self.addresses = [""], {}, []
        self.feed(content.decode("utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.addresses += [values[name] for name in ("href", "src", "action") if name in values]
        if "id" in values and tag not in ("input", "img"):
            self.at.append(values["id"])

    def handle_data(self, data):
        self.texts[self.at[-1]] = self.texts.get(self.at[-1], "") + data


def form(name, data, field="image"):
    """A multipart body and its type."""
    head = (
        f'--X\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\nContent-Type: image/jpeg\r\n\r\n'
    )
    return head.encode() + data + b"\r\n--X--\r\n", "multipart/form-data; boundary=X"


def test_a_sentence_finds_images(port, searcher):
    status, answer = ask_json(port, "/api/search?q=a+red+circle&k=5")
    assert status == 200
    assert [(row["image"], row["score"]) for row in answer["images"][:5]] == searcher.search("a red circle", 5)
    assert [row["rank"] for row in answer["images"][:5]] == [1, 2, 3, 4, 5]
    assert answer["status"].startswith("5 of 24 images in ")
    assert len(ask_json(port, "/api/search?q=a+red+circle")[1]["images"]) >= 20
    status, answer = ask_json(port, "/api/search?q=a+red+frisbeee+wug")
    assert (status, answer["notes"][-1]) == (200, "Unknown words, left out: frisbeee, wug.")
    likeliest = max(row["probability"] for row in answer["images"] if row["probability"] is not None)
    doubt = f"Nothing here matches: the likeliest image has a probability of {likeliest:.2f}."
    assert [note.startswith(doubt) for note in answer["notes"][:-1]] == [True] * (likeliest < 0.5)


def test_the_true_image_of_a_caption_is_marked_and_its_position_said(port, searcher):
    caption = max(searcher.index.known, key=lambda text: len(searcher.true_images(text)))
    true = searcher.true_images(caption)
    assert len(true) > 1
    _, answer = ask_json(port, f"/api/search?q={quote(caption)}&k=24")
    assert [row["image"] for row in answer["images"] if row["true"]] == sorted(
        true, key=lambda image: searcher.rank_of(caption, image)
    )
    positions = ", ".join(str(rank) for rank in sorted(searcher.rank_of(caption, image) for image in true))
    assert f"images stand at positions {positions} of 24." in answer["asides"][0]


def test_an_image_finds_captions_similar_images_and_emoji(port, searcher, page_folder):
    data = (page_folder / "images/3.png").read_bytes()
    status, answer = ask_json(port, "/api/image?k=4", data, Content_Type="image/png")
    assert status == 200
    query = searcher.embed_image(page_folder / "images/3.png")
    assert [row["caption"] for row in answer["captions"]] == [text for text, _ in searcher.captions_of(query, 4)]
    assert (answer["images"][0]["image"], answer["images"][0]["score"]) == ("3.png", pytest.approx(1, abs=1e-5))
    assert [row["rank"] for row in answer["emoji"]] == [1, 2, 3, 4]
    assert all(row["emoji"] and row["name"] for row in answer["emoji"])
    body, kind = form("3.png", data)
    status, same = ask_json(port, "/api/image?k=4", body, Content_Type=kind)
    assert [same[part] for part in ("images", "captions", "emoji")] == [
        answer[part] for part in ("images", "captions", "emoji")
    ]
    status, similar = ask_json(port, "/api/search?like=3.png&k=3")
    assert [row["image"] for row in similar["images"]] == [image for image, _ in searcher.similar_to("3.png", 3)]
    assert similar["captions"]
    assert similar["emoji"]


def test_a_search_that_adds_and_subtracts(port, searcher, page_folder):
    def ids(address):
        status, answer = ask_json(port, f"/api/search?{address}&k=6")
        assert (status, answer["captions"], answer["emoji"]) == (200, [], [])
        assert all(row["probability"] is None for row in answer["images"])
        return [(row["image"], row["score"]) for row in answer["images"]]

    assert ids("like=3.png&q=a+circle") == searcher.combined("a circle", like="3.png", k=6)
    assert ids("like=3.png&minus=red") == searcher.combined(like="3.png", minus=["red"], k=6)
    assert ids("q=a+circle&minus=red&minus=blue&minus=") == searcher.combined("a circle", minus=["red", "blue"], k=6)
    file = page_folder / "images/3.png"
    digest = ask_json(port, "/api/image", file.read_bytes())[1]["upload"]
    image = PILImage.open(file)  # its digest is that of cached features here: nobody knows it for one of the index
    assert ids(f"upload={digest}&q=a+circle&minus=red") == searcher.combined("a circle", like=image, minus=["red"], k=6)
    _, answer = ask_json(port, "/api/search?like=3.png&q=a+circle+wug&minus=a+red+wag")
    assert answer["notes"] == ["Unknown words, left out: wug.", "Unknown words, left out: wag."]


def test_the_images_of_an_answer_as_a_table(port, searcher):
    status, headers, content = ask(port, "/api/search.csv?q=a+red+circle&k=5")
    assert (status, headers["Content-Type"]) == (200, "text/csv; charset=utf-8")
    assert headers["Content-Disposition"] == 'attachment; filename="results.csv"'
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    hits = searcher.ask("a red circle", 5).hits
    assert list(rows[0]) == ["rank", "path", "score", "probability"]
    assert [row["path"] for row in rows] == [str(searcher.path(hit.image)) for hit in hits]
    for row, hit in zip(rows, hits, strict=True):
        assert int(row["rank"]) == hit.rank
        assert float(row["score"]) == pytest.approx(hit.score, abs=1e-6)
        likely = None if row["probability"] == "" else float(row["probability"])
        assert likely == (None if hit.below else pytest.approx(hit.probability, abs=1e-4))
    _, _, few = ask(port, "/api/search.csv?q=a+red+circle&k=5&ranks=2,4")
    assert [row["rank"] for row in csv.DictReader(io.StringIO(few.decode()))] == ["2", "4"]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝"])
def test_no_cell_is_a_formula(start):
    assert no_formula(f"{start}cmd|' /C calc'!A0") == f"'{start}cmd|' /C calc'!A0"
    assert no_formula("a=b.jpg") == "a=b.jpg"


def test_only_this_machine_reads_where_files_lie(port, searcher):
    row, path = searcher.row_of("7.png"), searcher.path("7.png")
    status, about = ask_json(port, f"/about/{row}")
    assert (status, about["image"], about["path"]) == (200, "7.png", str(path))
    assert (about["width"], about["height"], about["bytes"]) == (64, 64, path.stat().st_size)
    assert about["caption"] in searcher.index.known
    assert about["taken"] is False
    with served(searcher, "0.0.0.0") as everywhere:
        assert ask_json(everywhere, f"/about/{row}")[1]["path"] == "7.png"
        assert str(path.parent).encode() not in ask(everywhere, "/api/search.csv?q=a+red+circle")[2]


def test_uploads_are_kept_up_to_a_number():
    uploads = Uploads(most=2)
    digests = [uploads.keep(bytes([n]), Upload(np.zeros((1, 2)), bytes([n]))) for n in range(2)]
    assert uploads.get(digests[0]).jpeg == b"\0", "asked for again: it is the last to go"
    last = uploads.keep(b"x", Upload(np.zeros((1, 2)), b"x"))
    assert [digest in uploads.kept for digest in (*digests, last)] == [True, False, True]


def test_the_page_holds_the_answer_of_its_address(port):
    _, headers, content = ask(port, "/")
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    start = Page(content)
    assert "24 images · asked through strong-" in start.texts["answer"]
    assert sum(url.startswith("/thumbnail/") for url in start.addresses) == 24, "a wall of them"
    for path in ("/?q=a+blue+square&k=7", "/?like=5.png&k=7"):
        status, _, content = ask(port, path)
        page = Page(content)
        assert status == 200
        assert "7 of 24 images" in page.texts["count"]
        assert sum(url.startswith("/thumbnail/") for url in page.addresses) >= 7 + ("like" in path)
        for url in page.addresses:
            assert not urlsplit(url).netloc, "no other host"
            assert ask(port, url)[0] == 200, url


def test_an_image_that_is_sent_to_the_page_without_its_script(port, page_folder):
    data = (page_folder / "images/3.png").read_bytes()
    body, kind = form("3.png", data)
    status, headers, _ = ask(port, "/?k=4", body, Content_Type=kind)
    assert status == 303
    for _ in range(2):
        status, _, content = ask(port, headers["Location"])
        assert status == 200
        assert "4 of 24 images" in Page(content).texts["count"]
    digest = ask_json(port, "/api/image", data)[1]["upload"]
    assert f"/?upload={digest}&k=4" == headers["Location"]
    status, got, small = ask(port, f"/upload/{digest}")
    assert (status, got["Content-Type"], PILImage.open(io.BytesIO(small)).size) == (200, "image/jpeg", (64, 64))
    assert refusal(port, f"/upload/{digest[::-1]}") == (
        404,
        "the image that was sent is not kept any more; send it again",
    )


@pytest.mark.parametrize(("name", "data", "sentence"), HOSTILE, ids=[f"{name}-{log}" for name, _, log in HOSTILE])
def test_hostile_images_are_refused_in_one_sentence(port, name, data, sentence):
    body, kind = form(name, data)
    start = time.perf_counter()
    for headers, sent in (({"Content_Type": kind}, body), ({"Content_Type": "image/jpeg"}, data)):
        status, said = refusal(port, "/api/image", sent, **headers)
        assert (status, sentence in said) == (400, True), said
    assert time.perf_counter() - start < 5
    status, _, content = ask(port, "/", body, Content_Type=kind)
    assert status == 400
    assert sentence in Page(content).texts["error"]


def test_forms_without_an_image(port):
    body, kind = form("a.jpg", jpeg(), field="other")
    assert refusal(port, "/api/image", body, Content_Type=kind) == (
        400,
        "no image came along; choose one, or send it as the field `image`",
    )
    text = b'--X\r\nContent-Disposition: form-data; name="image"\r\n\r\nhello\r\n--X--\r\n'
    assert refusal(port, "/api/image", text, Content_Type=kind)[0] == 400
    assert refusal(port, "/api/image", b"no form at all", Content_Type="multipart/form-data")[0] == 400
    assert refusal(port, "/api/image", body[:200], Content_Type=kind)[0] == 400


def test_too_large_a_body_is_refused_before_it_has_come(port):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        head = b"POST /api/image HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000000\r\n\r\n"
        connection.sendall(head)
        assert b"413" in connection.recv(100).split(b"\r\n")[0], "nothing of the body has been sent"
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"POST /api/image HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk, sent = b"10000\r\n" + bytes(65536) + b"\r\n", 0
        connection.setblocking(False)
        reply = b""
        until = time.monotonic() + 20
        while not reply and sent < 100 and time.monotonic() < until:
            with contextlib.suppress(BlockingIOError):
                reply = connection.recv(1000)
            if not reply:
                connection.setblocking(True)
                connection.sendall(chunk)
                connection.setblocking(False)
                sent += 1
                time.sleep(0.02)
        assert b"413" in reply.split(b"\r\n")[0]
        assert sent * 65536 < 3e6, "it did not wait for the end"
    body, kind = form("large.jpg", bytes(int(LIMIT * 1.2e6)))
    status, said = 0, ""
    with contextlib.suppress(ConnectionError):  # the server may close while a body is still being sent
        status, said = refusal(port, "/api/image", body, Content_Type=kind)
    assert (status, said) in ((413, "the file is too large; choose one of 0.5 MB at most"), (0, ""))


def test_a_client_that_goes_away_raises_nothing(searcher):
    """What is raised out of the application is a traceback of the server's."""
    messages = [{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}]
    sent = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    head = [(b"host", b"localhost"), (b"content-type", b"image/jpeg")]
    scope = {"type": "http", "method": "POST", "path": "/api/image", "headers": head, "query_string": b""}

    async def ask_page():
        await application(searcher)(scope, receive, send)

    asyncio.run(ask_page())
    assert not messages


BAD = [
    ("/api/search?q=", 400, "the query is empty"),
    ("/api/search", 400, "the query is empty"),
    ("/api/search?q=%20%0A", 400, "the query is empty"),
    ("/api/search?q=xyzzy", 400, "unknown words only (xyzzy)"),
    ("/api/search?q=%3F!", 400, "holds no word"),
    ("/api/search?q=" + "a+" * MAX_QUERY_CHARS, 400, "say it in 5,000 at most"),
    ("/api/search?q=" + "9" * 5000, 400, "put blanks between its words"),
    ("/api/search?q=%ff%fe", 400, "the query"),
    ("/api/search?q=a&k=0", 400, "choose one from 1 to 200"),
    ("/api/search?q=a&k=201", 400, "choose one from 1 to 200"),
    ("/api/search?q=a&k=many", 400, "k=many"),
    ("/api/search?q=a&k=" + "9" * 5000, 400, "choose one from 1 to 200"),
    ("/api/search?like=none.png", 404, "has no image none.png"),
    ("/api/search?like=../../etc/passwd", 404, "has no image ../../etc/passwd"),
    ("/api/search?like=%ff", 404, "has no image"),
    ("/api/search?like=3.png&minus=xyzzy", 400, "unknown words only (xyzzy)"),
    ("/api/search?like=3.png&upload=abc", 400, "leave one of them out"),
    ("/api/search?upload=abc", 400, "not kept any more"),
    ("/api/search?minus=red", 400, "add a sentence or an image"),
    ("/api/search?q=a+red+circle&minus=a+red+circle", 400, "the same"),
    ("/api/search?q=a" + "&minus=red" * (MAX_MINUS + 1), 400, f"leave {MAX_MINUS} at most"),
    ("/api/search.csv?q=", 400, "the query is empty"),
    ("/full/24", 404, "no image of number 24"),
    ("/about/24", 404, "no image of number 24"),
    ("/upload/..%2f..%2fetc", 404, "nothing at this address"),
    ("/api/similar?id=3.png", 404, "nothing at this address"),
    ("/thumbnail/3/", 404, "nothing at this address"),
    ("/thumbnail/24", 404, "no image of number 24"),
    ("/image/999999999999999999", 404, "no image of number"),
    ("/image/" + "9" * 5000, 404, "nothing at this address"),
    ("/image/-1", 404, "nothing at this address"),
    ("/image/3.png", 404, "nothing at this address"),
    ("/image/../../etc/passwd", 404, "nothing at this address"),
    ("/image/%2e%2e/%2e%2e/etc/passwd", 404, "nothing at this address"),
    ("/image/..%2f..%2f..%2fetc%2fpasswd", 404, "nothing at this address"),
    ("/thumbnail//etc/passwd", 404, "nothing at this address"),
    ("/../app.py", 404, "nothing at this address"),
    ("/page/index.html", 404, "nothing at this address"),
    ("/index.html", 404, "nothing at this address"),
    ("/style.css/../index.html", 404, "nothing at this address"),
]


@pytest.mark.parametrize(("path", "status", "sentence"), BAD, ids=[path[:40] for path, _, _ in BAD])
def test_what_cannot_be_asked(port, path, status, sentence):
    got, said = refusal(port, path)
    assert (got, sentence in said) == (status, True), said
    if path.startswith("/api/search") and ".csv" not in path:
        got, _, content = ask(port, path.replace("/api/search", "/") if "?" in path else "/?q=")
        page = Page(content)
        assert got == status
        assert sentence in page.texts["error"]
        assert "status" not in page.texts or not page.texts["status"].strip(), "there is no answer"


def test_a_browser_reads_what_is_wrong_in_the_page(port):
    accept = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
    for path, sentence in (("/nothing", "nothing at this address"), ("/full/24", "no image of number 24")):
        status, headers, content = ask(port, path, Accept=accept)
        assert (status, headers["Content-Type"]) == (404, "text/html; charset=utf-8")
        assert sentence in Page(content).texts["error"]
        assert b'<a class="home" href="/"' in content
    assert refusal(port, "/api/nothing", Accept=accept)[0] == 404
    assert refusal(port, "/image/24", Accept="image/avif,image/webp,*/*;q=0.8")[0] == 404


def test_other_methods(port):
    assert refusal(port, "/api/search?q=a", b"x") == (
        405,
        "this address does not take such a request; the page is at /",
    )
    assert ask(port, "/", method="DELETE")[0] == 405


def test_only_its_own_name_is_answered_on_loopback(port, searcher):
    for host in ("127.0.0.1", "localhost", f"LOCALHOST:{port}", f"[::1]:{port}"):
        assert ask(port, "/", Host=host)[0] == 200
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "localhost.evil.example",
        "",
        "[::2]",
        "127.0.0.1.evil.example",
    ):
        status, said = refusal(port, "/", Host=host)
        assert (status, said) == (400, "this page answers to its own address only, as app.py has printed it")
    with served(searcher, "0.0.0.0") as everywhere:
        assert ask(everywhere, "/", Host="images.example")[0] == 200


def test_images_go_out_as_jpeg_from_the_index_only(port, searcher, page_folder):
    row = searcher.row_of("7.png")
    status, headers, small = ask(port, f"/thumbnail/{row}")
    assert (status, headers["Content-Type"], small) == (200, "image/jpeg", searcher.thumbnail("7.png"))
    status, headers, large = ask(port, f"/image/{row}")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert PILImage.open(io.BytesIO(large)).size == (64, 64)
    for path in (f"/thumbnail/{row}", f"/image/{row}", f"/full/{row}"):
        etag = ask(port, path)[1]["ETag"]
        status, headers, content = ask(port, path, If_None_Match=etag)
        assert (status, content) == (304, b"")
    file = searcher.path("7.png")
    kept = file.read_bytes()
    try:
        for change in (file.unlink, lambda: file.write_bytes(SVG), lambda: os.mkfifo(file)):
            file.unlink(missing_ok=True)
            if change != file.unlink:
                change()
            assert ask(port, f"/image/{row}")[2] == small, "the file has gone, or is no image: the small one is there"
        file.unlink()
        PILImage.new("RGB", (4000, 1000)).save(file, "PNG")
        assert PILImage.open(io.BytesIO(ask(port, f"/image/{row}")[2])).size == (1600, 400)
        full = PILImage.open(io.BytesIO(ask(port, f"/full/{row}")[2]))
        assert (full.format, full.size) == ("JPEG", (4000, 1000))
    finally:
        file.unlink(missing_ok=True)
        file.write_bytes(kept)


def test_the_file_itself_goes_to_this_machine_alone(port, searcher):
    row, file = searcher.row_of("7.png"), searcher.path("7.png")
    kept = file.read_bytes()
    assert ask_json(port, f"/about/{row}")[1]["original"] == f"/original/{row}"
    status, headers, content = ask(port, f"/original/{row}")
    assert (status, headers["Content-Type"], headers["X-Content-Type-Options"]) == (200, "image/png", "nosniff")
    assert content == kept
    with served(searcher, "0.0.0.0") as everywhere:
        assert ask_json(everywhere, f"/about/{row}")[1]["original"] is None
        assert refusal(everywhere, f"/original/{row}")[0] == 404
    try:
        for odd in (SVG, b"<script>alert(1)</script>"):
            file.write_bytes(odd)
            assert refusal(port, f"/original/{row}")[0] == 404
        PILImage.new("RGB", (8, 8)).save(file, "TIFF")
        assert refusal(port, f"/original/{row}") == (404, "its file is not shown as it is; the image is at /full")
    finally:
        file.write_bytes(kept)


@pytest.mark.parametrize("name", ODD)
def test_odd_names(odd_port, name):
    _, answer = ask_json(odd_port, "/api/search?q=a+red+circle")
    (row,) = [row for row in answer["images"] if row["image"] == name]
    for path in (row["view"], row["thumbnail"]):
        assert ask(odd_port, path)[1]["Content-Type"] == "image/jpeg"
    status, _, content = ask(odd_port, row["similar"])
    assert status == 200
    assert "3 of 4 images" in Page(content).texts["count"]
    assert b"<b>" not in content.replace(b"<b>true image</b>", b""), "names are text, never tags"
    status, similar = ask_json(odd_port, Query(like=name).address("/api/search"))
    status, table = ask(odd_port, Query(like=name).address("/api/search.csv"))[::2]
    assert (status, len(list(csv.reader(io.StringIO(table.decode()))))) == (200, 4)
    assert (status, similar["query"]) == (200, name)


def test_a_query_cannot_write_into_the_page(port):
    for query in ('"><script>alert(1)</script>', "a red <img src=x onerror=alert(1)>"):
        _, _, content = ask(port, f"/?q={quote(query)}")
        assert b"<script>" not in content
        assert b"<img src=x" not in content


def test_a_hundred_queries_at_once(port, searcher, page_folder):
    sentences = [f"a {color} {shape}" for color in ("red", "green", "blue", "yellow") for shape in ("circle", "square")]
    wanted = {sentence: searcher.search(sentence, 5) for sentence in sentences}
    image = (page_folder / "images/3.png").read_bytes()

    def one(number):
        if number % 10 == 9:
            status, answer = ask_json(port, "/api/image?k=5", image, Content_Type="image/png")
            return status == 200 and answer["images"][0]["image"] == "3.png"
        sentence = sentences[number % len(sentences)]
        status, answer = ask_json(port, f"/api/search?q={quote(sentence)}&k=5")
        return status == 200 and [(row["image"], row["score"]) for row in answer["images"][:5]] == wanted[sentence]

    with ThreadPoolExecutor(100) as threads:
        assert all(threads.map(one, range(100)))


def test_queries_while_everything_is_still_read(page_folder):
    fresh = Searcher.open(page_folder / "index")
    image = (page_folder / "images/3.png").read_bytes()
    with served(fresh, ready=False) as port, ThreadPoolExecutor(8) as threads:
        sent = threads.submit(ask_json, port, "/api/image?k=5", image)
        while not sent.done():
            assert all(status == 200 for status, *_ in threads.map(ask, [port] * 7, ["/?q=a+red+circle"] * 7))
        status, answer = sent.result()
    assert status == 200
    assert answer["emoji"], "it has waited for them"


def test_what_went_wrong_here_is_one_sentence_there(searcher, monkeypatch):
    def fall(*args):
        raise RuntimeError("a secret")

    with served(searcher) as port:
        monkeypatch.setattr(searcher, "ask", fall)
        status, said = refusal(port, "/api/search?q=a+red+circle")
        assert (status, said) == (500, "something went wrong here; what it was is said where app.py runs")
        status, _, content = ask(port, "/?q=a+red+circle")
        assert status == 500
        assert b"secret" not in content


@pytest.mark.parametrize("similarity", ["cosine", "order"])
def test_answers_without_captions_or_emoji_and_a_true_image_far_down(tmp_path, similarity, monkeypatch):
    run = FakeRun(tmp_path, similarity)
    data = run.prepare(tmp_path, 10)
    build_index(run, [data], tmp_path / "index")
    searcher = Searcher.open(tmp_path / "index", run)
    answers = Answers(searcher)
    far = max(range(10), key=lambda n: searcher.rank_of(f"picture {n} of a dog", f"{n}.png"))
    rank = searcher.rank_of(f"picture {far} of a dog", f"{far}.png")
    assert rank > 2
    answer = answers.of(Query(f"picture {far} of a dog", k=2))
    assert [(row["rank"], row["true"]) for row in answer["images"]] == [(1, False), (2, False), (rank, True)]
    assert [row["below"] for row in answer["images"]] == [False, False, True]
    assert answer["asides"] == [f"A caption of the dataset; its image stands at position {rank} of 10."]
    assert answer["status"].startswith("2 of 10 images in ")
    monkeypatch.setitem(sys.modules, "emoji", None)
    answers.read_emoji(lambda work, *args: work(*args))
    answer = answers.of(Query(like="3.png", k=4))
    assert (len(answer["captions"]), len(answer["images"]), answer["emoji"]) == (4, 4, [])
    assert "not installed" in answer["asides"][0]
    other = FakeRun(tmp_path, similarity, "other")  # whose prepared folder is not there
    build_index(other, [tmp_path / "images"], tmp_path / "other.index")
    answer = Answers(Searcher.open(tmp_path / "other.index", other)).of(Query(like="3.png", k=2))
    assert (answer["captions"], len(answer["images"])) == ([], 2)
    assert answer["asides"][0].startswith("The index has no captions: ")


def test_the_command_says_its_address_and_ends_quietly(page_folder):
    with run_app(page_folder / "index", "--port", "0") as process:
        line = process.stderr.readline()
        assert line.startswith("24 images on http://127.0.0.1:")
        port = urlsplit(line.split()[3]).port
        assert ask(port, "/?q=a+red+circle")[0] == 200
        assert call_with_taken_port(page_folder, port) == 2
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=30)
    assert (process.returncode, out, error) == (0, "", "")


def test_a_client_that_hangs_does_not_hold_the_end(page_folder):
    """SIGTERM, as from a service manager, while an upload is on its way."""
    with run_app(page_folder / "index", "--port", "0") as process:
        port = urlsplit(process.stderr.readline().split()[3]).port
        assert ask(port, "/")[0] == 200
        with socket.create_connection(("127.0.0.1", port)) as client:
            head = f"POST /api/image HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 1000\r\n\r\n"
            client.sendall(head.encode() + b"half")
            assert ask(port, "/")[0] == 200
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            out, error = process.communicate(timeout=30)
    assert time.monotonic() - began < 5, "a second on a machine that does nothing else"
    assert process.returncode == 128 + signal.SIGTERM
    assert (out, error) == ("", "app.py: stopped; repeat the command, without --fresh, and it continues\n")


def call_with_taken_port(page_folder, port):
    with run_app(page_folder / "index", "--port", port) as process:
        _, error = process.communicate(timeout=60)
    assert error.startswith(f"app.py: --port {port}: cannot be used on 127.0.0.1 (")
    assert len(error.splitlines()) == 1
    return process.returncode


def test_bad_input_is_one_sentence_and_status_2(page_folder, monkeypatch, capsys):
    cases = [
        ([page_folder / "nothing"], "not an index"),
        ([page_folder / "images"], "not an index"),
        ([page_folder / "index", "--run", page_folder / "nothing"], "not a run folder"),
        ([page_folder / "index", "--port", "99999"], "--port 99999"),
        ([page_folder / "index", "--host", "256.1.1.1"], "--host 256.1.1.1"),
        ([page_folder / "index", "--max-upload", "0"], "--max-upload 0"),
        ([page_folder / "index", "--max-upload", "inf"], "--max-upload inf"),
    ]
    for args, sentence in cases:
        port = [] if "--port" in args else ["--port", 0]
        assert call(monkeypatch, app, *args, *port) == 2, args
        said = capsys.readouterr().err
        assert sentence in said
        assert len(said.splitlines()) == 1
    monkeypatch.setitem(sys.modules, "starlette", None)
    assert call(monkeypatch, app, page_folder / "index") == 2
    assert "pip install -r requirements-search.txt" in capsys.readouterr().err
