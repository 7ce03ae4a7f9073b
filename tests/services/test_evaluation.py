"""`evaluate`: counts by hand, the folder's form, and the protocols on the real sample photos."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from app.method.segment import encode
from app.report import as_picture
from app.services.evaluation import Dataset, Evaluation, Options, Prompts, Report, Score, _Counts, read_dataset
from PIL import Image
from torch import Tensor

from app import backbones
from app.errors import InvalidInputError
from app.method.backbone import Backbone
from app.method.crf import THREE_ROUNDS
from app.method.prompts import BACKGROUND_WORDS
from app.method.tuning import Recipe
from app.services import evaluation

EXAMPLES = Path(__file__).parents[2] / "examples"
# Two photos each, so that one can teach and the other can test.
PHOTOS = {"astronaut": 1, "grace_hopper": 1, "kitten": 2, "chelsea": 2}
OPTIONS = Options(crf=None, background=BACKGROUND_WORDS, recipe=Recipe(steps=2))


@pytest.fixture(scope="module")
def embedded() -> Backbone:
    return backbones.load("embedded", device="cpu", dtype="float32")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The sample photos in the form that `evaluate` reads."""
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    images = []
    for name, number in PHOTOS.items():
        (tmp_path / "images" / f"{name}.jpg").write_bytes((EXAMPLES / f"{name}.jpg").read_bytes())
        with Image.open(EXAMPLES / f"{name}_mask.png") as mask:
            labels = (np.array(mask.convert("L")) > 0).astype(np.uint8) * number
        Image.fromarray(labels).save(tmp_path / "masks" / f"{name}.png")
        images.append({"id": name, "classes": [number], "split": "val" if name == "chelsea" else "train"})
    index = {"classes": ["background", "person", "cat"], "images": images}
    (tmp_path / "index.json").write_text(json.dumps(index))
    return tmp_path


def everything(folder: Path) -> Dataset:
    return read_dataset(folder, split=None, ids=None, limit=None)


def quiet(step: int, steps: int, what: str) -> None:
    """No bar."""


def test_iou_is_counted_over_all_photos_together() -> None:
    counts = _Counts(3)
    # Background: 3 hits, 1 taken by class 1, 1 taken from class 2. Class 1: 2 hits, 1 false. Class 2: 1 hit, 1 missed.
    counts.add(np.array([[0, 0, 0, 1], [1, 1, 2, 0]]), np.array([[0, 0, 0, 0], [1, 1, 2, 2]]))
    assert counts.score().iou == {0: 3 / 5, 1: 2 / 3, 2: 1 / 2}
    counts.add(np.array([[2, 2]]), np.array([[2, 255]]))
    assert counts.score().iou[2] == 2 / 3, "an ignored pixel counts for nobody"


def test_a_class_can_be_left_out_of_the_count() -> None:
    counts = _Counts(3)
    # Of class 1 nothing counts; class 2: 1 hit, 1 false (on class 1), 1 missed (to class 1).
    counts.add(np.array([[0, 1, 2], [2, 1, 1]]), np.array([[0, 1, 2], [1, 1, 2]]), but=1)
    assert counts.score().iou == pytest.approx({0: 1.0, 2: 1 / 3})


def test_mean_spread_and_share_of_worse_classes() -> None:
    report = Report(
        ("background", "a", "b"),
        photos=2,
        scores={
            "words": [Score({0: 0.5, 1: 0.1, 2: 0.3}), Score({0: 0.7, 1: 0.3, 2: 0.5})],
            "one-shot": [Score({0: 0.5, 1: 0.4, 2: 0.3}), Score({0: 0.7, 1: 0.4, 2: 0.3})],
        },
    )
    assert report.mean("words") == pytest.approx((0.4, 0.1))
    assert report.by_class("one-shot") == pytest.approx({0: 0.6, 1: 0.4, 2: 0.3})
    assert report.worse_than("words", "one-shot") == 0.5
    assert report.worse_than("words", "words") is None


def test_split_ids_and_limit_choose_photos(folder: Path, tmp_path: Path) -> None:
    assert [photo.id for photo in read_dataset(folder, split="val", ids=None, limit=None).photos] == ["chelsea"]
    keep = tmp_path / "ids.json"
    keep.write_text('["kitten", "astronaut"]')
    assert [p.id for p in read_dataset(folder, split=None, ids=keep, limit=None).photos] == ["astronaut", "kitten"]
    assert len(read_dataset(folder, split=None, ids=None, limit=3).photos) == 3


@pytest.mark.parametrize("content", ["", "{", "[]", '{"classes": ["a"]}', '{"classes": 3, "images": [{"id": 1}]}'])
def test_a_folder_of_another_form_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(InvalidInputError, match="index"):
        read_dataset(tmp_path, split=None, ids=None, limit=None)


def test_nothing_left_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidInputError, match="--split"):
        read_dataset(folder, split="no such split", ids=None, limit=None)


def test_words_find_people_and_cats(folder: Path, embedded: Backbone) -> None:
    report = Evaluation(embedded, everything(folder), OPTIONS, quiet).run()
    assert report.photos == 4
    assert set(report.scores) == {"words"}
    assert all(iou > 0.5 for iou in report.by_class("words").values())


