"""Take the pictures of docs/page.md and README.md: the page in five states, over a service with the embedded model.

Run it with `python -m docs.screenshots`; needs Chromium.
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from rich.console import Console

from app.demo import EXAMPLES, running_service, side_by_side
from exemplar_client import Client

FOLDER = Path(__file__).parent / "page"
_QUALITY = 80
# Height of the picture in README.md.
_BOTH_PX = 900


def main() -> int:
    """Take them."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        print("No Chromium is installed: install it, or Google Chrome.", file=sys.stderr)
        return 1
    FOLDER.mkdir(exist_ok=True)
    expect.set_options(timeout=60_000)
    with (
        running_service(Console(quiet=True)) as service,
        Client(service.url) as client,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=path) as browser,
    ):
        with _opened(browser, service.url) as page:
            _choose(page, "kitten")
            _drag(page, "Box", (100, 20), (600, 470))
            _teach(page, "cat")
            _save("advice", page.locator("#teach").screenshot())
        with _opened(browser, service.url) as page:
            _choose(page, "kitten")
            for x, y, keys in ((300, 200, []), (540, 240, []), (380, 330, ["Shift"])):
                _click(page, x, y, keys)
            _save("clicks", clicks := page.locator("#teach").screenshot())
        client.delete("cat")
        for name, photo in (("cat", "kitten"), ("cup", "coffee")):
            client.teach(name, EXAMPLES / f"{photo}.jpg", EXAMPLES / f"{photo}_mask.png").wait()
        client.absent("cat", EXAMPLES / "dog.jpg").wait()
        with _opened(browser, service.url) as page:
            _segment(page)
            _save("gallery", gallery := page.locator("#segment").screenshot())
        side_by_side([clicks, gallery], height=_BOTH_PX).save(FOLDER / "both.jpg", quality=_QUALITY)
        with _opened(browser, service.url) as page:
            page.locator("#taught summary").first.click()
            page.locator(".examples img").last.wait_for()
            _save("category", page.get_by_role("region", name="Taught").screenshot())
        with _opened(browser, service.url, width=360, scheme="dark") as page:
            _segment(page)
            _save("phone", page.locator("#segment").screenshot())
    return 0


@contextmanager
def _opened(browser: Browser, url: str, *, width: int = 900, scheme: str = "light") -> Iterator[Page]:
    size = {"width": width, "height": 900}
    with browser.new_context(base_url=url, viewport=size, color_scheme=scheme, device_scale_factor=1.5) as context:
        page = context.new_page()
        page.goto("/")
        yield page


def _choose(page: Page, name: str) -> None:
    page.get_by_label("Photo, chosen or dropped here", exact=True).set_input_files(EXAMPLES / f"{name}.jpg")
    expect(page.locator("#paper .marks")).to_be_visible()


def _on_screen(page: Page, x: float, y: float) -> tuple[float, float]:
    """A pixel of the photo, on the screen."""
    marks = page.locator("#paper .marks")
    marks.scroll_into_view_if_needed()
    box = marks.bounding_box()
    assert box is not None
    scale = box["width"] / page.locator("#paper .original").evaluate("image => image.naturalWidth")
    return box["x"] + x * scale, box["y"] + y * scale


def _drag(page: Page, tool: str, start: tuple[float, float], end: tuple[float, float]) -> None:
    page.get_by_label(tool, exact=True).check(force=True)  # what is seen of it is its label
    page.mouse.move(*_on_screen(page, *start))
    page.mouse.down()
    page.mouse.move(*_on_screen(page, *end), steps=5)
    page.mouse.up()


def _click(page: Page, x: float, y: float, keys: list[str]) -> None:
    page.get_by_label("Click", exact=True).check(force=True)
    with page.expect_response("**/segment/clicks"):
        for key in keys:
            page.keyboard.down(key)
        page.mouse.click(*_on_screen(page, x, y))
        for key in keys:
            page.keyboard.up(key)
    page.wait_for_timeout(300)  # it is drawn


def _teach(page: Page, name: str) -> None:
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_role("button", name="Teach").click()
    expect(page.locator("#teach-go")).to_be_enabled()
    expect(page.locator(".seen")).to_be_visible()  # what the category marks in the example


def _segment(page: Page) -> None:
    photos = [EXAMPLES / f"{name}.jpg" for name in ("chelsea", "dog", "coffee", "teacup", "giraffes", "kitten")]
    page.get_by_label("Photos, chosen or dropped here").set_input_files(photos)
    page.get_by_label("Other names").fill("dog")
    page.get_by_role("button", name="Segment").click()
    expect(page.locator("#segment-go")).to_be_enabled()
    page.wait_for_timeout(500)  # all is drawn


def _save(name: str, png: bytes) -> None:
    path = FOLDER / f"{name}.jpg"
    with Image.open(io.BytesIO(png)) as picture:
        picture.convert("RGB").save(path, quality=_QUALITY)
        print(f"{path.relative_to(FOLDER.parent)}: {np.asarray(picture).shape}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    sys.exit(main())
