"""Progress in a terminal with each library, and elsewhere."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable

import pytest

from exemplar_client import progress
from exemplar_client.progress import progress_bar


def shown(capsys: pytest.CaptureFixture[str], *, total: float | None = 1.0, enabled: bool = True) -> str:
    with progress_bar("teaching [cat]", total=total, enabled=enabled) as show:
        show(0.5, "running 1/2")
        show(1.0, "succeeded 2/2")
    return capsys.readouterr().err


def in_terminal(monkeypatch: pytest.MonkeyPatch, *libraries: str) -> None:
    """Pretend that standard error is a terminal, and that only these libraries are installed."""
    find: Callable[[str], object] = importlib.util.find_spec
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: find(name) if name in libraries else None)


def test_elsewhere_one_line_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys) == "teaching [cat]: succeeded 2/2\n"


def test_nothing_is_shown_if_nothing_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, enabled=False) == ""


@pytest.mark.parametrize("library", ["rich", "tqdm", "none"])
@pytest.mark.parametrize("total", [1.0, None])
def test_a_bar_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], library: str, total: float | None
) -> None:
    if library != "none":
        pytest.importorskip(library)
    in_terminal(monkeypatch, library)
    text = shown(capsys, total=total)
    assert "teaching [cat]" in text
    assert "2/2" in text
    assert "\n" in text[-8:], "what is printed next begins on a line of its own"


def test_a_plain_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    in_terminal(monkeypatch)
    half, whole = shown(capsys).split("\r")[1:]
    assert half == f"teaching [cat] [{'#' * 15}{'.' * 15}] running 1/2\x1b[K"
    assert whole == f"teaching [cat] [{'#' * 30}] succeeded 2/2\x1b[K\n"