@pytest.mark.parametrize(
    ("options", "column"),
    [
        (replace(OPTIONS, protocol="one-shot", crf=THREE_ROUNDS), "one-shot"),
        (replace(OPTIONS, protocol="joint", joint_epochs=1), "joint"),
        (replace(OPTIONS, protocol="one-shot", method="prototype"), "prototype"),
        (replace(OPTIONS, protocol="one-shot", prompts="all", size="input"), "one-shot"),
    ],
)
def test_every_protocol_leaves_its_supports_out_and_has_words_beside_it(
    folder: Path, embedded: Backbone, options: Options, column: str
) -> None:
    report = Evaluation(embedded, everything(folder), options, quiet).run()
    assert report.photos == 2
    expected = {"words", column} | ({"words + CRF", f"{column} + CRF"} if options.crf else set())
    assert set(report.scores) == expected
    assert all(0 <= iou <= 1 for name in expected for iou in report.by_class(name).values())
    assert report.mean(column)[0] > 0.4


# Each photo shows one class, and that one is taught; of "all", the other one is asked for and taught in its turn.
@pytest.mark.parametrize(("prompts", "scored"), [("present", {0}), ("all", {0, 1, 2})])
def test_interference_scores_all_but_the_class_that_is_taught(
    folder: Path, embedded: Backbone, prompts: Prompts, scored: set[int]
) -> None:
    options = replace(OPTIONS, protocol="interference", prompts=prompts)
    report = Evaluation(embedded, everything(folder), options, quiet).run()
    assert list(report.scores) == ["words", "another taught"]
    assert all(set(score.iou) == scored for scores in report.scores.values() for score in scores)
    assert report.scores["words"] != report.scores["another taught"]


def test_the_same_seed_gives_the_same_scores(folder: Path, embedded: Backbone) -> None:
    options = replace(OPTIONS, protocol="one-shot")
    first, second = (Evaluation(embedded, everything(folder), options, quiet).run() for _ in range(2))
    assert first == second


class TestMemory:
    """What is kept of the photos; of a large data set under a large model it would be hundreds of gigabytes."""

    @pytest.fixture
    def encoded(self, monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Tensor]]:
        """The image tokens that are made, in order, as long as somebody holds them."""
        made: list[weakref.ref[Tensor]] = []

        def encode_and_note(backbone: Backbone, rgb: Tensor) -> Tensor:
            made.append(weakref.ref(tokens := encode(backbone, rgb)))
            return tokens

        monkeypatch.setattr(evaluation, "encode", encode_and_note)
        return made

    def test_of_one_pass_only_the_latest_photo_is_kept(self, folder: Path, embedded: Backbone, encoded: list) -> None:
        measured = Evaluation(embedded, everything(folder), OPTIONS, quiet)
        measured.run()
        assert [tokens() is not None for tokens in encoded] == [False, False, False, True]

    def test_with_several_seeds_every_photo_is_encoded_once(
        self, folder: Path, embedded: Backbone, encoded: list
    ) -> None:
        Evaluation(embedded, everything(folder), replace(OPTIONS, protocol="one-shot", seeds=2), quiet).run()
        assert len(encoded) == len(PHOTOS)

    def test_what_finds_no_room_is_made_anew_and_scores_the_same(
        self, folder: Path, embedded: Backbone, encoded: list, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        options = replace(OPTIONS, protocol="one-shot", seeds=2)
        kept = Evaluation(embedded, everything(folder), options, quiet).run()
        tokens_bytes = encode(embedded, embedded.preprocess(everything(folder).photos[0].read())[0]).nbytes
        monkeypatch.setattr(evaluation, "_MAX_KEPT_BYTES", 2 * (tokens_bytes + 3 * embedded.input_size**2))
        encoded.clear()
        measured = Evaluation(embedded, everything(folder), options, quiet)
        assert measured.run() == kept
        assert len(encoded) > len(PHOTOS)
        assert sum(tokens() is not None for tokens in encoded) <= 3, "two that are kept, and the latest"


def test_too_few_photos_to_test_on_is_refused(folder: Path, embedded: Backbone) -> None:
    photos = everything(folder).photos[:1]
    options = replace(OPTIONS, protocol="one-shot", shots=1)
    report = Evaluation(embedded, Dataset(("background", "person", "cat"), photos), options, quiet).run()
    assert report.photos == 1, "a class with a single photo isn't taught, so that the photo can be tested on"


def test_cases_go_from_the_best_photo_to_the_worst(folder: Path, embedded: Backbone) -> None:
    evaluation = Evaluation(embedded, everything(folder), replace(OPTIONS, protocol="one-shot"), quiet)
    evaluation.run()
    cases = evaluation.cases(5)
    assert len(cases) == 2, "as many as there are"
    assert cases[0].score >= cases[1].score
    for case in cases:
        assert list(case.labels) == ["truth", "words", "one-shot"]
        assert all(labels.shape == case.photo.shape[:2] for labels in case.labels.values())


def test_cases_are_drawn_a_row_each(folder: Path, embedded: Backbone) -> None:
    evaluation = Evaluation(embedded, everything(folder), OPTIONS, quiet)
    evaluation.run()
    sheet = as_picture(evaluation.cases(3), evaluation.dataset.classes, height=101)
    assert sheet.height == 3 * 101
    assert sheet.width > 3 * 101 * 0.6, "the photo, the truth and what the words found beside each other"
