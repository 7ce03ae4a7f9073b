"""The evaluation protocols on the sample photos."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from app.errors import InvalidInputError
from app.method.backbone import Backbone, EncodedImage
from app.method.pipeline import encode_one
from app.method.tuning import PAPER, TUNED
from app.research import subject
from app.research.dataset import Dataset
from app.research.evaluation import Evaluation
from app.research.subject import Options, Prompts

OPTIONS = Options(crf=False, recipe=replace(TUNED, steps=2))


def quiet(step: int, steps: int, activity: str) -> None:
    """No bar."""


def test_words_find_people_and_cats(dataset: Dataset, embedded: Backbone) -> None:
    empty = replace(dataset.photos[0], id="empty", classes=())  # of which nothing is asked
    report = Evaluation(embedded, Dataset(dataset.classes, (*dataset.photos, empty)), OPTIONS, quiet).run()
    assert report.photos == 4
    assert set(report.scores) == {"words"}
    assert all(iou > 0.5 for iou in report.by_class("words").values())


@pytest.mark.parametrize(
    ("options", "column"),
    [
        (replace(OPTIONS, protocol="one-shot", crf=True), "one-shot"),
        (replace(OPTIONS, protocol="joint", joint_epochs=1), "joint"),
        (replace(OPTIONS, protocol="one-shot", method="prototype"), "prototype"),
        (replace(OPTIONS, protocol="one-shot", prompts="all", size="input"), "one-shot"),
    ],
)
def test_every_protocol_leaves_its_supports_out_and_has_words_beside_it(
    dataset: Dataset, embedded: Backbone, options: Options, column: str
) -> None:
    report = Evaluation(embedded, dataset, options, quiet).run()
    assert report.photos == 2
    expected = {"words", column} | ({"words + CRF", f"{column} + CRF"} if options.crf else set())
    assert set(report.scores) == expected
    assert all(0 <= iou <= 1 for name in expected for iou in report.by_class(name).values())
    assert report.mean(column)[0] > 0.4


# Each photo shows one class, and that one is taught; of "all", the other one is asked for and taught in its turn.
@pytest.mark.parametrize(("prompts", "scored"), [("present", {0}), ("all", {0, 1, 2})])
def test_interference_scores_all_but_the_class_that_is_taught(
    dataset: Dataset, embedded: Backbone, prompts: Prompts, scored: set[int]
) -> None:
    # The words know these classes, so that ours would leave the masks to them, and nothing would interfere.
    options = replace(OPTIONS, protocol="interference", prompts=prompts, recipe=PAPER)
    report = Evaluation(embedded, dataset, options, quiet).run()
    assert list(report.scores) == ["words", "another taught"]
    assert all(set(score.iou) == scored for scores in report.scores.values() for score in scores)
    assert report.scores["words"] != report.scores["another taught"]


def test_the_same_seed_gives_the_same_scores(dataset: Dataset, embedded: Backbone) -> None:
    options = replace(OPTIONS, protocol="one-shot")
    first, second = (Evaluation(embedded, dataset, options, quiet).run() for _ in range(2))
    assert first == second


class TestMemory:
    """Encoded photos that are kept; those of a large data set under a large model it would be hundreds of gigabytes."""

    @pytest.fixture
    def encoded(self, monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Tensor]]:
        """The image tokens that are made, in order, as long as somebody holds them."""
        made: list[weakref.ref[Tensor]] = []

        def encode_and_note(backbone: Backbone, rgb: Tensor) -> EncodedImage:
            image = encode_one(backbone, rgb)
            made.append(weakref.ref(image.tokens))
            return image

        monkeypatch.setattr(subject, "encode_one", encode_and_note)
        return made

    def test_of_one_pass_only_the_latest_photo_is_kept(
        self, dataset: Dataset, embedded: Backbone, encoded: list
    ) -> None:
        measured = Evaluation(embedded, dataset, OPTIONS, quiet)
        measured.run()
        assert [tokens() is not None for tokens in encoded] == [False, False, False, True]

    def test_with_several_seeds_every_photo_is_encoded_once(
        self, dataset: Dataset, embedded: Backbone, encoded: list
    ) -> None:
        Evaluation(embedded, dataset, replace(OPTIONS, protocol="one-shot", seeds=2), quiet).run()
        assert len(encoded) == len(dataset.photos)

    def test_what_finds_no_room_is_made_anew_and_scores_the_same(
        self, dataset: Dataset, embedded: Backbone, encoded: list, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        options = replace(OPTIONS, protocol="one-shot", seeds=2)
        kept = Evaluation(embedded, dataset, options, quiet).run()
        encoded_bytes = encode_one(embedded, embedded.preprocess(dataset.photos[0].read())[0]).nbytes
        monkeypatch.setattr(subject, "_MAX_KEPT_BYTES", 2 * encoded_bytes)
        encoded.clear()
        measured = Evaluation(embedded, dataset, options, quiet)
        assert measured.run() == kept
        assert len(encoded) > len(dataset.photos)
        assert sum(tokens() is not None for tokens in encoded) <= 3, "two that are kept, and the latest"


def test_maps_of_prototypes_are_refined_as_what_no_decoder_made(dataset: Dataset, embedded: Backbone) -> None:
    options = replace(OPTIONS, protocol="one-shot", method="prototype", crf=True)
    evaluation = Evaluation(embedded, dataset, options, quiet)
    made: list[bool] = []

    def refine(probabilities: Tensor, rgb: Tensor, *, decoded: bool) -> Tensor:
        made.append(decoded)
        return probabilities

    evaluation.subject.pipeline = replace(evaluation.subject.pipeline, refinement=refine)
    evaluation.run()
    assert made == [True, False] * 2, "the words and the prototypes of two photos"


@pytest.mark.parametrize("protocol", ["one-shot", "joint", "interference"])
def test_a_set_of_which_nothing_can_be_taught_is_refused(dataset: Dataset, embedded: Backbone, protocol: Any) -> None:
    alone = Dataset(dataset.classes, dataset.photos[:1])
    with pytest.raises(InvalidInputError, match="No category has a photo to be taught from and another"):
        Evaluation(embedded, alone, replace(OPTIONS, protocol=protocol), quiet).run()


def test_cases_go_from_the_best_photo_to_the_worst(dataset: Dataset, embedded: Backbone) -> None:
    evaluation = Evaluation(embedded, dataset, replace(OPTIONS, protocol="one-shot"), quiet)
    evaluation.run()
    cases = evaluation.cases(5)
    assert len(cases) == 2, "as many as there are"
    assert cases[0].score >= cases[1].score
    for case in cases:
        assert list(case.labels) == ["truth", "words", "one-shot"]
        assert all(labels.shape == case.photo.shape[:2] for labels in case.labels.values())
