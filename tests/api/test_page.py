"""The page at /: its files and headers, and no resources of other servers."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.conftest import Api

ROOT = Path(__file__).parents[2]
WEB = ROOT / "app" / "web"
FILES = sorted(path.name for path in WEB.iterdir())
TEXTS = [name for name in FILES if not name.endswith((".jpg", ".png"))]
TYPES = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "jpg": "image/jpeg",
    "png": "image/png",
}
POLICY = "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
HTML = (WEB / "index.html").read_text()
SCRIPTS = "".join(path.read_text() for path in WEB.glob("*.js"))


def referenced(name: str) -> set[str]:
    """The page's files that one of them names."""
    if name not in TEXTS:
        return set()
    names = re.findall(r"""(?:src=|href=|\()"web/([^"]+)"|from "\./([^"]+)"|url\(([^)]+)\)""", (WEB / name).read_text())
    return {"".join(found) for found in names}


@pytest.fixture(scope="module")
def api(shared) -> Api:
    """The application, which nothing here changes."""
    return shared


class TestServed:
    def test_at_the_root(self, api) -> None:
        answer = api.http.get("/")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.content == (WEB / "index.html").read_bytes()

    @pytest.mark.parametrize("name", ["", *FILES])
    def test_every_file_with_its_type_and_the_policy(self, api, name: str) -> None:
        answer = api.http.get(f"/web/{name}" if name else "/")
        assert answer.status_code == 200
        assert answer.headers["content-type"].split(";")[0] == TYPES[name.rpartition(".")[2] or "html"]
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-cache"

    @pytest.mark.parametrize("name", ["other.js", "%2e%2e", "..%5cmain.py", "__init__.py", "%00.js", "a" * 300 + ".js"])
    def test_and_nothing_else(self, api, name: str) -> None:
        answer = api.http.get(f"/web/{name}")
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")

    def test_it_is_no_part_of_the_api(self, api) -> None:
        paths = api.http.get("/openapi.json").json()["paths"]
        assert not [path for path in paths if path == "/" or path.startswith("/web")]


class TestFiles:
    def test_every_one_is_used_and_there(self) -> None:
        seen: set[str] = set()
        found = {"index.html"}
        while found - seen:
            seen |= (new := found - seen)
            found |= {name for file in new for name in referenced(file)}
        assert sorted(seen) == FILES

    @pytest.mark.parametrize("name", TEXTS)
    def test_nothing_comes_from_elsewhere(self, name: str) -> None:
        assert not re.search(r"https?:|[\"'(]//", (WEB / name).read_text())

    def test_addresses_are_relative_to_the_page(self) -> None:
        """So that it works under a prefix."""
        assert not re.search(r"[\"`(]/[a-z]", HTML + SCRIPTS)

    def test_no_script_or_style_is_inline(self) -> None:
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", HTML)

    def test_no_text_becomes_html_or_code(self) -> None:
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(", SCRIPTS)
        assert "alert(" not in SCRIPTS

    def test_what_the_scripts_look_for_is_on_the_page(self) -> None:
        ids = re.findall(r'\bid="([^"]+)"', HTML)
        assert len(ids) == len(set(ids))
        assert set(re.findall(r'\$\("([^"]+)"\)', SCRIPTS)) <= set(ids)

    def test_they_are_installed_with_the_package(self) -> None:
        setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
        installed = {path for pattern in setuptools["package-data"]["app"] for path in (ROOT / "app").glob(pattern)}
        assert installed >= set(WEB.iterdir())
