"""The page in a real browser: Chromium without a window, driven by Playwright. Skipped where either is missing."""

import base64
import csv
import io
import shutil
from importlib.resources import files
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from PIL import Image as PILImage

from retrieval.searcher import Searcher
from retrieval.words import MAX_QUERY_CHARS
from tests.page_helpers import HOSTILE, LIMIT, ODD, SVG, jpeg, served

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("starlette")
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
# the label stands for the file field, which is not seen itself, and what is around the field of words for that
SEEN = """(document.activeElement.id === 'file' ? document.querySelector('[for=file].icon')
    : document.activeElement.id === 'q' ? document.querySelector('.field') : document.activeElement)"""
WIDTH = "image => image.decode().then(() => image.naturalWidth)"
QUERY = "a red circle"
SERIOUS = ("serious", "critical")
SWIPE = """() => {
    const stage = document.querySelector(".stage");
    const touch = (x) => new Touch({ identifier: 1, target: stage, clientX: x, clientY: 300 });
    for (const [type, x] of [["touchstart", 300], ["touchend", 120]]) {
        const touches = type === "touchstart" ? [touch(x)] : [];
        stage.dispatchEvent(new TouchEvent(type, { touches, changedTouches: [touch(x)], bubbles: true }));
    }
}"""


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


def settled(page):
    """The page, once the answer to what was asked last is in it."""
    page.locator("main:not([aria-busy])").wait_for()
    return page


def asks(page, query):
    """Ask with a sentence, and wait for its answer."""
    type_query(page, query)
    page.wait_for_url(f"**q={quote(query).replace('%20', '+')}*")
    return tiles(page)


def asked(page):
    """What the address asks, without lists of one."""
    return {name: value[0] if len(value) == 1 else value for name, value in parse_qs(urlsplit(page.url).query).items()}


def tiles(page, seen=""):
    """Ids of the images, in order, copies behind their originals; seen=":visible": without what is folded or hidden."""
    page.locator("#tools:visible .switch").first.wait_for()
    return settled(page).locator(f".tile{seen}").evaluate_all("all => all.map((tile) => tile.title)")


def ranked(names, rows):
    """The ids of an answer's rows as the page has them: copies behind their originals."""
    original = {row["image"]: row["copy_of"] or row["rank"] for row in rows}
    assert sorted(names) == sorted(original)
    return sorted(original, key=lambda image: (original[image], next(r["rank"] for r in rows if r["image"] == image)))


def answer_of(page, path):
    """The answer of the server, as JSON, to what the page asks."""
    return page.request.get(path.replace("/?", "/api/search?")).json()


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
    page.wait_for_function(
        "() => document.activeElement.id === 'q'"
    )  # autofocus comes with the first frame, not with load
    names = asks(page, QUERY)
    rows = answer_of(page, page.url)["images"]
    assert [row["image"] for row in rows[:20]] == [image for image, _ in searcher.search(QUERY, 20)]
    assert names == ranked(names, rows)
    assert "20 of 24 images in" in page.locator("#status").inner_text()
    assert asked(page) == {"q": QUERY}
    assert page.title() == QUERY
    assert all(page.locator(".tile img").evaluate_all("all => all.slice(0, 4).map((image) => image.naturalWidth)"))
    with page.context.new_page() as other:
        other.goto(page.url)
        assert tiles(other) == names
        assert other.get_by_label("Describe the image").input_value() == QUERY


