"""The page at / in a real browser, over a running service."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import httpx2
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from app.main import create_app
from app.masks.pictures import palette
from app.masks.rle import mask_to_rle, rle_to_mask
from app.method.backbone import Backbone
from app.settings import Settings
from tests.conftest import NewDatabase
from tests.served import served

EXAMPLES = Path(__file__).parents[2] / "examples"
KITTEN = EXAMPLES / "kitten.jpg"
CHELSEA = EXAMPLES / "chelsea.jpg"
AXE = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"
DEADLINE_S = 60.0
PREFIX = "/team/exemplar"

pytestmark = pytest.mark.timeout(300)  # a browser, whose every step may take DEADLINE_S


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(names)} is installed")
    # Without them, the graphics of a machine without a GPU are computed as WebGL's would be, for no test.
    fewer = ["--disable-gpu", "--disable-software-rasterizer"]
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=path, args=fewer) as running:
        yield running


@pytest.fixture
def api_keys() -> str:
    """The service's keys: none, unless a test is parametrised with some."""
    return ""


@pytest.fixture
def own_service() -> bool:
    """True for a test with a service of its own: every one but those that teach nothing."""
    return True


teaches_nothing = pytest.mark.parametrize("own_service", [False], ids=["shared"])


@contextmanager
def service(database: str, embedded: Backbone, folder: Path, api_keys: str = "") -> Iterator[str]:
    settings = Settings(redis_url=database, data_dir=folder, tune_steps=3, threads=1, api_keys=api_keys)
    with served(create_app(settings, loaded=[embedded])) as address:
        yield address


