"""Copy the documents and the files that they link to into build/site-source, from which MkDocs builds the site.

MkDocs reads one folder, and the documents lie beside what they describe. Run it with `make site`.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "build" / "site-source"
FOLDERS = (
    ".",
    "docs",
    "docs/decisions",
    "docs/integrations",
    "client",
    "examples",
    "tests",
    "training",
    "app/backbones/embedded/weights",
)

_LINK = re.compile(r"(\]\()(?!https?:|#)([^)#\s]+)")


def documents() -> list[Path]:
    """Paths of the documents, relative to the root of the repository."""
    return sorted(path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).glob("*.md"))


def links(document: Path) -> set[Path]:
    """Files and folders that a document links to, relative to the root of the repository."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return {(ROOT / document.parent / target).resolve().relative_to(ROOT) for _, target in _LINK.findall(text)}


def main() -> None:
    """Copy them."""
    shutil.rmtree(TARGET, ignore_errors=True)
    pages = documents()
    for path in sorted({*pages, *(linked for page in pages for linked in links(page))}):
        if (ROOT / path).is_file():
            (TARGET / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, TARGET / path)
    for page in pages:
        _link_first_pages(TARGET / page, page)


def _link_first_pages(copy: Path, page: Path) -> None:
    """Turn links to a folder of documents into links to its first one, as a site lists no folders."""

    def first(match: re.Match[str]) -> str:
        start, target = match.groups()
        folder = ROOT / page.parent / target
        return f"{start}{target}/{min(folder.glob('*.md')).name}" if folder.is_dir() else match.group()

    copy.write_text(_LINK.sub(first, copy.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