def test_it_answers_while_one_types(page):
    asks(page, QUERY)
    length = page.evaluate("history.length")
    seen = []
    page.on("request", lambda request: seen.append(request.url) if "/?" in request.url else None)
    field = page.get_by_label("Describe the image")
    field.fill("")
    field.press_sequentially("a blue square", delay=20)
    page.wait_for_url("**q=a+blue+square")
    assert page.title() == "a blue square"
    assert len(seen) < len("a blue square"), "not at every key"
    field.press_sequentially(" or circle", delay=20)
    page.wait_for_url("**q=a+blue+square+or+circle")
    assert page.evaluate("history.length") == length + 1, "one address for all that was typed"
    assert page.evaluate("document.activeElement.id") == "q"
    names = tiles(page)
    with page.expect_response("**q=xyzzy"):
        field.fill("xyzzy")
    assert tiles(page) == names, "what means nothing yet changes nothing,"
    assert page.locator("#error").inner_text() == "", "and nobody complains"
    page.go_back()
    page.wait_for_url(f"**q={QUERY.replace(' ', '+')}")


def test_an_answer_that_comes_late_is_dropped(page):
    asks(page, QUERY)
    held = []
    page.route("**/?q=a+slow*", lambda route: held.append(route))
    type_query(page, "a slow square")
    assert page.locator("main[aria-busy]").count() == 1
    assert page.locator(".tile").count() >= 20, "the old answer stays"
    names = asks(page, "a blue square")
    for route in held:
        route.fulfill(body="<main id=answer>late</main>")
    settled(page)
    assert tiles(page) == names
    assert "slow" not in page.url


def test_back_and_forward(page):
    first = asks(page, QUERY)
    bring(page, "choose", jpeg())
    page.locator(".chip").wait_for()
    asks(page, "a blue square wug")
    assert asked(page)["q"] == "a blue square wug"
    page.get_by_text("Unknown words, left out: wug").wait_for()
    page.go_back()
    page.wait_for_function("() => document.getElementById('q').value === ''")
    assert page.locator(".chip").count() == 1
    page.go_back()
    page.locator(".chip").wait_for(state="detached")
    assert tiles(page) == first
    assert page.get_by_label("Describe the image").input_value() == QUERY
    page.go_back()
    page.get_by_role("list", name="Examples").wait_for()
    page.go_forward()
    page.get_by_role("list", name="Examples").wait_for(state="detached")
    assert tiles(page) == first


def test_home_is_a_wall_with_examples(page):
    assert page.locator(".tile").count() == 24
    assert page.get_by_role("heading", name="index", exact=True).is_visible()
    assert page.get_by_text("asked through strong-").is_visible()
    page.locator(".tile").nth(3).click()
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("Escape")
    example = page.locator(".examples a").first
    text = example.inner_text()
    example.click()
    page.wait_for_url("**/?q=*")
    assert asked(page) == {"q": text}
    page.locator("a.home").click()
    page.get_by_role("list", name="Examples").wait_for()


def test_show_more(page, searcher):
    page.goto(f"/?q={quote(QUERY)}&k=4")
    names = tiles(page, ":visible")
    page.get_by_text("Show 20 more").click()
    page.wait_for_url("**k=24")
    assert page.locator("#more").count() == 0, "there are no more"
    assert set(names) < set(tiles(page))
    assert len(tiles(page)) == 24
    focused = page.evaluate("document.activeElement.title")
    assert focused == tiles(page, ":visible")[len(names)], "reading goes on where it was"


def test_the_true_image_is_framed(page, searcher):
    caption = max(searcher.index.known, key=lambda text: -len(searcher.true_images(text)))
    asks(page, caption)
    (true,) = searcher.true_images(caption)
    framed = page.locator("li.true")
    assert framed.locator(".tile").get_attribute("title") == true
    assert framed.get_by_text("true image").count() == 1
    position = searcher.rank_of(caption, true)
    assert page.get_by_text(f"its image stands at position {position} of 24").is_visible()


def test_a_true_image_far_down_stands_behind_a_gap(page, searcher):
    caption = next(text for text in searcher.index.known if searcher.ask(text, 1).hits[-1].below)
    page.goto(f"/?q={quote(caption)}&k=1")
    assert len(tiles(page)) == 2
    shown = page.locator(".tiles li").evaluate_all("all => all.map((item) => item.className.trim())")
    assert shown == ["item", "gap", "item true"]


