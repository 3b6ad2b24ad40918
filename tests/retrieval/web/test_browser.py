"""The page in a real browser: Chromium without a window, driven by Playwright. Skipped where either is missing."""

import base64
import shutil
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from retrieval.searcher import MAX_QUERY_CHARS
from tests.page_helpers import HOSTILE, LIMIT, SVG, jpeg, served

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("no chromium here", allow_module_level=True)

DROP = """([type, name, bytes]) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0))], name, { type: "image/jpeg" }));
    const options = { bubbles: true, cancelable: true };
    if (type === "paste") {
        document.body.dispatchEvent(new ClipboardEvent("paste", { ...options, clipboardData: transfer }));
    } else {
        for (const step of ["dragenter", "dragover", "drop"]) {
            document.body.dispatchEvent(new DragEvent(step, { ...options, dataTransfer: transfer }));
        }
    }
}"""
# the label stands for the file field, which is not seen itself
SEEN = "(document.activeElement.id === 'file' ? document.querySelector('[for=file]') : document.activeElement)"
QUERY = "a red circle"


@pytest.fixture(scope="module")
def site(searcher):
    with served(searcher) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, site):
    """A page that is open; behind the test it is seen that it asked no other host and complained of nothing."""
    with browser.new_context(base_url=site, viewport={"width": 1200, "height": 900}) as context:
        page = context.new_page()
        page.set_default_timeout(20_000)
        asked, complaints = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto("/")
        yield page
        # what is refused with a sentence is a failed load for the console
        assert not [complaint for complaint in complaints if "Failed to load" not in complaint]
        hosts = {urlsplit(url).netloc for url in asked if not url.startswith(("data:", "blob:"))}
        assert hosts == {urlsplit(site).netloc}


def type_query(page, query):
    page.get_by_label("Describe the image").fill(query)
    page.keyboard.press("Enter")


def tiles(page):
    """Ids of the images shown, in order; waits for them."""
    page.locator(".tile").first.wait_for()
    return page.locator(".tile").evaluate_all("all => all.map((tile) => tile.title)")


def error(page):
    """The message in place; waits for it."""
    page.locator("#error:not(:empty)").wait_for()
    return page.locator("#error").inner_text()


def bring(page, way, data, name="image.jpg"):
    """Drop, paste or choose a file."""
    if way == "choose":
        page.set_input_files("#file", {"name": name, "mimeType": "image/jpeg", "buffer": data})
    else:
        page.evaluate(DROP, [way, name, base64.b64encode(data).decode()])


def test_typing_a_query_shows_tiles_and_its_address(page, searcher):
    page.wait_for_function("document.activeElement.id === 'q'")  # autofocus comes with the first frame, not with load
    type_query(page, QUERY)
    wanted = [image for image, _ in searcher.search(QUERY, 20)]
    assert tiles(page)[:20] == wanted
    assert "20 of 24 images in" in page.get_by_role("status").inner_text()
    assert parse_qs(urlsplit(page.url).query) == {"q": [QUERY], "k": ["20"]}
    assert page.title() == QUERY
    ranks = page.locator(".tiles .rank").all_inner_texts()[:20]
    assert ranks == [str(rank) for rank in range(1, 21)]
    assert all(page.locator(".tile img").evaluate_all("all => all.slice(0, 4).map((image) => image.naturalWidth)"))
    with page.context.new_page() as other:
        other.goto(page.url)
        assert tiles(other) == tiles(page)
        assert other.get_by_label("Describe the image").input_value() == QUERY


def test_back_and_forward(page):
    type_query(page, QUERY)
    first = tiles(page)
    bring(page, "choose", jpeg())
    page.locator(".asked").wait_for()
    type_query(page, "a blue square wug")
    page.get_by_text("Unknown words, left out: wug").wait_for()
    page.go_back()
    page.locator(".asked").wait_for()
    assert page.get_by_label("Describe the image").input_value() == ""
    page.go_back()
    page.locator(".asked").wait_for(state="detached")
    assert tiles(page) == first
    assert page.get_by_label("Describe the image").input_value() == QUERY
    page.go_back()
    page.get_by_text("images can be found with a sentence").wait_for()
    page.go_forward()
    assert tiles(page) == first


