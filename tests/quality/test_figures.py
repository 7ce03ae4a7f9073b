"""Figures of the embedded model that the documents print: the model with its present weights gives them, too."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from app.method.prediction import Prediction
from app.method.prompts import Query
from app.services.prediction import Asked, CategoryPrediction, PhotoPrediction
from tests.quality.photos import FOLDERS, PHOTOS

ROOT = Path(__file__).parents[2]
# Machines differ by less, other weights by more.
PRESENCE, AREA = 0.02, 0.002


@pytest.fixture
def cat(found: Callable[..., Prediction], taught: Callable[..., Query]) -> Callable[..., list[CategoryPrediction]]:
    """Segments a photo into "cat", taught from the kitten, and names that nobody taught."""

    def segment(name: str, *beside: str, absent: tuple[str, ...] = ()) -> list[CategoryPrediction]:
        queries = [taught("cat", "kitten", *absent), *(Query((word,)) for word in beside)]
        prediction = PhotoPrediction.of(found(name, *queries), None)
        return prediction.categories([Asked(query.words[0], query) for query in queries])

    return segment


def printed(document: str, pattern: str) -> list[str]:
    """The groups of a pattern in a document, whose lines may break anywhere."""
    text = re.sub(r"\s+", " ", (ROOT / document).read_text(encoding="utf-8"))
    match = re.search(pattern, text)
    assert match, f"{document} has no {pattern}"
    return list(match.groups())


def test_the_answer_in_the_readme(cat: Callable) -> None:
    names = ("presence", "match_score", "mean_probability", "area")
    found, sofa = cat("chelsea", "sofa")
    for name in names:
        (shown,) = printed("README.md", rf'"name": "cat", "adapted": true.*?"{name}": ([\d.]+)')
        allowed = AREA * found.area if name == "area" else PRESENCE
        assert float(shown) == pytest.approx(getattr(found, name), abs=allowed), name
    assert (found.adapted, sofa.adapted) == (True, False)


def test_presences_in_the_readme(cat: Callable, found: Callable) -> None:
    alone, dog, others = printed(
        "README.md", r"has a presence of ([\d.]+) in `chelsea.*?([\d.]+) in `dog.*?most ([\d.]+) in nine other photos"
    )
    assert cat("chelsea")[0].presence == pytest.approx(float(alone), abs=PRESENCE)
    assert cat("dog")[0].presence == pytest.approx(float(dog), abs=PRESENCE)
    nine = PHOTOS.keys() - {"kitten", "chelsea", "dog"}
    assert len(nine) == 9
    assert max(cat(name)[0].presence for name in nine) <= float(others) + PRESENCE
    horse, beside = printed("README.md", r"\"horse\" has ([\d.]+) in `giraffe_head.jpg`, or ([\d.]+) if \"giraffe\"")
    words = Query(("horse",)), Query(("giraffe",))
    assert found("giraffe_head", words[0]).presence[0] == pytest.approx(float(horse), abs=PRESENCE)
    assert found("giraffe_head", *words).presence[0] == pytest.approx(float(beside), abs=PRESENCE)


def test_what_fiftyone_lists(cat: Callable) -> None:
    page = (ROOT / "docs/integrations/fiftyone.md").read_text(encoding="utf-8")
    listed = {
        (name, label): float(presence)
        for name, label, presence in re.findall(r"^(\w+)\.jpg (\w+) ([\d.]+)$", page, re.M)
    }
    found = {
        (file.stem, one.name): one.presence
        for file in FOLDERS[0].glob("*.jpg")
        for one in cat(file.stem, "dog")
        if one.area
    }
    assert listed == pytest.approx(found, abs=PRESENCE)


def test_the_area_that_supervision_prints(cat: Callable) -> None:
    (area,) = printed("docs/integrations/supervision.md", r"\['cat'\] \[1\] \[[\d.]+\] \[(\d+)\]")
    assert int(area) == pytest.approx(cat("chelsea", "dog")[0].area, rel=AREA)