def test_rank_and_cosine_stand_behind_a_switch(page, searcher):
    asks(page, QUERY)
    ((_, score),) = searcher.search(QUERY, 1)
    detail = page.locator(".detail").first
    assert not detail.is_visible()
    page.get_by_label("Details").check()
    assert detail.inner_text() == f"1 · {score:.3f}".replace("-", "−")
    probability = searcher.ask(QUERY, 1).hits[0].probability
    assert page.locator(".likely").first.inner_text() == f"{100 * probability:.0f} %"


def test_what_is_not_likely_is_hidden(page, searcher):
    asks(page, QUERY)
    likely = [hit.probability for hit in searcher.ask(QUERY, 20).hits if not hit.below]
    rows, left_out = page.locator("li[data-probability]"), page.locator("li[data-probability][hidden]")
    assert rows.count() == len(likely) == 20
    middle = 5 * round(20 * sorted(likely)[10])
    for least in (middle, 100, 0):
        page.locator("#least").fill(str(least))
        left = sum(100 * round(p, 4) >= least for p in likely)
        assert left_out.count() == 20 - left
        assert page.locator("#none").is_visible() == (left == 0)
        assert page.locator("#least-text").text_content() == f"{least} % likely"
        assert page.locator("#status").inner_text().startswith(f"{left} of 24 images")
        assert page.locator("#more").is_visible() == (left == 20), "nothing that follows is likelier"
    page.locator("#least").fill(str(middle))
    asks(page, "a blue square")
    kept = [hit.probability for hit in searcher.ask("a blue square", 20).hits if not hit.below]
    assert left_out.count() == 20 - sum(100 * round(p, 4) >= middle for p in kept), "of the next answer, too"
    page.locator("#least").fill("100")
    page.get_by_role("button", name="Show all").click()
    assert left_out.count() == 0


def test_slider_and_details_stand_in_the_address(page):
    asks(page, QUERY)
    length = page.evaluate("history.length")
    page.locator("#least").fill("60")
    page.get_by_label("Details").check()
    assert urlsplit(page.url).fragment == "least=60&details=1"
    hidden = page.locator("li[hidden]").count()
    assert hidden, "the test needs some"
    assert page.evaluate("history.length") == length
    page.reload()
    tiles(page)
    assert page.locator("#least").input_value() == "60"
    assert page.locator("li[hidden]").count() == hidden
    assert page.locator(".detail").first.is_visible()
    asks(page, "a blue square")
    page.locator("#least").fill("0")
    page.get_by_label("Details").uncheck()
    assert "#" not in page.url
    page.go_back()
    page.wait_for_url("**#least=60&details=1")
    assert page.locator("#least").input_value() == "60", "as it was"


@pytest.mark.parametrize("way", ["drop", "paste", "choose"])
def test_an_image_finds_similar_images_captions_and_emoji(page, way, page_folder):
    bring(page, way, (page_folder / "images/3.png").read_bytes())
    page.wait_for_url("**upload=*")
    assert tiles(page)[0] == "3.png"
    assert page.get_by_role("heading", name="Similar images").count() == 1
    assert page.locator(".lines").first.locator("li").count() == 10
    assert not page.locator(".emoji").first.is_visible(), "folded"
    page.locator("summary", has_text="Emoji").click()
    assert page.locator(".emoji:visible").count() == 10
    assert page.locator(".chip img").evaluate(WIDTH) == 64
    assert not page.locator("body.over").count()
    order = page.evaluate("[...document.querySelectorAll('main h2, main summary')].map((head) => head.innerText)")
    assert order == ["Similar images", "Captions", "Emoji"]
    caption = page.locator(".lines a").first
    text = caption.inner_text()
    caption.click()
    page.locator(".chip").wait_for(state="detached")
    assert page.get_by_label("Describe the image").input_value() == text