@pytest.fixture(scope="module")
def shared_url(
    new_database: NewDatabase, embedded: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    with new_database() as database, service(database, embedded, tmp_path_factory.mktemp("data")) as address:
        yield address


@pytest.fixture
def url(
    request: pytest.FixtureRequest, embedded: Backbone, tmp_path: Path, own_service: bool, api_keys: str
) -> Iterator[str]:
    if own_service:
        with service(request.getfixturevalue("database"), embedded, tmp_path, api_keys) as address:
            yield address
    else:
        address = request.getfixturevalue("shared_url")
        yield address
        left = [httpx2.get(f"{address}/{path}").json() for path in ("categories", "jobs")]
        assert left == [[], []]  # nothing for the next test to find


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The page, opened; nothing may have gone wrong in its scripts at the end."""
    with browser.new_context(base_url=url, viewport={"width": 1100, "height": 1000}) as context:
        context.set_default_timeout(1000 * DEADLINE_S)
        expect.set_options(timeout=1000 * DEADLINE_S)
        opened = context.new_page()
        faults: list[str] = []
        opened.on("pageerror", lambda error: faults.append(str(error)))
        opened.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        opened.goto("/")
        yield opened
        # The browser itself tells of refused calls.
        assert [fault for fault in faults if not fault.startswith("Failed to load resource")] == []


class Canvas:
    """The canvas that one paints on; points are pixels of the upright photo."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.element = page.locator("#paper .marks")
        expect(self.element).to_be_visible()
        self.element.scroll_into_view_if_needed()
        image = page.locator("#paper .original")
        self.width, self.height = image.evaluate("image => [image.naturalWidth, image.naturalHeight]")
        box = self.element.bounding_box()
        assert box is not None
        self.left, self.top, self.scale = box["x"], box["y"], box["width"] / self.width
        assert box["height"] == pytest.approx(self.height * self.scale, abs=1)

    def draw(self, tool: str, *points: tuple[float, float]) -> None:
        self.page.get_by_label(tool, exact=True).check(force=True)  # what is seen of it is its label
        on_screen = [(self.left + x * self.scale, self.top + y * self.scale) for x, y in points]
        self.page.mouse.move(*on_screen[0])
        self.page.mouse.down()
        for x, y in on_screen[1:]:
            self.page.mouse.move(x, y, steps=5)
        self.page.mouse.up()


def choose(page: Page, photo: object = KITTEN) -> Canvas:
    page.get_by_label("Photo, chosen or dropped here", exact=True).set_input_files(photo)
    return Canvas(page)


def teach(page: Page, name: str = "cat") -> None:
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_role("button", name="Teach").click()


def taught(page: Page, name: str = "cat") -> None:
    teach(page, name)
    expect(page.locator("#teach-status")).to_contain_text(f"“{name}” is taught. It marks")
    expect(page.locator("#teach-go")).to_be_enabled()


def mounted(app: FastAPI) -> ASGIApp:
    """In another application, which tells it the prefix."""
    return Starlette(routes=[Mount(PREFIX, app)], lifespan=app.router.lifespan_context)


def behind_a_proxy(app: FastAPI) -> ASGIApp:
    """A proxy takes the prefix off, and says nothing of it."""

    async def proxied(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path, raw = scope["path"].removeprefix(PREFIX), scope["raw_path"].removeprefix(PREFIX.encode())
            scope = {**scope, "path": path, "raw_path": raw}
        await app(scope, receive, send)

    return proxied


@pytest.mark.parametrize("under", [mounted, behind_a_proxy])
def test_under_a_prefix_it_calls_what_is_under_the_prefix(
    browser: Browser, database: str, embedded: Backbone, tmp_path: Path, under: Callable[[FastAPI], ASGIApp]
) -> None:
    app = create_app(Settings(redis_url=database, data_dir=tmp_path, tune_steps=3, threads=1), loaded=[embedded])
    with served(under(app)) as url, browser.new_context(base_url=url) as context:
        context.set_default_timeout(1000 * DEADLINE_S)
        expect.set_options(timeout=1000 * DEADLINE_S)
        page = context.new_page()
        failed: list[str] = []
        page.on("response", lambda answer: failed.append(f"{answer.status} {answer.url}") if not answer.ok else None)
        page.goto(f"{PREFIX}/")
        page.get_by_role("button", name="Try").click()
        expect(page.locator("#results figcaption")).to_have_count(2)
        expect(page.locator("#taught")).to_contain_text("cat")
        assert page.get_by_role("link", name="All calls").get_attribute("href") == "docs"
        files = {"image": {"name": "kitten.jpg", "mimeType": "image/jpeg", "buffer": KITTEN.read_bytes()}}
        page.request.post(f"{PREFIX}/categories/kitten/example", multipart=files | {"box": "[100, 100, 200, 200]"})
        listed = page.evaluate(
            """async (prefix) => {
                 const { allOf } = await import(`${prefix}/web/service.js`);
                 return (await allOf("categories?limit=1")).map(({ name }) => name);
               }""",
            PREFIX,
        )
        assert sorted(listed) == ["cat", "kitten"]
        assert failed == []


def stored_mask(page: Page, name: str = "cat") -> np.ndarray:
    (example,) = page.request.get(f"/categories/{name}/examples").json()
    body = page.request.get(f"/categories/{name}/examples/{example['id']}/mask").body()
    with Image.open(io.BytesIO(body)) as mask:
        return np.asarray(mask) > 0


def segmented(page: Page, names: str) -> dict:
    """Segment a photo into what is taught and these names, and the answer."""
    page.get_by_label("Photos, chosen or dropped here").set_input_files(CHELSEA)
    page.get_by_label("Other names").fill(names)
    with page.expect_response(lambda answer: answer.url.endswith("/segment")) as answer:
        page.get_by_role("button", name="Segment").click()
    expect(page.locator("#segment-go")).to_be_enabled()
    return answer.value.json()


def alphas(canvas: Locator) -> np.ndarray:
    """The opacity of every pixel, from 0 to 255."""
    # As one text: Playwright takes seconds for a list of as many numbers.
    text = canvas.evaluate(
        """canvas => {
             const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
             const alphas = Uint8Array.from({ length: data.length / 4 }, (_, at) => data[4 * at + 3]);
             let text = "";
             for (let at = 0; at < alphas.length; at += 8192) {
               text += String.fromCharCode(...alphas.subarray(at, at + 8192));
             }
             return btoa(text);
           }"""
    )
    return np.frombuffer(base64.b64decode(text), np.uint8)


def test_paint_teach_and_segment_another_photo(page: Page) -> None:
    expect(page.locator("#none-taught")).to_be_visible()
    canvas = choose(page)
    canvas.draw("Brush", (200, 200), (280, 240), (420, 260))
    page.get_by_label("Other words for it").fill("kitten, tabby")
    taught(page)
    expect(page.locator("#taught li")).to_contain_text(re.compile(r"cat It marks \d+ % of your example right\."))
    assert page.request.get("/categories/cat").json()["prompts"] == ["cat", "kitten", "tabby"]
    mask = stored_mask(page)
    assert mask.shape == (480, 640)
    assert mask[200, 200]
    assert mask[240, 280]
    assert not mask[:100].any()
    # The stroke is as wide as the slider says: 8 % of 640 pixels.
    assert np.count_nonzero(mask[:, 350]) == pytest.approx(51, abs=3)

    answer = segmented(page, names="sofa")
    assert [found["name"] for found in answer["categories"]] == ["cat", "sofa"]
    legend = page.locator(".legend li")
    cat, sofa = answer["categories"]
    expect(legend).to_have_count(2)
    expect(legend.nth(1)).to_contain_text("by its name")
    expect(legend.nth(0)).to_contain_text("as taught" if cat["adapted"] else "by its name")
    expect(legend.nth(0)).to_contain_text(f"{100 * cat['area'] / (451 * 300):.1f} %")
    drawn = page.locator("#results canvas")
    assert np.count_nonzero(alphas(drawn)) == cat["area"] + sofa["area"] > 0


def test_a_category_that_was_marked_in_error_is_shown_as_absent(page: Page) -> None:
    choose(page).draw("Brush", (200, 200), (280, 240), (420, 260))
    taught(page)
    segmented(page, names="sofa")
    cat, sofa = page.locator(".legend li").all()
    expect(sofa.get_by_text("Not in this photo")).to_have_count(0)
    cat.get_by_role("button", name="cat is not in this photo").click()
    expect(cat).to_contain_text("Learnt: segment again.")
    expect(page.locator("#taught li")).to_contain_text("of your examples right")
    shown, absent = page.request.get("/categories/cat/examples").json()
    assert (shown["absent"], absent["absent"]) == (False, True)
    assert absent["sha256"] == hashlib.sha256(CHELSEA.read_bytes()).hexdigest()

    segment_many(page, CHELSEA, KITTEN)
    page.get_by_role("button", name="Open kitten.jpg").click()
    page.route("**/cat/example", lambda route: route.fulfill(status=409, json={"detail": "It is full."}))
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="cat is not in this photo").click()
    for key, name in (("ArrowLeft", "chelsea.jpg"), ("ArrowRight", "kitten.jpg")):
        page.keyboard.press(key)
        expect(dialog.locator("figcaption")).to_have_text(name)
    expect(dialog.get_by_text("It is full.")).to_be_visible()


def end_jobs(page: Page, *ends: tuple[str, str]) -> None:
    """Let the next jobs that the page follows end in these states, for these reasons."""
    left = list(ends)

    def end(route: Route) -> None:
        if not left:
            return route.continue_()
        status, error = left.pop(0)
        job = json.dumps({"status": status, "error": error, "progress": 1})
        return route.fulfill(content_type="text/event-stream", body=f"data: {job}\n\n")

    page.route("**/jobs/*/events", end)


def test_an_example_whose_job_gave_way_is_learnt_only_if_a_later_job_learns_it(page: Page) -> None:
    rolled_back, newer = ("superseded", "An older version was put in use."), ("superseded", "A newer example came in.")
    end_jobs(page, rolled_back, newer, newer, rolled_back)
    choose(page).draw("Box", (100, 100), (500, 300))
    teach(page)
    expect(page.locator("#teach-status")).to_have_text("An older version was put in use. This example is not learnt.")

    def with_a_newer_job(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | {"job": "newer"})

    page.route("**/categories/cat", with_a_newer_job)
    expect(page.locator("#teach-go")).to_be_enabled()
    teach(page)
    expect(page.locator("#teach-status")).to_have_text("A newer example came in. All examples are being learnt.")
    expect(page.locator("#names label")).to_have_count(1)
    segmented(page, names="sofa")
    absent = page.get_by_role("button", name="cat is not in this photo")
    absent.click()
    expect(page.locator("#results").get_by_role("alert")).to_have_text(
        "Nothing was learnt: An older version was put in use."
    )
    expect(absent).to_be_enabled()


@teaches_nothing
def test_a_legend_entry_shows_its_mask_alone(page: Page) -> None:
    answer = segmented(page, names="cat, sofa, dog")
    found = next(index for index, category in enumerate(answer["categories"]) if category["area"])
    canvas = page.locator("#results canvas")
    before = alphas(canvas)
    entry = page.locator(".legend button").nth(found)
    mask = rle_to_mask(answer["categories"][found]["segmentation"]).ravel()
    for show, leave in ((entry.focus, entry.blur), (entry.hover, lambda: page.mouse.move(1, 1))):
        show()
        shown = alphas(canvas)
        assert shown[mask].min() > before[mask].min()
        assert (shown[~mask] <= 25).all()
        leave()
        assert (alphas(canvas) == before).all()


def test_a_box_on_a_photo_that_was_turned_is_where_it_was_drawn(page: Page) -> None:
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # upright after a quarter turn
    with Image.open(KITTEN) as kitten:
        kitten.save(turned, "JPEG", exif=exif)
    canvas = choose(page, {"name": "turned.jpg", "mimeType": "image/jpeg", "buffer": turned.getvalue()})
    assert (canvas.width, canvas.height) == (480, 640)
    canvas.draw("Box", (60, 100), (300, 540))
    page.evaluate(
        """() => {
             const plain = fetch;
             window.fetch = (path, options) => {
               if (path.endsWith("/example")) window.sent = [...options.body.keys()];
               return plain(path, options);
             };
           }"""
    )
    taught(page)
    assert page.evaluate("window.sent") == ["image", "box"]
    rows, columns = np.nonzero(stored_mask(page))
    edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert edges == pytest.approx([60, 100, 300, 540], abs=2)


def test_eraser_undo_and_clear(page: Page) -> None:
    canvas = choose(page)
    undo, clear = page.get_by_role("button", name="Undo"), page.get_by_role("button", name="Clear")
    expect(undo).to_be_disabled()
    canvas.draw("Brush", (50, 50), (90, 50))
    clear.click()
    canvas.draw("Box", (100, 100), (500, 300))
    canvas.draw("Box", (400, 400), (401, 401))  # a click is no box
    canvas.draw("Eraser", (300, 90), (300, 310))
    canvas.draw("Brush", (560, 400), (600, 400))
    undo.click()
    taught(page)
    mask = stored_mask(page)
    assert mask[200, 120]
    assert mask[200, 480]
    assert not mask[100:300, 300].any()
    assert not mask[:90].any()
    assert not mask[310:].any()


def click(canvas: Canvas, *points: tuple[float, float]) -> None:
    for point in points:
        canvas.draw("Polygon", point)


def test_polygon_undo_and_redo(page: Page) -> None:
    canvas = choose(page)
    click(canvas, (100, 100), (300, 100), (500, 400), (300, 300), (100, 300))
    page.keyboard.press("Control+z")  # the last corner
    click(canvas, (100, 300), (101, 101))
    canvas.draw("Brush", (560, 60), (600, 60))
    undo, redo = page.get_by_role("button", name="Undo"), page.get_by_role("button", name="Redo")
    for press in (undo.click, undo.click, redo.click, lambda: page.keyboard.press("Control+Shift+z")):
        press()
    page.keyboard.press("Control+z")
    expect(redo).to_be_enabled()
    click(canvas, (10, 400), (60, 400), (60, 450))
    page.keyboard.press("Enter")
    expect(redo).to_be_disabled()  # what was undone is gone
    click(canvas, (300, 20), (400, 20), (400, 60))
    page.keyboard.press("Escape")
    taught(page)
    mask = stored_mask(page)
    assert mask[110, 110]
    assert mask[200, 200]
    assert not mask[350, 200]
    assert mask[420, 55]
    assert not mask[:99].any()


def test_zoom_and_pan_keep_what_is_drawn_in_its_place(page: Page) -> None:
    canvas = choose(page)
    left, top = canvas.left, canvas.top
    page.mouse.move(left + 200 * canvas.scale, top + 200 * canvas.scale)
    for _ in range(4):
        page.mouse.wheel(0, -100)
    expect(page.locator(".stage")).to_have_attribute("style", re.compile(r"scale\(2\.44"))
    zoomed = Canvas(page)
    assert zoomed.scale == pytest.approx(1.25**4 * canvas.scale, rel=0.01)
    # The place under the wheel; a browser rounds the wheel's place to whole pixels.
    assert zoomed.left + 200 * zoomed.scale == pytest.approx(left + 200 * canvas.scale, abs=2)
    zoomed.draw("Box", (190, 180), (230, 220))
    page.keyboard.down("Space")
    page.mouse.move(left + 200, top + 150)
    page.mouse.down()
    page.mouse.move(left + 170, top + 130, steps=3)
    page.mouse.up()
    page.keyboard.up("Space")
    moved = Canvas(page)
    assert (moved.left - zoomed.left, moved.top - zoomed.top) == pytest.approx((-30, -20), abs=1)
    moved.draw("Brush", (260, 240), (280, 240))
    page.get_by_role("button", name="Whole photo").click()
    assert Canvas(page).scale == canvas.scale
    taught(page)
    mask = stored_mask(page)
    assert mask[185:215, 195:225].all()
    assert mask[240, 260:280].all()
    assert not mask[:175].any()
    assert not mask[280:].any()


@teaches_nothing
def test_two_fingers_zoom_and_draw_nothing(page: Page) -> None:
    canvas = choose(page)
    (x, y), touch = (canvas.left + 200, canvas.top + 100), page.context.new_cdp_session(page)
    for kind, fingers in (
        ("touchStart", [(x, y)]),
        ("touchStart", [(x, y), (x + 60, y)]),
        ("touchMove", [(x - 30, y), (x + 90, y)]),
        ("touchEnd", []),
    ):
        points = [{"x": at[0], "y": at[1], "id": id} for id, at in enumerate(fingers)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    expect(page.locator(".stage")).to_have_attribute("style", re.compile(r"scale\(2"))
    assert not alphas(canvas.element).any()
    expect(page.get_by_role("button", name="Undo")).to_be_disabled()


def reported_overlap(page: Page, overlap: float) -> None:
    """Let the service report this overlap of the examples."""

    def report(route: Route) -> None:
        answer = route.fetch()
        category = answer.json()
        category["adapter"] |= {"example_iou": overlap, "zero_shot_example_iou": overlap / 2, "kept": "adapter"}
        route.fulfill(response=answer, json=category)

    page.route("**/categories/cat", report)


def test_a_good_example_is_said_to_be_good(page: Page) -> None:
    reported_overlap(page, 0.93)
    choose(page).draw("Box", (100, 100), (500, 300))
    taught(page)
    expect(page.locator("#teach-status")).to_have_text("“cat” is taught. It marks 93 % of your example right.")
    expect(page.locator("#teach-warnings li")).to_have_count(0)
    expect(page.locator(".seen")).to_be_hidden()


def test_a_loosely_marked_example_brings_advice_and_what_is_seen_in_it(page: Page) -> None:
    reported_overlap(page, 0.45)
    choose(page).draw("Box", (100, 100), (500, 300))
    taught(page)
    said = page.locator("#teach-status")
    expect(said).to_contain_text("It marks 45 % of your example right. Mark more exactly")
    seen = page.locator(".seen")
    expect(seen).to_be_visible()
    assert alphas(seen).any()
    choose(page, CHELSEA)
    expect(seen).to_be_hidden()
    expect(said).to_have_text("")


def test_doubts_about_an_example_are_said_in_plain_words(page: Page) -> None:
    canvas = choose(page)
    canvas.draw("Box", (5, 5), (635, 475))
    taught(page)
    expect(page.locator("#teach-warnings")).to_contain_text("Almost the whole photo is marked.")
    taught(page)
    expect(page.locator("#teach-warnings")).to_contain_text("It knows this example already")
    said = page.evaluate(
        """async () => {
             const { doubts } = await import("/web/say.js");
             const codes = ["mask-looks-inverted", "mask-very-small", "mask-covers-most", "duplicate-example",
                            "contradicts-example", "example-not-learned", "other"];
             return doubts(codes.map((code) => ({ code, detail: "its own" })));
           }"""
    )
    assert len(set(said)) == 7
    assert said[-1] == "its own"
    assert "its own" not in said[:-1]


def test_no_jargon_is_on_the_page(page: Page) -> None:
    choose(page).draw("Box", (100, 100), (500, 300))
    taught(page)
    segmented(page, names="sofa")
    text = page.locator("body").inner_text()
    assert not re.search(r"\bIoU|presence|adapter|backbone|non-zero|tuned|zero.shot|\w_\w", text)


def test_painting_with_the_keyboard(page: Page) -> None:
    canvas = choose(page)
    page.get_by_label("Brush", exact=True).check(force=True)
    canvas.element.focus()
    for key in ("ArrowLeft", "Space", "ArrowRight", "ArrowRight", "Space", "ArrowDown", "Space", "Space", "Control+z"):
        page.keyboard.press(key)
    for key in ("ArrowDown", "Space", "ArrowDown", "Control+z"):  # of a stroke that is being drawn
        page.keyboard.press(key)
    taught(page)
    mask = stored_mask(page)
    assert mask[240, 310:330].all()
    assert not mask[275:].any()


def proposed(page: Page, act: Callable[[], None]) -> dict:
    """What the service proposes for a click."""
    with page.expect_response("**/segment/clicks") as answer:
        act()
    expect(page.locator("#paper")).not_to_have_class(re.compile("looking"))
    return answer.value.json()


def test_clicks_find_the_object_and_the_brush_corrects_it(page: Page) -> None:
    canvas = choose(page)
    undo, redo = page.get_by_role("button", name="Undo"), page.get_by_role("button", name="Redo")
    first = proposed(page, lambda: canvas.draw("Click", (540, 240)))
    mask = rle_to_mask(first["segmentation"])
    share = 100 * first["area"] / (640 * 480)
    expect(page.locator("#teach-status")).to_have_text(f"Found: {share:.1f} % of the photo.")
    assert mask[240, 540]
    assert np.count_nonzero(alphas(canvas.element)) >= first["area"]
    rows, columns = np.nonzero(mask)
    last = int(rows.argmax())
    beside = (float(columns[last]), float(rows[last]))
    page.keyboard.down("Shift")
    second = proposed(page, lambda: canvas.draw("Click", beside))
    page.keyboard.up("Shift")
    assert not rle_to_mask(second["segmentation"])[int(beside[1]), int(beside[0])]
    undo.click()
    page.get_by_label("Clicks take away").check()
    assert proposed(page, lambda: canvas.draw("Click", beside))["area"] == second["area"]
    undo.click()
    redo.click()
    undo.click()
    canvas.draw("Brush", (20, 20), (60, 20))
    taught(page)
    stored = stored_mask(page)
    assert stored[20, 40]
    assert (stored[60:] == mask[60:]).mean() > 0.999  # a canvas softens edges


@teaches_nothing
def test_a_click_on_a_large_photo_is_looked_at_with_white_for_what_is_transparent(page: Page) -> None:
    """As the service reads the photo itself. It is sent smaller than it is."""
    drawing = io.BytesIO()
    with Image.open(KITTEN) as kitten:
        large = kitten.convert("RGBA").resize((1800, 1350))
    large.paste((0, 0, 0, 0), (0, 0, 300, 300))
    large.save(drawing, "PNG", compress_level=1)
    canvas = choose(page, {"name": "drawing.png", "mimeType": "image/png", "buffer": drawing.getvalue()})
    page.evaluate(
        """() => {
             const plain = fetch;
             window.fetch = (path, options) => {
               if (path === "segment/clicks") window.sent = options.body.get("image");
               return plain(path, options);
             };
           }"""
    )
    proposed(page, lambda: canvas.draw("Click", (1500, 675)))
    width, pixel = page.evaluate(
        """async () => {
             const bitmap = await createImageBitmap(sent);
             const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
             context.drawImage(bitmap, 0, 0);
             return [bitmap.width, [...context.getImageData(100, 100, 1, 1).data]];
           }"""
    )
    assert width == 1600
    assert min(pixel) >= 250


@teaches_nothing
def test_the_keyboard_clicks_too(page: Page) -> None:
    canvas = choose(page)
    page.keyboard.press("Control+z")
    canvas.element.focus()
    found = proposed(page, lambda: page.keyboard.press("Space"))
    assert found["area"]
    page.keyboard.press("Control+z")
    assert not alphas(canvas.element).any()


def test_a_click_that_is_refused_is_told_and_the_brush_works(page: Page) -> None:
    canvas = choose(page)
    told = page.locator("#teach-problem")
    page.get_by_label("Clicks take away").check()
    canvas.draw("Click", (540, 240))
    expect(told).to_contain_text("Click on the object first")
    page.get_by_label("Clicks take away").uncheck()
    refusal = {"title": "Overloaded", "detail": "64 requests are waiting: try again in a second."}
    held: list[Route] = []
    page.route("**/segment/clicks", lambda route: held.append(route))
    canvas.draw("Click", (540, 240))
    expect(page.locator("#teach-status")).to_have_text("Looking …")
    held[0].fulfill(status=503, json=refusal)
    expect(told).to_have_text(refusal["detail"])
    expect(page.locator("#teach-status")).to_have_text("")
    expect(page.get_by_role("button", name="Undo")).to_be_disabled()
    canvas.draw("Brush", (200, 200), (280, 240))
    taught(page)
    assert stored_mask(page)[200, 200]


def test_a_mask_file_instead(page: Page) -> None:
    choose(page)
    page.get_by_label("Or a mask file").set_input_files(EXAMPLES / "kitten_mask.png")
    expect(page.locator("#paper .marks")).to_be_hidden()
    expect(page.locator(".chosen-mask")).to_be_visible()
    taught(page)
    with Image.open(EXAMPLES / "kitten_mask.png") as mask:
        assert (stored_mask(page) == (np.asarray(mask) > 0)).all()
    page.get_by_role("button", name="Paint instead").click()
    expect(page.locator("#paper .marks")).to_be_visible()


def pass_pauses(page: Page, *seconds: int) -> None:
    """Let the page's clock, which must be installed, pass the pauses before it asks the service again."""
    for pause_s in seconds:
        expect(page.locator("#segment-status")).to_contain_text(f"trying again in {pause_s} s")
        page.clock.fast_forward(1000 * pause_s)


def drop(page: Page, place: str, *paths: Path) -> None:
    files = [[path.name, base64.b64encode(path.read_bytes()).decode()] for path in paths]
    dropped = page.evaluate_handle(
        """(files) => {
             const transfer = new DataTransfer();
             for (const [name, text] of files) {
               const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
               transfer.items.add(new File([bytes], name));
             }
             return transfer;
           }""",
        files,
    )
    page.dispatch_event(place, "drop", {"dataTransfer": dropped})


@teaches_nothing
def test_a_mask_file_is_dropped_on_its_own_field_and_text_on_a_text_field(page: Page) -> None:
    choose(page).draw("Box", (100, 100), (500, 300))
    drop(page, "#teach-mask", EXAMPLES / "kitten_mask.png")
    expect(page.locator(".chosen-mask")).to_be_visible()
    chosen = page.locator("#teach [type=file]").evaluate_all("fields => fields.map(({ files }) => files[0].name)")
    assert chosen == ["kitten.jpg", "kitten_mask.png"]
    page.get_by_role("button", name="Paint instead").click()
    expect(page.get_by_role("button", name="Undo")).to_be_enabled()
    kept = page.locator("#name").evaluate(
        """(field) => ["dragover", "drop"].map((kind) => {
             const dataTransfer = new DataTransfer();
             dataTransfer.setData("text/plain", "cat");
             return field.dispatchEvent(new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }));
           })"""
    )
    assert kept == [True, True]  # the browser puts the text into the field


@teaches_nothing
def test_photos_are_dropped_on_a_form(page: Page) -> None:
    for form in ("#teach", "#segment"):
        drop(page, form, KITTEN, CHELSEA)
    assert Canvas(page).width == 640  # one photo is marked: the first
    page.get_by_label("Other names").fill("cat")
    page.get_by_role("button", name="Segment").click()
    expect(page.locator("#segment-go")).to_be_enabled()
    assert page.locator("#results figcaption").all_inner_texts() == ["kitten.jpg", "chelsea.jpg"]


@teaches_nothing
def test_what_is_wrong_is_said_beside_the_form(page: Page) -> None:
    choose(page)
    teach(page)
    expect(page.locator("#teach-problem")).to_have_text("Mark the object on the photo, or choose a mask file.")
    teach(page, "..")
    expect(page.locator("#teach-problem")).to_contain_text("Type a name")
    page.get_by_label("Name", exact=True).fill("cat")
    no_photo = {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": b"no photo"}
    page.get_by_label("Photo, chosen or dropped here", exact=True).set_input_files(no_photo)
    expect(page.locator("#teach-problem")).to_contain_text("can't show this file")
    page.get_by_label("Or a mask file").set_input_files(EXAMPLES / "kitten_mask.png")
    for button, place in (("Teach", "#teach-problem"), ("Segment", "#results .problem")):
        page.get_by_label("Photos, chosen or dropped here").set_input_files(no_photo)
        with page.expect_response(lambda answer: answer.status == 422) as refused:
            page.get_by_role("button", name=button).click()
        expect(page.locator(place)).to_have_text(refused.value.json()["detail"])
        expect(page.get_by_role("button", name=button)).to_be_enabled()
    page.route("**/segment", lambda route: route.abort())
    page.clock.install()
    page.get_by_role("button", name="Segment").click()
    pass_pauses(page, 1, 2, 4, 8, 16)
    expect(page.locator("#results .problem")).to_contain_text("The service does not answer")
    page.unroute("**/segment")


@teaches_nothing
def test_a_photo_that_is_gone_costs_no_other(page: Page, tmp_path: Path) -> None:
    photos = [Path(shutil.copy(CHELSEA, tmp_path / name)) for name in ("first.jpg", "second.jpg")]
    page.get_by_label("Photos, chosen or dropped here").set_input_files(photos)
    photos[0].unlink()
    page.get_by_label("Other names").fill("cat")
    page.get_by_role("button", name="Segment").click()
    thumbnails = page.locator(".thumbnail")
    expect(thumbnails.nth(1)).to_contain_text("cat")
    expect(thumbnails.nth(0)).to_contain_text("first.jpg can't be read any more: choose it again.")


def test_a_category_is_deleted_when_that_is_confirmed(page: Page) -> None:
    choose(page).draw("Box", (100, 100), (500, 300))
    taught(page, "<b>cat<b> & co")
    row = page.locator("#taught li")
    expect(row).to_contain_text("<b>cat<b> & co")  # a name is text
    other = page.locator("#taught li", has_text="dog")
    choose(page).draw("Box", (100, 100), (500, 300))
    taught(page, "dog")
    assert page.request.delete("/categories/dog").ok  # by somebody else
    page.once("dialog", lambda dialog: dialog.accept())
    other.get_by_role("button").click()
    expect(other).to_have_count(0)
    for answer, left in (("dismiss", 1), ("accept", 0)):
        page.once("dialog", lambda dialog, answer=answer: getattr(dialog, answer)())
        row.get_by_role("button").click()
        expect(row).to_have_count(left)


def test_the_sample_photos_are_tried_with_one_click(page: Page) -> None:
    page.get_by_role("button", name="Try it with these photos").click()
    expect(page.locator("#results figcaption")).to_have_text(["sample-chelsea.jpg", "sample-dog.jpg"])
    expect(page.locator("#shown-categories strong")).to_have_text(["cat", "dog"])
    (example,) = page.request.get("/categories/cat/examples").json()
    assert (example["width"], example["height"]) == (480, 360)
    assert example["area"] == pytest.approx(0.19 * 480 * 360, rel=0.01)
    page.reload()
    expect(page.locator("#taught li")).to_have_count(1)
    expect(page.get_by_role("button", name="Try it")).to_be_hidden()


def test_the_sample_photos_wait_for_a_run_and_are_not_segmented_if_teaching_failed(page: Page) -> None:
    held: list[Route] = []
    page.route("**/segment", lambda route: held.append(route))
    page.get_by_label("Photos, chosen or dropped here").set_input_files(CHELSEA)
    page.get_by_label("Other names").fill("cat")
    with page.expect_request("**/segment"):
        page.get_by_role("button", name="Segment").click()
    sample = page.get_by_role("button", name="Try it with these photos")
    sample.click()
    expect(page.locator("#try-problem")).to_contain_text("Wait until")
    held[0].continue_()
    expect(page.locator("#results figcaption")).to_have_text("chelsea.jpg")
    refuse(page, "**/example", 1, status=503)
    sample.click()
    expect(page.locator("#teach-problem")).to_have_text("Not now.")
    expect(sample).to_be_enabled()
    expect(page.locator("#results figcaption")).to_have_text("chelsea.jpg")
    assert len(held) == 1


def test_a_category_shows_its_examples_and_an_older_version_is_used_again(page: Page) -> None:
    with KITTEN.open("rb") as kitten, (EXAMPLES / "kitten_mask.png").open("rb") as mask:
        shown = {"image": kitten.read(), "mask": mask.read()}
    files = {field: {"name": field, "mimeType": "image/*", "buffer": raw} for field, raw in shown.items()}
    absent = {"name": "dog", "mimeType": "image/jpeg", "buffer": (EXAMPLES / "dog.jpg").read_bytes()}
    for form in (files, {"image": absent, "absent": "true"}):
        job = page.request.post("/categories/cat/example", multipart=form).json()["job"]
        page.request.get(f"/jobs/{job['id']}/events").body()
    page.reload()
    page.locator("#taught summary").click()
    examples, versions = page.locator(".examples li"), page.locator(".versions li")
    expect(examples).to_have_count(2)
    expect(page.locator(".examples").get_by_text("not in this photo")).to_have_count(2)
    expect(examples.nth(0).get_by_text("not in this photo")).to_be_hidden()
    expect(examples.nth(1).get_by_text("not in this photo")).to_be_visible()
    for image in page.locator(".examples img").all():
        expect(image).to_have_js_property("naturalWidth", 640)
    expect(versions).to_have_count(2)
    expect(versions.nth(0)).to_contain_text("in use")
    page.get_by_role("button", name="Use version 1").click()
    expect(versions.nth(1)).to_contain_text("in use")
    assert page.request.get("/categories/cat").json()["adapter"]["version"] == 1

    page.once("dialog", lambda dialog: dialog.accept())
    examples.nth(1).get_by_role("button", name="Delete this example").click()
    expect(examples).to_have_count(1)
    expect(versions).to_have_count(3)
    assert len(page.request.get("/categories/cat/examples").json()) == 1


def test_the_list_is_renewed_while_it_is_used(page: Page) -> None:
    choose(page).draw("Box", (100, 100), (500, 300))
    taught(page)
    page.locator("#taught summary").click()
    example = page.get_by_role("button", name="Delete this example")
    example.focus()
    held: list[Route] = []
    renew = "async () => { window.renewed = (await import('/web/taught.js')).showTaught(); }"
    page.route("**/categories?limit=1000", lambda route: route.continue_() if held else held.append(route))
    with page.expect_request("**/categories?limit=1000"):
        page.evaluate(renew)
    first = page.evaluate_handle("() => ({ renewed })")
    dog = {"name": "dog.jpg", "mimeType": "image/jpeg", "buffer": (EXAMPLES / "dog.jpg").read_bytes()}
    page.request.post("/categories/dog/example", multipart={"image": dog, "box": "[100, 100, 200, 200]"})
    with page.expect_response("**/versions"):  # of the open row, after those of the list
        page.evaluate(renew)
    held[0].fulfill(json=[])  # what was asked before
    first.evaluate("({ renewed }) => renewed")
    expect(page.locator("#taught > li")).to_have_count(2)
    expect(example).to_be_focused()

    delete = page.get_by_role("button", name="Delete cat")
    delete.focus()
    with page.expect_response("**/versions"):
        page.evaluate(renew)
    expect(delete).to_be_focused()
    page.once("dialog", lambda dialog: dialog.accept())
    page.route("**/categories/cat", lambda route: held.append(route))
    delete.click()
    expect(delete).to_be_disabled()
    with page.expect_response("**/versions"):
        page.evaluate(renew)
    expect(delete).to_be_disabled()
    held[1].continue_()
    expect(delete).to_have_count(0)


@teaches_nothing
def test_downloads(page: Page) -> None:
    answer = segmented(page, names="cat, sofa")
    with page.expect_download() as download:
        page.get_by_role("button", name="Details (JSON)").click()
    assert download.value.suggested_filename == "chelsea.json"
    assert json.loads(download.value.path().read_text()) == answer
    with page.expect_download() as download:
        page.get_by_role("button", name="Masks (PNG)").click()
    assert download.value.suggested_filename == "chelsea.labels.png"
    with Image.open(download.value.path()) as labels:
        areas = [np.count_nonzero(np.asarray(labels) == index) for index in (1, 2)]
        assert areas == [found["area"] for found in answer["categories"]]


def segment_many(page: Page, *photos: Path, names: str = "cat, dog", pauses_s: Sequence[int] = ()) -> None:
    page.get_by_label("Photos, chosen or dropped here").set_input_files(photos)
    page.get_by_label("Other names").fill(names)
    page.get_by_role("button", name="Segment").click()
    pass_pauses(page, *pauses_s)
    expect(page.locator("#segment-go")).to_be_enabled()


def answers(page: Page, found: dict[str, set[str]]) -> None:
    """Let the service find these categories in the photo of each name, as its upper half."""
    halves = {}
    for name, categories in found.items():
        with Image.open(EXAMPLES / name) as photo:
            width, height = photo.size
        mask = np.arange(height * width).reshape(height, width) < height // 2 * width
        half = {"found": True, "area": int(mask.sum()), "segmentation": mask_to_rle(mask)}
        halves[name] = {"categories": sorted(categories), "half": half}
    page.evaluate(
        """(halves) => {
             const plain = fetch;
             window.fetch = async (path, options) => {
               const answer = await plain(path, options);
               if (path !== "segment") return answer;
               const answered = await answer.json();
               const { categories, half } = halves[options.body.get("image").name];
               for (const category of answered.categories) {
                 Object.assign(category, categories.includes(category.name) ? half : { found: false, area: 0 });
               }
               return Response.json(answered);
             };
           }""",
        halves,
    )


@teaches_nothing
def test_many_photos_are_a_gallery_that_opens_large_and_is_filtered(page: Page) -> None:
    answers(page, {"chelsea.jpg": {"cat"}, "dog.jpg": {"dog"}, "coffee.jpg": set()})
    segment_many(page, CHELSEA, EXAMPLES / "dog.jpg", EXAMPLES / "coffee.jpg")
    thumbnails = page.locator(".thumbnail:visible")
    expect(thumbnails).to_have_count(3)
    expect(thumbnails.nth(2)).to_contain_text("nothing found")
    rows = page.locator("#shown-categories li")
    expect(rows.nth(0)).to_contain_text("in 1 of 3")
    for listed, names in (("found", ["chelsea.jpg"]), ("missing", ["dog.jpg", "coffee.jpg"])):
        page.get_by_label("Photos listed for cat").select_option(listed)
        expect(thumbnails.locator("figcaption")).to_have_text(names)
    page.get_by_label("Photos listed for dog").select_option("found")
    expect(thumbnails.locator("figcaption")).to_have_text(["dog.jpg"])
    for name in ("cat", "dog"):
        page.get_by_label(f"Photos listed for {name}").select_option("all")

    page.get_by_role("button", name="Open chelsea.jpg").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator(".legend li")).to_have_count(2)
    dialog.locator(".legend button").first.focus()  # goes with its photo
    for key, name in (("ArrowRight", "dog.jpg"), ("ArrowLeft", "chelsea.jpg"), ("ArrowRight", "dog.jpg")):
        page.keyboard.press(key)
        expect(dialog.locator("figcaption")).to_have_text(name)
    dialog.get_by_role("button", name="Next").click()
    expect(dialog.get_by_role("button", name="Next")).to_be_disabled()
    expect(dialog.locator("figcaption")).to_have_text("coffee.jpg")
    page.keyboard.press("ArrowLeft")
    expect(dialog.locator("figcaption")).to_have_text("dog.jpg")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()


@teaches_nothing
def test_a_category_keeps_its_colour_and_can_be_hidden_and_faded(page: Page) -> None:
    answers(page, {"chelsea.jpg": {"cat"}})
    swatch = page.locator("#shown-categories li", has_text="cat").locator(".swatch")
    colours = []
    for names in ("dog, cat", "cat, sofa, dog"):
        segment_many(page, CHELSEA, names=names)
        colours.append(swatch.evaluate("swatch => getComputedStyle(swatch).backgroundColor"))
    assert colours == ["rgb({}, {}, {})".format(*palette(2)[1])] * 2
    canvas = page.locator("#results canvas")
    middle = 100 * 451 + 200
    assert alphas(canvas)[middle] == 128
    page.get_by_label("Opacity").fill("20")
    assert alphas(canvas)[middle] == 51
    page.locator("#shown-categories li", has_text="cat").get_by_role("checkbox").uncheck()
    assert not alphas(canvas).any()


@teaches_nothing
def test_heat_maps_are_asked_for_when_wanted(page: Page) -> None:
    segmented(page, names="cat")
    before = alphas(page.locator("#results canvas"))
    with page.expect_response(lambda answer: "heatmap" in answer.text()) as answered:
        page.get_by_label("Heat map").check()
    with Image.open(io.BytesIO(base64.b64decode(answered.value.json()["categories"][0]["heatmap"]))) as heat:
        expected = np.asarray(heat).ravel() / 2
    deadline = time.monotonic() + DEADLINE_S
    while np.array_equal(shown := alphas(page.locator("#results canvas")), before):
        assert time.monotonic() < deadline
        page.wait_for_timeout(50)
    assert np.abs(shown - expected).max() <= 2


@teaches_nothing
def test_segmenting_is_counted_and_can_be_cancelled(page: Page) -> None:
    held: list[Route] = []

    def hold_all_but_the_first(route: Route) -> None:
        if b'filename="chelsea.jpg"' in (route.request.post_data_buffer or b""):
            route.continue_()
        else:
            held.append(route)

    page.route("**/segment", hold_all_but_the_first)
    page.get_by_label("Photos, chosen or dropped here").set_input_files([CHELSEA, EXAMPLES / "dog.jpg", KITTEN])
    page.get_by_label("Other names").fill("cat")
    page.get_by_role("button", name="Segment").click()
    page.get_by_role("button", name="Open chelsea.jpg").click()
    following = page.get_by_role("dialog").get_by_role("button", name="Next")
    expect(following).to_be_disabled()
    expect(page.locator("#segment-status")).to_have_text("2 of 3")
    held[0].continue_()
    expect(following).to_be_enabled()
    page.keyboard.press("Escape")
    expect(page.locator("#segment-status")).to_have_text("3 of 3")
    page.locator("#segment").get_by_role("button", name="Cancel").click()
    expect(page.locator("#segment-status")).to_have_text("Cancelled: 2 of 3 photos are done.")
    expect(page.locator("#results figcaption")).to_have_text(["chelsea.jpg", "dog.jpg"])
    expect(page.locator("#segment-go")).to_be_enabled()
    page.unroute("**/segment")


@teaches_nothing
def test_all_results_are_one_coco_file(page: Page, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photo")
    segment_many(page, CHELSEA, broken, KITTEN, names="dog, cat")
    with page.expect_download() as download:
        page.get_by_role("button", name="COCO JSON").click()
    assert download.value.suggested_filename == "annotations.json"
    coco = json.loads(download.value.path().read_text())
    assert [image["file_name"] for image in coco["images"]] == ["chelsea.jpg", "kitten.jpg"]
    assert [(category["id"], category["name"]) for category in coco["categories"]] == [(1, "dog"), (2, "cat")]
    assert [annotation["id"] for annotation in coco["annotations"]] == [*range(1, len(coco["annotations"]) + 1)]
    assert coco["annotations"]
    sizes = {image["id"]: [image["height"], image["width"]] for image in coco["images"]}
    for annotation in coco["annotations"]:
        assert annotation["segmentation"]["size"] == sizes[annotation["image_id"]]
        assert np.count_nonzero(rle_to_mask(annotation["segmentation"])) == annotation["area"]

    segment_many(page, CHELSEA, names="cat")
    with page.expect_download() as download:
        page.get_by_role("button", name="COCO JSON").click()
    assert [each["id"] for each in json.loads(download.value.path().read_text())["categories"]] == [2]


@pytest.mark.parametrize("api_keys", [f"teach:{hashlib.sha256(b'open-sesame').hexdigest()}"])
def test_with_a_key_every_call_carries_it_and_the_job_is_asked_for(page: Page) -> None:
    told = page.locator("#taught-problem")
    expect(told).to_contain_text("An API key is required")
    calls: list[str] = []
    page.on("request", lambda request: calls.append(request.url))
    for key, answer in (("wrong", "Unknown API key"), ("open-sesame", "")):
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Use this key").click()
        expect(told).to_contain_text(answer)
    expect(page.locator("#key")).to_be_hidden()
    choose(page).draw("Box", (100, 100), (500, 300))
    taught(page)
    assert any("/jobs/" in call for call in calls)
    assert not any(call.endswith("/events") for call in calls)
    page.reload()
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete cat").click()
    expect(told).to_contain_text("needs a key of scope admin")
    expect(page.locator("#taught li")).to_contain_text("cat")


@teaches_nothing
def test_run_lengths_are_read_as_they_were_written(page: Page) -> None:
    random = np.random.default_rng(5)
    masks = [random.random(hw) < 0.5 for hw in ((7, 5), (1, 13), (11, 1))]
    masks += [np.zeros((3, 5), bool), np.ones((5, 3), bool), np.indices((997, 1009)).sum(axis=0) % 700 > 350]
    written = [mask_to_rle(mask) for mask in masks]
    read = page.evaluate(
        """async (written) => {
             const { decode } = await import("/web/rle.js");
             return written.map((rle) => decode(rle).join(""));
           }""",
        written,
    )
    assert read == ["".join(map(str, mask.ravel().astype(int))) for mask in masks]


@teaches_nothing
@pytest.mark.parametrize("width", [360, 1100])
def test_it_fits_and_every_control_has_a_label(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 740})
    # A screen reader tells of what comes into a region that it knows already; an empty one takes no room.
    for form, regions, room_px in (("#teach", 2, 17), ("#segment", 1, 29)):
        expect(page.locator(form).get_by_role("status")).to_have_count(regions)
        below = "(form, button) => form.getBoundingClientRect().bottom - button.getBoundingClientRect().bottom"
        button = page.locator(f"{form}-go").element_handle()
        assert page.locator(form).evaluate(below, button) == pytest.approx(room_px, abs=1)
    choose(page)
    segmented(page, names="cat")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    segment_many(page, CHELSEA, KITTEN)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.get_by_role("button", name="Open kitten.jpg").click()
    expect(page.get_by_role("dialog").locator(".legend li")).to_have_count(2)
    assert page.get_by_role("dialog").evaluate("dialog => dialog.scrollWidth - dialog.clientWidth") == 0
    page.keyboard.press("Escape")
    unlabelled = "inputs => inputs.filter((input) => !input.labels.length).map(({ id }) => id)"
    assert page.locator("input").evaluate_all(unlabelled) == []
    long = {"name": 64 * "W", "adapter": None, "examples": 1}
    page.route("**/categories?*", lambda route: route.fulfill(json=[long]))
    page.reload()
    expect(page.locator("#names label")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_a_running_job_is_cancelled(page: Page) -> None:
    page.route(
        "**/jobs/*/events", lambda route: route.abort()
    )  # so that the page asks for the job, which is held below

    def running(route: Route) -> None:
        if route.request.method == "DELETE":
            cancelled.append(route.request.url)
        answer = route.fetch(method="GET")
        job = answer.json() | {"status": "cancelled" if cancelled else "running", "progress": 0.4}
        route.fulfill(status=200, json=job)

    cancelled: list[str] = []
    page.route(re.compile(r"/jobs/[^/]+$"), running)
    choose(page).draw("Box", (100, 100), (500, 300))
    teach(page)
    expect(page.locator("#teach-status")).to_have_text("Learning …")
    expect(page.locator("#teach-progress")).to_have_attribute("value", "0.4")
    page.locator("#teach").get_by_role("button", name="Cancel").click()
    expect(page.locator("#teach-status")).to_contain_text("Cancelled. The example stays")
    expect(page.locator("#teach").get_by_role("button", name="Cancel")).to_be_hidden()
    assert len(cancelled) == 1
    page.unroute_all(behavior="wait")


@teaches_nothing
def test_links_jump_to_the_parts(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#segment-title")).to_be_in_viewport()
    page.keyboard.press("Tab")
    expect(page.get_by_label("Photos, chosen or dropped here")).to_be_focused()


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: npm install --no-save axe-core")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page: Page, scheme: Literal["light", "dark"]) -> None:
    page.emulate_media(color_scheme=scheme)
    page.get_by_role("button", name="Try it with these photos").click()
    expect(page.locator(".thumbnail")).to_have_count(2)
    expect(page.locator("#segment-go")).to_be_enabled()
    page.locator("#taught summary").click()
    expect(page.locator(".versions li")).to_have_count(1)
    page.evaluate(AXE.read_text())

    def faults() -> list[str]:
        found = page.evaluate("async () => (await axe.run()).violations")
        return [f"{fault['id']}: {node['html']}" for fault in found for node in fault["nodes"]]

    assert faults() == []
    page.get_by_role("button", name="Open sample-chelsea.jpg").click()
    expect(page.get_by_role("dialog").locator(".legend li")).to_have_count(2)
    assert faults() == []


@teaches_nothing
def test_the_document_of_the_api_needs_nothing_from_elsewhere(page: Page, url: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_role("link", name="All calls").click()
    expect(page.locator("#operations-segment-segment")).to_be_visible()
    assert len(asked) >= 4
    assert [where for where in asked if not where.startswith((url, "data:"))] == []


def refuse(page: Page, path: str, times: int, *, status: int, retry_after: str = "1") -> list[str]:
    """Let the service refuse calls of this path at first; the paths that were called."""
    called: list[str] = []

    def refuse_at_first(route: Route) -> None:
        called.append(route.request.url)
        if len(called) > times:
            return route.continue_()
        headers = {"Content-Type": "application/problem+json", "Retry-After": retry_after}
        return route.fulfill(status=status, headers=headers, body=json.dumps({"detail": "Not now."}))

    page.route(path, refuse_at_first)
    return called


@teaches_nothing
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_service_is_asked_again_for_the_same_photo(page: Page, status: int) -> None:
    called = refuse(page, "**/segment", 2, status=status)
    page.clock.install()
    segment_many(page, CHELSEA, KITTEN, names="cat", pauses_s=(1, 2))
    expect(page.locator("#results figcaption")).to_have_text(["chelsea.jpg", "kitten.jpg"])
    expect(page.locator("#results .problem")).to_have_count(0)
    assert len(called) == 4
    expect(page.locator("#segment-left")).to_be_hidden()


@teaches_nothing
def test_a_run_that_nobody_may_make_stops_and_what_is_left_is_segmented_later(page: Page) -> None:
    called = refuse(page, "**/segment", 1, status=401)
    segment_many(page, CHELSEA, KITTEN, names="cat")
    expect(page.locator("#segment-problem")).to_have_text("Not now.")
    assert len(called) == 1
    page.get_by_role("button", name="Go on with the rest").click()
    expect(page.locator("#results figcaption")).to_have_text(["chelsea.jpg", "kitten.jpg"])
    expect(page.locator("#results .problem")).to_have_count(0)
    expect(page.locator("#segment-left")).to_be_hidden()


def test_a_job_is_followed_while_the_service_is_busy(page: Page) -> None:
    page.route("**/jobs/*/events", lambda route: route.abort())
    called = refuse(page, re.compile(r"/jobs/[^/]+$"), 2, status=503)
    choose(page).draw("Box", (100, 100), (500, 300))
    taught(page)
    assert len(called) > 2


@teaches_nothing
def test_enter_on_a_control_of_the_results_starts_no_run(page: Page) -> None:
    segment_many(page, CHELSEA, names="cat")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for control in (page.get_by_label("Opacity"), page.get_by_label("Refine edges"), page.get_by_label("Size")):
        control.press("Enter")
    expect(page.locator("#results figcaption")).to_have_text("chelsea.jpg")
    assert asked == []


def test_what_is_seen_in_an_example_is_not_drawn_over_the_next_photo(page: Page) -> None:
    held: list[Route] = []
    page.route("**/segment", lambda route: held.append(route))
    choose(page).draw("Box", (500, 0), (620, 60))
    with page.expect_request("**/segment"):
        teach(page)
    choose(page, CHELSEA)
    with page.expect_response("**/segment"):
        held[0].continue_()
    expect(page.locator("#teach-go")).to_be_enabled()  # when it would be drawn already
    assert page.locator("#paper .seen").is_hidden()


@teaches_nothing
def test_marks_are_never_sent_with_the_next_photo(page: Page) -> None:
    """Choosing it, and one more, and teaching at once, before it could be shown."""
    choose(page).draw("Box", (100, 100), (500, 300))
    page.evaluate(
        """() => {
             const { createObjectURL, revokeObjectURL } = URL;
             window.urls = new Set();
             URL.createObjectURL = (blob) => {
               const url = createObjectURL(blob);
               urls.add(url);
               return url;
             };
             URL.revokeObjectURL = (url) => {
               urls.delete(url);
               revokeObjectURL(url);
             };
             const decode = HTMLImageElement.prototype.decode;
             HTMLImageElement.prototype.decode = async function () {
               await new Promise((resolve) => setTimeout(resolve, 1000)); // as of a photo of 40 megapixels
               return decode.call(this);
             };
           }"""
    )
    for photo in (EXAMPLES / "dog.jpg", CHELSEA):
        page.get_by_label("Photo, chosen or dropped here", exact=True).set_input_files(photo)
    teach(page)
    expect(page.locator("#teach-problem")).to_contain_text("Mark the object")
    assert page.evaluate("urls.size") == 0  # none keeps its photo in memory


def test_an_example_that_could_not_be_deleted_can_be_tried_again(page: Page) -> None:
    choose(page).draw("Box", (100, 100), (500, 300))
    taught(page)
    page.locator("#taught summary").click()
    delete = page.get_by_role("button", name="Delete this example")
    expect(page.locator(".examples img")).to_have_js_property("complete", True)
    page.on("dialog", lambda dialog: dialog.accept())
    refuse(page, "**/examples/*", 1, status=503)
    delete.click()
    expect(page.locator("#taught-problem")).to_have_text("Not now.")
    expect(delete).to_have_text("Delete")
    delete.click()
    expect(page.locator(".examples li")).to_have_count(0)


def test_a_heat_map_and_the_masks_file_are_of_the_categories_shown(page: Page) -> None:
    """With nothing chosen all that is taught is asked for; more may be taught meanwhile."""
    choose(page).draw("Box", (100, 100), (500, 300))
    taught(page, "zebra")
    page.get_by_role("button", name="All or none").click()
    segmented(page, names="")
    choose(page).draw("Box", (100, 100), (400, 300))
    taught(page, "antelope")
    asked: list[bytes] = []

    def note(route: Route) -> None:
        asked.append(route.request.post_data_buffer or b"")
        route.continue_()

    page.route("**/segment", note)
    with page.expect_download():
        page.get_by_role("button", name="Masks (PNG)").click()
    assert b'["zebra"]' in asked[0]
