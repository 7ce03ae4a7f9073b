"""The evaluation protocols on the sample photos."""

from __future__ import annotations

import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from app.errors import InvalidInputError
from app.method.backbone import Backbone, EncodedImage
from app.method.frame import labels_to_input
from app.method.pipeline import Pipeline, encode_one
from app.method.prompts import Prompts as PromptsOf
from app.method.prompts import Query
from app.method.shot import IGNORE
from app.method.tuning import PAPER, TUNED, CategoryTuning
from app.research import joint, one_shot, subject
from app.research.dataset import Dataset, LabelledPhoto
from app.research.evaluation import Evaluation
from app.research.open_set import open_set
from app.research.subject import Options, Prompts, Subject

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


def test_on_the_network_s_input_masks_are_compared_without_their_way_back(dataset: Dataset, embedded: Backbone) -> None:
    cat = next(photo for photo in dataset.photos if photo.id == "chelsea")
    measured = Evaluation(embedded, Dataset(dataset.classes, (cat,)), replace(OPTIONS, size="input"), quiet)
    framed, found = Pipeline(embedded).find(cat.read(), [Query(("cat",))])
    marked = found.probabilities.argmax(dim=0).numpy() == 1
    true = labels_to_input(cat.read_labels(), framed.frame, outside=IGNORE) == 2
    assert marked.shape == true.shape == (384, 384)
    overlap = (marked & true).sum() / (marked | true).sum()
    assert measured.run().scores["words"][0].iou[2] == pytest.approx(overlap)