def test_an_image_that_was_sent_survives_a_reload(page, page_folder, searcher):
    bring(page, "choose", (page_folder / "images/3.png").read_bytes())
    page.wait_for_url("**upload=*")
    names = tiles(page)
    page.reload()
    assert tiles(page) == names
    assert page.locator(".chip img").evaluate(WIDTH) == 64
    page.get_by_label("Describe the image").fill("a circle")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=a+circle&upload=*")
    image = PILImage.open(page_folder / "images/3.png")  # cached features: nobody knows it for one of the index
    wanted = [image for image, _ in searcher.combined("a circle", like=image)]
    assert sorted(tiles(page)) == sorted(wanted)


def test_a_search_that_adds_and_subtracts(page, searcher):
    asks(page, QUERY)
    tile = page.locator(".tile:visible").nth(1)
    name = tile.get_attribute("title")
    tile.click()
    page.get_by_label("Add words").fill("a square")
    page.locator("#minus").fill("yellow")
    page.get_by_role("button", name="More like this").click()
    page.wait_for_url("**like=*")
    assert asked(page) == {"like": name, "q": "a square", "minus": "yellow"}
    assert page.locator(".chip").count() == 2
    wanted = [image for image, _ in searcher.combined("a square", like=name, minus=["yellow"])]
    assert sorted(tiles(page)) == sorted(wanted)
    page.locator("#less").fill("green")
    page.keyboard.press("Enter")
    page.wait_for_url("**minus=green*")
    assert asked(page) == {"like": name, "q": "a square", "minus": ["yellow", "green"]}
    assert page.locator("#less").input_value() == ""
    page.get_by_label("No longer less of yellow").click()
    page.wait_for_function("() => !location.search.includes('yellow')")
    page.get_by_label("Without this image").click()
    page.wait_for_function("() => !location.search.includes('like')")
    assert asked(page) == {"q": "a square", "minus": "green"}
    wanted = [image for image, _ in searcher.combined("a square", minus=["green"])]
    assert sorted(tiles(page)) == sorted(wanted)


def test_images_of_odd_names_can_be_asked_with(browser, page_folder):
    from retrieval.web.query import Query  # needs starlette

    with served(Searcher.open(page_folder / "odd.index")) as port, browser.new_context() as context:
        page = context.new_page()
        for name in ODD:
            page.goto(f"http://127.0.0.1:{port}{Query(like=name).address()}")
            assert len(tiles(page)) == 3
            type_query(page, "a circle")
            page.wait_for_url("**q=a+circle&like=*")
            assert len(tiles(page)) == 3
            assert page.locator("#error").inner_text() == ""


def exported(page):
    with page.expect_download() as download:
        page.locator("#export").click()
    return list(csv.DictReader(io.StringIO(download.value.path().read_text())))


def test_selected_images_are_exported(page, searcher):
    asks(page, QUERY)
    hits = searcher.ask(QUERY, 20).hits
    assert [row["path"] for row in exported(page)] == [str(searcher.path(hit.image)) for hit in hits]
    names = tiles(page, ":visible")
    page.get_by_label("Select", exact=True).check()
    page.get_by_label(f"Select {names[0]}", exact=True).check()
    page.locator(".tile:visible").nth(2).click()
    assert not page.get_by_role("dialog").is_visible(), "a click selects"
    assert page.locator("#export").text_content() == "Export 2 as CSV"
    assert [row["path"] for row in exported(page)] == [str(searcher.path(names[n])) for n in (0, 2)]
    page.get_by_label("Select", exact=True).uncheck()
    least = 5 * round(20 * sorted(hit.probability for hit in hits if not hit.below)[10])
    page.locator("#least").fill(str(least))
    kept = [hit.image for hit in hits if hit.below or 100 * round(hit.probability, 4) >= least]
    assert [row["path"] for row in exported(page)] == [str(searcher.path(image)) for image in kept]


