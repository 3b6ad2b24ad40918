"""The token of a page: where it is asked for, how it is compared, and where it never stands."""

import doctest
import re
import shutil

import pytest

import app
from tests.helpers import call
from tests.page_helpers import ask, served

pytest.importorskip("starlette")
from retrieval.web import guard

TOKEN = "a-Token_of.this~test"


@pytest.fixture(scope="module")
def port(searcher):
    with served(searcher, "0.0.0.0", token=TOKEN) as port:
        yield port


def cookie(port, token=TOKEN):
    return {"Cookie": f"other=1; token-{port}={token}"}


def test_examples():
    assert doctest.testmod(guard).failed == 0


@pytest.mark.parametrize("path", ["/", "/?q=a+red+circle", "/api/search?q=a", "/thumbnail/0", "/script.js", "/nothing"])
def test_nothing_is_answered_without_the_token(port, path):
    nothing: dict[str, str] = {}
    for headers in (nothing, cookie(port, ""), cookie(port, TOKEN[:-1]), cookie(port, "é"), cookie(port + 1)):
        status, got, content = ask(port, path, **headers)
        assert status == 403
        assert b"the address that app.py has printed" in content
        assert "Set-Cookie" not in got
    assert ask(port, path, b"x")[0] == 403
    assert ask(port, path, **cookie(port))[0] == (404 if path == "/nothing" else 200)


def test_the_address_brings_a_cookie_and_leads_on_to_one_without_the_token(port):
    status, headers, content = ask(port, f"/?q=a+caf%C3%A9&token={TOKEN}&k=3")
    assert (status, headers["Refresh"], content) == (200, "0; url=/?q=a+caf%C3%A9&k=3", b"")
    assert headers["Set-Cookie"] == f"token-{port}={TOKEN}; HttpOnly; Path=/; SameSite=strict"
    assert headers["Cache-Control"] == "no-store"
    assert ask(port, f"/?token={TOKEN}")[1]["Refresh"] == "0; url=/"
    for wrong in (f"/?token={TOKEN}x", "/?token=", "/?token", "/?token=%ff", f"/api/search?q=a&token={TOKEN}"):
        assert ask(port, wrong)[0] == 403
    assert "://" not in ask(port, f"/?token={TOKEN}&q=//evil.example")[1]["Refresh"]


def test_the_token_stands_in_no_link(port):
    for path in ("/", "/?q=a+red+circle", "/?like=3.png", "/api/search?q=a+red+circle", f"/nothing?token={TOKEN}"):
        _, headers, content = ask(port, path, Accept="text/html", **cookie(port))
        assert headers["Referrer-Policy"] == "no-referrer"
        assert TOKEN not in content.decode() + str(headers)


def test_tokens_are_compared_in_constant_time(port, monkeypatch):
    compared = []

    def compare(one, other):
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(guard.hmac, "compare_digest", compare)
    ask(port, "/", **cookie(port, "wrong"))
    ask(port, "/?token=wrong")
    assert compared == [(given, TOKEN.encode()) for given in (b"wrong", b"wrong", b"")]


def test_loopback_asks_for_a_token_only_where_one_is_given(searcher):
    with served(searcher, token=TOKEN) as port:
        assert ask(port, "/")[0] == 403
        assert ask(port, "/", **cookie(port))[0] == 200


def test_all_that_is_sent_at_once_is_bounded(searcher, monkeypatch):
    with served(searcher) as port:
        monkeypatch.setattr(guard, "MAX_HELD", 100_000)
        for _ in range(3):
            status, _, content = ask(port, "/api/image", bytes(200_000))
            assert (status, b"too much is sent here at once" in content) == (503, True)
            assert ask(port, "/api/image", bytes(90_000))[0] == 400, "what was held is let go"


@pytest.fixture
def said(page_folder, monkeypatch, capsys):
    """What app.py says with these arguments, until it would serve."""

    def start(*args):
        monkeypatch.setattr("uvicorn.Server.run", lambda server, sockets: None)
        assert call(monkeypatch, app, page_folder / "index", "--port", "0", *args) == 0
        return capsys.readouterr().err.splitlines()

    return start


def test_the_command_draws_a_token_and_warns(said):
    drawn = set()
    for _ in range(2):
        warning, line = said("--host", "0.0.0.0")
        assert warning.startswith("--host 0.0.0.0: other machines reach this page, and nothing on the way is encrypted")
        drawn.update(re.findall(r"on http://0\.0\.0\.0:\d+/\?token=([\w-]{22}) ", line))
    assert len(drawn) == 2


def test_a_token_that_is_given_is_not_said(said):
    (line,) = said("--token", TOKEN)
    assert re.search(r"on http://127\.0\.0\.1:\d+/\?token=… ", line)


@pytest.mark.parametrize("token", ["", "short", "a" * 201, "with space", "semicolon;", "new\nline12", "ümlaut-token"])
def test_a_token_that_no_address_takes_is_refused(page_folder, monkeypatch, capsys, token):
    assert call(monkeypatch, app, page_folder / "index", "--port", "0", "--token", token) == 2
    assert "--token: takes 8 to 200 letters, digits" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_a_browser_keeps_the_token_out_of_sight(searcher):
    playwright = pytest.importorskip("playwright.sync_api")
    with (
        served(searcher, token=TOKEN) as port,
        served(searcher) as elsewhere,
        playwright.sync_playwright() as driver,
        driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"]) as browser,
    ):
        page, asked = browser.new_page(), []
        page.on("request", lambda request: asked.append(request))
        page.goto(f"http://127.0.0.1:{port}/?token={TOKEN}&q=a+red+circle")
        page.wait_for_url(f"http://127.0.0.1:{port}/?q=a+red+circle")
        assert page.locator(".tile").count() >= 20
        assert page.evaluate("document.cookie") == ""
        assert page.evaluate("document.referrer") == ""
        assert [request.url for request in asked if TOKEN in request.url] == [asked[0].url]
        assert not [request for request in asked if "referer" in request.all_headers()]
        # a link that another site follows: a redirect would not take the strict cookie along
        page.goto(f"http://localhost:{elsewhere}/")
        page.evaluate(f"location.href = 'http://127.0.0.1:{port}/?token={TOKEN}'")
        page.wait_for_url(f"http://127.0.0.1:{port}/")
        assert page.locator(".tile").count() == 24