def test_how_many_are_shown(page):
    type_query(page, QUERY)
    tiles(page)
    page.get_by_label("Show").select_option("10")
    page.get_by_text("10 of 24 images").wait_for()
    assert parse_qs(urlsplit(page.url).query)["k"] == ["10"]
    assert page.get_by_label("Show").input_value() == "10"
    type_query(page, "a blue square")
    page.wait_for_url("**q=a+blue+square*")
    page.get_by_text("10 of 24 images").wait_for()


def test_the_true_image_is_framed(page, searcher):
    caption = max(searcher.index.known, key=lambda text: -len(searcher.true_images(text)))
    type_query(page, caption)
    tiles(page)
    (true,) = searcher.true_images(caption)
    framed = page.locator("li.true")
    assert framed.locator(".tile").get_attribute("title") == true
    assert framed.get_by_text("true image").is_visible()
    position = searcher.rank_of(caption, true)
    assert page.get_by_text(f"its image stands at position {position} of 24").is_visible()


def test_a_true_image_far_down_stands_behind_a_gap(page, searcher):
    caption = next(text for text in searcher.index.known if searcher.ask(text, 1).hits[-1].below)
    page.goto(f"/?q={quote(caption)}&k=1")
    assert len(tiles(page)) == 2
    shown = page.locator(".tiles li").evaluate_all("all => all.map((item) => item.className)")
    assert shown == ["", "gap", "true"]


def test_what_is_not_likely_is_hidden(page, searcher):
    type_query(page, QUERY)
    tiles(page)
    likely = [hit.probability for hit in searcher.ask(QUERY, 20).hits if not hit.below]
    rows, seen = page.locator("li[data-probability]"), page.locator("li[data-probability]:visible")
    assert rows.count() == len(likely) == 20
    assert page.locator(".tiles .score").first.text_content() == f"{100 * likely[0]:.0f} %"
    middle = 5 * round(20 * sorted(likely)[10])
    for least in (middle, 100, 0):
        page.locator("#least").fill(str(least))
        left = sum(100 * round(p, 4) >= least for p in likely)
        assert seen.count() == left
        assert page.locator("#none").is_visible() == (left == 0)
        assert page.locator("#least-text").text_content() == f"{least} %"
    page.locator("#least").fill(str(middle))
    type_query(page, "a blue square")
    page.wait_for_url("**q=a+blue+square*")
    page.locator("#answer:not([aria-busy])").wait_for()
    kept = [hit.probability for hit in searcher.ask("a blue square", 20).hits if not hit.below]
    assert seen.count() == sum(100 * round(p, 4) >= middle for p in kept), "of the next answer, too"


@pytest.mark.parametrize("way", ["drop", "paste", "choose"])
def test_an_image_finds_captions_similar_images_and_emoji(page, way, page_folder):
    bring(page, way, (page_folder / "images/3.png").read_bytes())
    for heading in ("Captions", "Emoji", "Similar images"):
        page.get_by_role("heading", name=heading).wait_for()
    assert tiles(page)[0] == "3.png"
    assert page.locator(".lines").first.locator("li").count() == 10
    assert page.locator(".emoji").count() == 10
    assert page.locator(".asked img").evaluate("image => image.complete && image.naturalWidth") == 64
    assert urlsplit(page.url).query == ""
    assert not page.locator("body.over").count()
    caption = page.locator(".lines a").first
    text = caption.inner_text()
    caption.click()
    page.locator(".asked").wait_for(state="detached")
    assert page.get_by_label("Describe the image").input_value() == text