def test_near_duplicates_are_stacked(page, searcher):
    page.goto("/?q=circle&k=24")
    rows = answer_of(page, page.url)["images"]
    copies = {row["image"]: row["copy_of"] for row in rows if row["copy_of"]}
    assert copies, "the drawn images have some"
    assert len(tiles(page, ":visible")) == 24 - len(copies)
    button = page.locator(".copies").first
    rank = int(button.get_attribute("data-rank"))
    assert button.inner_text() == f"+{list(copies.values()).count(rank)}"
    button.click()
    opened = {image for image, original in copies.items() if original == rank}
    assert opened < set(tiles(page, ":visible"))
    button.click()
    assert not opened & set(tiles(page, ":visible"))


def test_empty_and_very_long_queries_show_a_message(page):
    page.get_by_label("Describe the image").press("Enter")
    assert error(page).lower().startswith("the query is empty")
    type_query(page, "a " * MAX_QUERY_CHARS)
    assert "characters; say it in 5,000 at most" in error(page)
    names = asks(page, QUERY)
    assert page.locator("#error").inner_text() == ""
    type_query(page, "xyzzy")
    assert "unknown words only (xyzzy)" in error(page)
    assert tiles(page) == names, "an error keeps the last answer"
    asks(page, "a blue square")
    assert page.locator("#error").inner_text() == ""


def test_hostile_uploads_show_a_message(page):
    asks(page, QUERY)
    for number, (name, data, sentence) in enumerate(HOSTILE):
        bring(page, ("drop", "paste", "choose")[number % 3], data, name)
        page.locator("#error", has_text=sentence).wait_for()
        assert page.locator(".tile").count() >= 20, "an error keeps the last answer"
    bring(page, "choose", bytes(int(LIMIT * 1.1e6)))
    page.locator("#error", has_text=f"choose one of {LIMIT:g} MB at most").wait_for()
    bring(page, "drop", SVG, "drawing.svg")
    page.locator("#error", has_text="no image that can be read").wait_for()
    asks(page, "a blue square")


def test_the_larger_view_with_the_keyboard(page):
    asks(page, QUERY)
    names = tiles(page, ":visible")
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
    page.keyboard.press("Tab")
    larger.get_by_role("button", name="More like this").focus()
    page.keyboard.press("Enter")
    page.locator(".chip").wait_for()
    assert asked(page) == {"like": names[1]}
    assert names[1] not in tiles(page)
    assert not larger.is_visible()
    page.go_back()
    page.locator(".chip").wait_for(state="detached")
    assert tiles(page, ":visible") == names


def test_the_larger_view_with_the_mouse_tells_of_the_file(page, searcher):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    asks(page, QUERY)
    names = tiles(page, ":visible")
    page.locator(".tile:visible").nth(2).click()
    larger = page.get_by_role("dialog")
    larger.get_by_text("Copy path").click()
    larger.get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == str(searcher.path(names[2]))
    told = larger.inner_text()
    assert "64 × 64" in told
    assert str(searcher.path(names[2])) in told
    with page.context.expect_page() as opened:
        larger.get_by_text("Open full size").click()
    assert "/full/" in opened.value.url
    opened.value.close()
    with page.context.expect_page() as opened:
        larger.get_by_text("Open original").click()
    assert "/original/" in opened.value.url
    opened.value.close()
    for _ in range(3):
        larger.get_by_label("Previous image").click()
    assert names[-1] in larger.inner_text(), "before the first comes the last"
    larger.get_by_label("Close").click()
    larger.wait_for(state="hidden")