def test_a_category_is_no_competitor_of_its_own(
    dataset: Dataset, embedded: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    competing: dict[str, list[str]] = {}

    class Noting(CategoryTuning):
        def __init__(self, *args: Any, others: PromptsOf, **options: Any) -> None:
            super().__init__(*args, others=others, **options)
            competing[self.words[0]] = [word for query in others.queries[1:] for word in query.words]

    monkeypatch.setattr(one_shot, "CategoryTuning", Noting)
    options = replace(OPTIONS, protocol="one-shot", recipe=replace(TUNED, steps=0))
    Evaluation(embedded, dataset, options, quiet).run()
    assert competing == {"person": ["cat"], "cat": ["person"]}


def test_joint_tuning_meets_the_supports_in_an_order_of_its_seed(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven photos, each with another number of marked pixels."""

    class Ended(Exception):
        pass

    met: list[list[int]] = []

    def note(backbone: Backbone, images: Any, labels: Any, **options: Any) -> None:
        met.append([int((one == 1).sum()) for one in labels])
        raise Ended

    Image.new("RGB", (40, 40)).save(tmp_path / "grey.png")
    photos = []
    for rows in range(1, 8):
        labels = np.zeros((40, 40), np.uint8)
        labels[:rows] = 1
        photos.append(LabelledPhoto(str(rows), tmp_path / "grey.png", lambda labels=labels: labels, (1,)))
    measured = subject.Subject(tiny, Dataset(("background", "cat"), tuple(photos)), OPTIONS, quiet)
    monkeypatch.setattr(joint, "JointTuning", note)
    for seed in (0, 1, 2, 0):
        with pytest.raises(Ended):
            joint.joint(measured, {1: photos}, seed)
    assert all(sorted(order) == [40 * rows for rows in range(1, 8)] for order in met)
    assert met[0] == met[3]
    assert len({tuple(order) for order in met}) == 3


# Each photo shows one class, and that one is taught; of "all", the other one is asked for and taught in its turn.
@pytest.mark.parametrize(("prompts", "scored"), [("present", {0}), ("all", {0, 1, 2})])
def test_interference_scores_all_but_the_class_that_is_taught(
    dataset: Dataset, embedded: Backbone, prompts: Prompts, scored: set[int]
) -> None:
    # The words know these classes, so that ours would leave the masks to them, and nothing would interfere.
    options = replace(OPTIONS, protocol="interference", prompts=prompts, recipe=replace(PAPER, steps=4))
    report = Evaluation(embedded, dataset, options, quiet).run()
    assert list(report.scores) == ["words", "another taught"]
    assert all(set(score.iou) == scored for scores in report.scores.values() for score in scores)
    assert report.scores["words"] != report.scores["another taught"]


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

    def test_of_several_passes_what_finds_no_room_is_made_anew_and_scores_the_same(
        self, dataset: Dataset, embedded: Backbone, encoded: list, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        options = replace(OPTIONS, protocol="one-shot", seeds=2)
        kept = Evaluation(embedded, dataset, options, quiet).run()
        assert len(encoded) == len(dataset.photos), "each once"
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

    def refine(probabilities: Tensor, rgb: Tensor, *, few_rounds: bool) -> Tensor:
        made.append(few_rounds)
        return probabilities

    evaluation.subject.pipeline = replace(evaluation.subject.pipeline, refinement=refine)
    evaluation.run()
    assert made == [True, False] * 2, "the words and the prototypes of two photos"


@pytest.mark.parametrize("protocol", ["one-shot", "joint", "interference"])
def test_a_set_of_which_nothing_can_be_taught_is_refused(dataset: Dataset, embedded: Backbone, protocol: Any) -> None:
    alone = Dataset(dataset.classes, dataset.photos[:1])
    with pytest.raises(InvalidInputError, match="No category has a photo to be taught from and another"):
        Evaluation(embedded, alone, replace(OPTIONS, protocol=protocol), quiet).run()


def test_a_photo_that_teaches_is_not_measured_under_another_id(
    dataset: Dataset, folder: Path, embedded: Backbone
) -> None:
    """As where two data sets have the same photo, here by copies."""
    shutil.copytree(folder / "images", folder / "copies")
    again = [replace(photo, id=f"1/{photo.id}", image=folder / "copies" / photo.image.name) for photo in dataset.photos]
    twice = Dataset(dataset.classes, (*dataset.photos, *again))
    options = replace(OPTIONS, protocol="one-shot")
    assert Evaluation(embedded, twice, options, quiet).run().photos == 4, "two photos, twice"
    (draw,) = open_set(Subject(embedded, twice, replace(options, protocol="open"), quiet)).draws
    taught = {photo.image.name for photos in draw.supports.values() for photo in photos}
    measured = [photo.image.name for photo in draw.photos]
    assert len(measured) == 4
    assert taught.isdisjoint(measured)


def test_a_photo_without_known_pixels_counts_nothing(dataset: Dataset, embedded: Backbone) -> None:
    """A photo of nothing but a crowd, of which all classes are asked."""
    crowd = replace(
        dataset.photos[0],
        id="crowd",
        classes=(),
        labels=lambda: np.full_like(dataset.photos[0].read_labels(), IGNORE),
    )
    options = replace(OPTIONS, prompts="all")
    evaluation = Evaluation(embedded, Dataset(dataset.classes, (*dataset.photos, crowd)), options, quiet)
    assert evaluation.run().scores == Evaluation(embedded, dataset, options, quiet).run().scores
    assert len(evaluation.cases(9)) == 4


def test_photos_without_any_known_pixel_are_refused(dataset: Dataset, embedded: Backbone) -> None:
    unknown = [
        replace(photo, labels=lambda photo=photo: np.full_like(photo.read_labels(), IGNORE)) for photo in dataset.photos
    ]
    with pytest.raises(InvalidInputError, match="no pixel to compare: give more photos"):
        Evaluation(embedded, Dataset(dataset.classes, tuple(unknown)), OPTIONS, quiet).run()


def test_cases_go_from_the_best_photo_to_the_worst(dataset: Dataset, embedded: Backbone) -> None:
    evaluation = Evaluation(embedded, dataset, replace(OPTIONS, protocol="one-shot"), quiet)
    evaluation.run()
    cases = evaluation.cases(5)
    assert len(cases) == 2, "as many as there are"
    assert cases[0].score >= cases[1].score
    for case in cases:
        assert list(case.labels) == ["truth", "words", "one-shot"]
        assert all(labels.shape == case.photo.shape[:2] for labels in case.labels.values())