def test_empty_and_very_long_queries_show_a_message(page):
    page.get_by_label("Describe the image").press("Enter")
    assert error(page).lower().startswith("the query is empty")
    type_query(page, "a " * MAX_QUERY_CHARS)
    assert "characters; say it in 5,000 at most" in error(page)
    type_query(page, "a dog " * (MAX_QUERY_CHARS // 6))
    page.locator(".tile").first.wait_for()
    type_query(page, "xyzzy")
    assert "unknown words only (xyzzy)" in error(page)
    assert page.locator(".tile").count() == 0
    type_query(page, QUERY)
    tiles(page)
    assert page.locator("#error").inner_text() == ""


def test_hostile_uploads_show_a_message(page):
    for number, (name, data, sentence) in enumerate(HOSTILE):
        bring(page, ("drop", "paste", "choose")[number % 3], data, name)
        page.locator("#error", has_text=sentence).wait_for()
        type_query(page, QUERY)  # and the page goes on
        tiles(page)
    bring(page, "choose", bytes(int(LIMIT * 1.1e6)))
    assert f"choose one of {LIMIT:g} MB at most" in error(page)
    bring(page, "drop", SVG, "drawing.svg")
    page.locator("#error", has_text="no image that can be read").wait_for()


def test_the_larger_view_with_the_keyboard(page):
    type_query(page, QUERY)
    names = tiles(page)
    larger = page.get_by_role("dialog")
    page.locator(".tile").first.focus()
    page.keyboard.press("Enter")
    larger.wait_for()
    assert names[0] in larger.inner_text()
    for key, place in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1)):
        page.keyboard.press(key)
        assert names[place] in larger.inner_text()
    page.wait_for_selector('#large[src*="/image/"]')
    page.keyboard.press("Escape")
    larger.wait_for(state="hidden")
    page.locator(".tile:focus").wait_for()
    assert page.locator(".tile:focus").get_attribute("title") == names[1]
    page.keyboard.press("Enter")
    larger.get_by_text("Similar images").focus()
    page.keyboard.press("Enter")
    page.locator(".asked").wait_for()
    assert parse_qs(urlsplit(page.url).query)["similar"] == [names[1]]
    assert names[1] not in tiles(page)
    assert not larger.is_visible()
    page.go_back()
    page.locator(".asked").wait_for(state="detached")
    assert tiles(page) == names


def test_the_larger_view_with_the_mouse(page):
    type_query(page, QUERY)
    names = tiles(page)
    page.locator(".tile").nth(2).click()
    larger = page.get_by_role("dialog")
    larger.wait_for()
    larger.get_by_label("Previous image").click()
    larger.get_by_label("Previous image").click()
    larger.get_by_label("Previous image").click()
    assert names[-1] in larger.inner_text(), "before the first comes the last"
    page.mouse.click(5, 5)
    larger.wait_for(state="hidden")


def test_every_control_is_reached_and_seen_with_the_keyboard(page):
    type_query(page, QUERY)
    tiles(page)
    page.locator("h1 a").focus()
    seen = []
    for _ in range(8):
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.className || 'other'"))
        outlined = page.evaluate(f"getComputedStyle({SEEN}).outlineStyle")
        assert outlined == "solid", seen
        page.keyboard.press("Tab")
    assert seen == ["other", "q", "k", "other", "file", "least", "tile", "tile"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(browser, site, page_folder, scheme):
    size = {"width": 360, "height": 740}
    with browser.new_context(base_url=site, viewport=size, color_scheme=scheme, has_touch=True) as context:
        page = context.new_page()
        page.goto("/")

        def fits():
            assert page.evaluate("document.documentElement.scrollWidth") <= 360

        fits()
        type_query(page, f"{QUERY} {'w' * 200}")
        tiles(page)
        fits()
        page.locator(".tile").first.tap()
        dialog = page.get_by_role("dialog")
        dialog.wait_for()
        fits()
        box = dialog.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
        assert box["y"] + box["height"] <= 740
        dialog.get_by_text("Close").tap()
        bring(page, "choose", (page_folder / "images/3.png").read_bytes())
        page.locator(".asked").wait_for()
        fits()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(255, 255, 255)" if scheme == "light" else "rgb(22, 24, 27)"
        )


def test_without_its_script(browser, site, page_folder):
    with browser.new_context(base_url=site, java_script_enabled=False) as context:
        page = context.new_page()
        page.goto("/")
        type_query(page, QUERY)
        page.locator(".tile").first.wait_for()
        assert parse_qs(urlsplit(page.url).query)["q"] == [QUERY]
        page.set_input_files("#file", page_folder / "images/3.png")
        page.get_by_role("button", name="Search with it").click()
        page.get_by_role("heading", name="Captions").wait_for()
        assert page.locator(".tile").first.get_attribute("title") == "3.png"


def test_a_server_that_has_ended(page):
    page.route("**/*", lambda route: route.abort())
    type_query(page, QUERY)
    assert "does not answer" in error(page)