def test_back_closes_the_larger_view(page):
    names = asks(page, QUERY)
    address, length = page.url, page.evaluate("history.length")
    larger = page.get_by_role("dialog")
    page.locator(".tile:visible").first.click()
    larger.wait_for()
    second = page.locator(".tile:visible").nth(1).get_attribute("title")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("history.length") == length + 1
    page.go_back()
    larger.wait_for(state="hidden")
    assert page.url == address
    assert tiles(page) == names
    page.go_forward()
    larger.get_by_role("heading", name=second, exact=True).wait_for()
    page.reload()
    larger.get_by_role("heading", name=second, exact=True).wait_for()
    for close in (lambda: page.keyboard.press("Escape"), lambda: larger.get_by_label("Close").click()):
        close()
        larger.wait_for(state="hidden")
        page.locator(".tile:visible").nth(2).click()
        larger.wait_for()
        assert page.evaluate("history.length") == length + 1, "what is closed is gone from the history"
    page.go_back()
    larger.wait_for(state="hidden")
    page.go_back()
    page.get_by_role("list", name="Examples").wait_for()


def test_keys_lead_from_image_to_image(page):
    page.wait_for_function("() => document.activeElement.id === 'q'")
    page.keyboard.type("/")
    assert page.get_by_label("Describe the image").input_value() == "", "it leads to the field, where one is already"
    asks(page, QUERY)
    names = tiles(page, ":visible")

    def focused():
        return page.evaluate("document.activeElement.title || document.activeElement.id")

    page.keyboard.press("ArrowDown")
    assert focused() == names[0]
    page.keyboard.press("ArrowRight")
    assert focused() == names[1]
    page.keyboard.press("ArrowDown")
    below = focused()
    assert page.locator(".tile:focus").bounding_box()["y"] > page.locator(".tile").first.bounding_box()["y"] + 50
    page.keyboard.press("ArrowUp")
    assert focused() == names[1]
    assert below in names[2:]
    page.keyboard.press("End")
    assert focused() == names[-1]
    page.keyboard.press("Escape")
    assert focused() == "q"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("/")
    assert focused() == "q"
    page.keyboard.type("/")
    assert page.get_by_label("Describe the image").input_value() == "/", "what was there is selected"


def test_every_control_is_reached_and_seen_with_the_keyboard(page):
    asks(page, QUERY)
    page.locator("a.home").focus()
    seen = []
    for _ in range(6):
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.className || 'other'"))
        assert page.evaluate(f"getComputedStyle({SEEN}).outlineStyle") == "solid", seen
        page.keyboard.press("Tab")
    assert seen == ["home", "q", "file", "main", "tile", "tile"]


def test_rows_are_filled_and_keep_proportions(page):
    asks(page, QUERY)
    boxes = page.locator(".tile:visible img").evaluate_all(
        "all => all.map((image) => [image.getBoundingClientRect().toJSON(), image.width, image.height])"
    )
    rows: dict[int, list[dict]] = {}
    for box, width, height in boxes:
        rows.setdefault(round(box["top"]), []).append(box)
        assert width / height == pytest.approx(1, abs=0.02), "the images are squares"
    first, *_, last = (rows[top] for top in sorted(rows))
    edge = page.evaluate("document.documentElement.clientWidth") - 16
    assert len({round(box["height"]) for box in first}) == 1
    assert first[0]["left"] == pytest.approx(16, abs=1)
    assert first[-1]["right"] == pytest.approx(edge, abs=1), "up to the edge"
    assert last[-1]["right"] <= edge + 1
    assert len(rows) > 2, "the test needs a last row that is not full"
    assert last[-1]["right"] < edge - 50
    assert last[0]["height"] == pytest.approx(first[0]["height"], abs=1)
    page.set_viewport_size({"width": 1100, "height": 900})
    page.wait_for_function(
        """() => new Set([...document.querySelectorAll(".tile img")].filter((image) => image.offsetParent)
            .map((image) => Math.round(image.height))).size === 1"""
    )


def test_all_tools_are_in_sight_at_every_width(page):
    asks(page, QUERY)
    for width in (340, 400, 620, 700, 900, 1200):
        page.set_viewport_size({"width": width, "height": 800})
        for tool in ("#least", "#less", "#details", "#select", "#export", "#count"):
            box = page.locator(tool).bounding_box()
            assert box["width"] > (40 if tool == "#least" else 10)
            assert box["x"] >= 0, (width, tool)
            assert box["x"] + box["width"] <= width, (width, tool)
        assert page.locator("#tools").bounding_box()["height"] < (110 if width < 880 else 70), width


