"""The documents agree with the code: generated pages are up to date; links, commands and named files exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generate import pages
from docs.site import documents

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (
        ROOT,
        ROOT / "docs",
        ROOT / "training",
        ROOT / "examples",
        ROOT / "tests",
        ROOT / "client",
        ROOT / "app/backbones/embedded/weights",
    )
    for path in (folder.rglob("*.md") if folder == ROOT / "docs" else folder.glob("*.md"))
)
MAX_README_WORDS = 1300  # as `wc -w` counts them


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_generated_page_is_up_to_date(path: Path) -> None:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    assert text == pages()[path], f"{path.relative_to(ROOT)} is out of date: run make docs"


def test_readme_is_short() -> None:
    assert len(README.split()) <= MAX_README_WORDS


def test_readme_names_every_package() -> None:
    tree = README.split("```\napp/\n")[1].split("```")[0]
    named = re.findall(r"^ {2}(\w+)/", tree, re.MULTILINE)
    packages = {
        path.name
        for path in (ROOT / "app").iterdir()
        if any(file.suffix in (".py", ".js") for file in path.glob("*.*")) and path.name != "__pycache__"
    }
    assert packages <= set(named)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings(document: str) -> None:
    path = ROOT / document
    for target, heading in re.findall(r"\]\((?!https?:|#)([^)#\s]+)(?:#([^)]+))?\)", path.read_text(encoding="utf-8")):
        linked = path.parent / target
        assert linked.exists(), f"{document} links to {target}"
        if heading:
            assert heading in _anchors(linked.read_text(encoding="utf-8")), f"{document} links to {target}#{heading}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_exist(document: str) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"^make ([a-z]+)|`make ([a-z]+)", text, re.MULTILINE):
        assert "".join(target) in targets, f"{document}: make {''.join(target)}"


def test_the_site_has_every_document() -> None:
    navigation = re.findall(
        r"- (?:[^:\n]+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted(navigation) == [path.as_posix() for path in documents()] == DOCUMENTS


def _anchors(text: str) -> set[str]:
    """Anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
