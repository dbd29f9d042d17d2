"""The rank browser in a real browser: class, pages, keys, bottom 50, shared addresses, a phone."""

import re
import threading

import numpy as np
import pytest

from analysis import browse
from analysis.browser import page as browse_page
from analysis.results.folder import load

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(study, root, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("LABTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
    with browse.serving(browse_page.Shown(load(study), root)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.port}/"
        server.shutdown()
        thread.join()
    patch.undo()


@pytest.fixture(scope="module")
def tab(chromium):
    """A page that keeps what it says and asks for, for all tests: a new one is a new process."""
    tab = chromium.new_page(viewport={"width": 1280, "height": 900})
    tab.said, tab.asked = [], []
    tab.on("console", lambda message: tab.said.append(message.text))
    tab.on("pageerror", lambda error: tab.said.append(str(error)))
    tab.on("request", lambda request: tab.asked.append(request.url))
    return tab


@pytest.fixture
def page(tab, address):
    tab.goto(address)
    yield tab
    assert not tab.said  # no error, nothing that the policy forbade
    assert all(url.startswith((address, "data:")) for url in tab.asked)


def shown(page) -> list[int]:
    found = page.locator(".tile").evaluate_all("tiles => tiles.map(tile => tile.dataset.number)")
    return [int(number) for number in found]


def check_order(page, stored, name: str, order: str, first: int) -> None:
    """Check the images on the page against the stored scores: ranks `first`, `first` + 1, ..."""
    scores = stored.scores[:, stored.classes.index(name)]
    expected = np.sort(scores)[:: -1 if order == "top" else 1]
    numbers = shown(page)
    np.testing.assert_array_equal(scores[numbers], expected[first : first + len(numbers)])
    texts = page.locator(".tile .score").all_text_contents()
    shown_as = [float(text.replace("−", "-")) for text in texts]
    assert shown_as == pytest.approx(scores[numbers].tolist(), abs=5e-5)


def turn(page, how, *given) -> None:
    """Do what leads to another page, and wait for it."""
    with page.expect_navigation():
        how(*given)


def follow(page, name: str, exact: bool = False) -> None:
    turn(page, page.get_by_role("link", name=name, exact=exact).click)


def test_pick_a_class_and_page_by_button_key_and_number(page, stored):
    check_order(page, stored, "aeroplane", "top", 0)
    turn(page, page.select_option, "#class", "dog")
    check_order(page, stored, "dog", "top", 0)
    follow(page, "Forward")
    check_order(page, stored, "dog", "top", 50)
    turn(page, page.keyboard.press, "ArrowRight")
    check_order(page, stored, "dog", "top", 100)
    assert len(shown(page)) == 30
    page.keyboard.press("ArrowRight")  # the last page: nothing to turn to
    turn(page, page.keyboard.press, "ArrowLeft")
    check_order(page, stored, "dog", "top", 50)
    follow(page, "Back")
    check_order(page, stored, "dog", "top", 0)
    page.get_by_label("Page", exact=True).fill("3")
    turn(page, page.get_by_role("button", name="Go").click)
    check_order(page, stored, "dog", "top", 100)
    follow(page, "Bottom 50")
    check_order(page, stored, "dog", "bottom", 0)
    assert len(shown(page)) == 50
    follow(page, "Top 50")
    check_order(page, stored, "dog", "top", 0)


def test_arrow_keys_turn_the_page_from_the_class_list_too(page, stored):
    page.focus("#class")
    turn(page, page.keyboard.press, "ArrowRight")
    check_order(page, stored, "aeroplane", "top", 50)
    assert page.input_value("#class") == "aeroplane"
    page.focus("#class")  # by keyboard a class is chosen with up and down, and shown at Enter
    page.keyboard.press("ArrowDown")
    assert page.input_value("#class") == "bicycle" and "class=aeroplane" in page.url
    turn(page, page.keyboard.press, "Enter")
    check_order(page, stored, "bicycle", "top", 0)
    page.focus("#find")  # there the arrows move the cursor
    page.keyboard.type("v0")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowRight")
    assert "page=2" not in page.url and page.input_value("#find") == "v0"


def test_a_shared_address_shows_the_same(page, chromium):
    turn(page, page.select_option, "#class", "sofa")
    follow(page, "Bottom 50")
    page.locator("#threshold").fill("1")
    page.locator("#threshold").dispatch_event("change")
    follow(page, "Forward")
    page.fill("#find", "v000")
    turn(page, page.get_by_role("button", name="Show").click)
    point = page.inner_text("#point")
    other = chromium.new_page()
    other.goto(page.url)
    assert shown(other) == shown(page) and other.inner_text("#point") == point
    assert other.input_value("#class") == "sofa" and other.input_value("#find") == "v000"
    assert "Score above 1" in point
    assert other.locator("a[aria-current]").inner_text() == "Bottom 50"
    other.close()


def test_the_slider_moves_marks_and_numbers_at_once(page, stored):
    scores, signs = stored.scores[:, 0], stored.labels[:, 0]
    start = page.url
    page.focus("#threshold")
    with page.expect_response(re.compile("/point")):
        page.locator("#threshold").fill("2")
    page.get_by_text("Score above 2").wait_for()
    hits, above = int(((scores > 2) & (signs == 1)).sum()), int(((scores > 2) & (signs != 0)).sum())
    assert f"({hits:,} of {above:,} above it" in page.inner_text("#point")
    kinds = page.locator(".tile").evaluate_all("tiles => tiles.map(tile => tile.className)")
    for number, kind in zip(shown(page), kinds, strict=True):
        right = (scores[number] > 2) == (signs[number] == 1)
        expected = "ignored" if signs[number] == 0 else "right" if right else "wrong"
        assert kind == f"tile {expected}"
    page.keyboard.press("ArrowLeft")  # moves the slider, not the page
    assert float(page.input_value("#threshold")) < 2
    page.wait_for_url(re.compile("threshold=1"))
    assert page.url != start and "class=aeroplane" in page.url


def test_pictures_load_and_open_large(page):
    first = page.locator(".tile img").first
    first.evaluate("image => image.decode()")
    assert first.evaluate("image => image.naturalWidth") == 256
    with page.expect_navigation():
        first.click()
    assert page.url.endswith("/large")


def test_a_phone_shows_everything_without_scrolling_sideways(chromium, address, stored):
    small = {"width": 360, "height": 740}
    page = chromium.new_page(viewport=small, device_scale_factor=2, has_touch=True)
    page.goto(f"{address}?class=dog")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for name in ("Top 50", "Bottom 50", "Forward"):
        box = page.get_by_role("link", name=name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["height"] >= 24
    turn(page, page.get_by_role("link", name="Forward").tap)
    check_order(page, stored, "dog", "top", 50)
    page.close()


def test_controls_have_names_and_a_visible_focus(page):
    for control in page.locator("select, input:not([type=hidden])").all():
        assert control.evaluate("field => field.labels.length") == 1
    assert page.locator("h1").count() == 1
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    style = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(style) == "solid"
    missing = "images => images.filter(image => !image.alt).length"
    assert page.locator("img").evaluate_all(missing) == 0


def test_works_without_script(chromium, address):
    page = chromium.new_page(java_script_enabled=False)
    page.goto(address)
    page.select_option("#class", "dog")
    page.get_by_role("button", name="Show").click()
    page.get_by_role("link", name="Bottom 50").click()
    page.get_by_role("link", name="Forward").click()
    assert "dog: lowest scores first, images 51 to 100 of 130" in page.inner_text("h2")
    page.close()


def test_the_export_opens_from_a_file(chromium, study, stored, root, tmp_path):
    first = browse.export(browse_page.Shown(load(study), root), tmp_path / "top50")
    page = chromium.new_page()
    page.goto(first.as_uri())
    follow(page, "dog", exact=True)
    check_order(page, stored, "dog", "top", 0)
    follow(page, "Bottom 50")
    check_order(page, stored, "dog", "bottom", 0)
    image = page.locator(".tile img").first
    image.evaluate("image => image.decode()")
    assert image.evaluate("image => image.naturalWidth") == 256
    page.close()