@pytest.mark.parametrize("width", [360, 390, 430, 460])
def test_the_bar_is_one_row_on_a_phone_and_stays_in_sight(browser, site, width):
    with browser.new_context(base_url=site, viewport={"width": width, "height": 740}) as context:
        page = context.new_page()
        page.goto(f"/?q={quote(QUERY)}")
        button = page.get_by_role("button", name="Search", exact=True).bounding_box()
        field = page.locator(".field").bounding_box()
        assert button["height"] < 50, "it does not break in two"
        assert abs(button["y"] - field["y"]) < 4
        first = page.locator(".tile, .note:visible").first.bounding_box()
        assert first["y"] < 100, "nothing stands before the first image but what is wrong"
        page.mouse.wheel(0, 600)
        page.wait_for_function("() => scrollY > 0")
        assert page.locator("#q").bounding_box()["y"] < 20


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
        name = page.locator("#name").inner_text()
        page.evaluate(SWIPE)
        assert page.locator("#name").inner_text() != name
        box = dialog.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
        assert box["y"] + box["height"] <= 740
        dialog.get_by_label("Close").tap()
        bring(page, "choose", (page_folder / "images/3.png").read_bytes())
        page.locator(".chip").wait_for()
        fits()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(255, 255, 255)" if scheme == "light" else "rgb(22, 24, 27)"
        )


def test_without_its_script(browser, site, page_folder):
    with browser.new_context(base_url=site, java_script_enabled=False) as context:
        page = context.new_page()
        page.goto("/")
        type_query(page, QUERY)
        page.wait_for_url("**q=*")
        assert asked(page)["q"] == QUERY
        page.locator("#less").fill("a square")
        page.keyboard.press("Enter")
        page.wait_for_url("**minus=a+square*")
        assert page.locator(".chip").count() == 1
        page.set_input_files("#file", page_folder / "images/3.png")
        page.get_by_role("button", name="Search with it").click()
        page.get_by_role("heading", name="Captions").wait_for()
        assert page.locator(".tile").first.get_attribute("title") == "3.png"


def test_a_server_that_has_ended(page):
    names = asks(page, QUERY)
    page.route("**/*", lambda route: route.abort())
    type_query(page, "a blue square")
    assert "does not answer" in error(page)
    assert tiles(page) == names


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_is_inaccessible(browser, site, scheme, width):
    """By axe-core, on home, an answer, the larger view, and where nothing matches."""
    pytest.importorskip("axe_playwright_python")
    axe = files("axe_playwright_python").joinpath("axe.min.js").read_text()
    size = {"width": width, "height": 800}
    with browser.new_context(base_url=site, viewport=size, color_scheme=scheme) as context:
        page = context.new_page()

        def check(state):
            page.evaluate(axe)
            found = page.evaluate("axe.run().then((result) => result.violations)")
            grave = [(v["id"], [node["html"] for node in v["nodes"]]) for v in found if v["impact"] in SERIOUS]
            assert not grave, f"{state}: {grave}"

        page.goto("/")
        page.locator(".scripts").wait_for()
        check("home")
        page.goto(f"/?q={quote(QUERY)}")
        tiles(page)
        page.get_by_label("Details").check()
        page.get_by_label("Select", exact=True).check()
        check("an answer, with details and selecting")
        page.locator("#least").fill("100")
        check("where nothing is as likely")
        page.goto("/?like=3.png&minus=red")
        tiles(page)
        check("an image and less of something")
        page.locator(".tile").first.click()
        page.locator("dialog dd").first.wait_for()
        check("the larger view")
        page.goto("/?q=xyzzy")
        check("an error")
