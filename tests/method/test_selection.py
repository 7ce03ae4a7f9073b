"""The choice between tuned parameters and words, by their masks of the examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.backbones.blip import Blip
from app.method import selection
from app.method import tuning as tuning_module
from app.method.frame import mask_to_input
from app.method.parameters import ExampleMemory, Parameters, VisualPrompt
from app.method.pieces import advance, finished
from app.method.pipeline import encode_one
from app.method.presence import calibrated_bias
from app.method.prompts import Prompts, Query
from app.method.selection import (
    Outcome,
    is_no_worse,
    may_keep_parameters,
    select,
    teaches_the_word,
    visual_prompt_harms,
    visual_prompt_helps,
    words_suffice,
)
from app.method.shot import IGNORE, Shot
from app.method.tuning import PAPER, TUNED, CategoryTuning, Recipe
from app.storage.adapter_file import adapter_from_bytes, adapter_to_bytes

EXAMPLES = Path(__file__).parents[2] / "examples"
OTHERS = (Query(("cat",)), Query(("tree",)))
BACKGROUND = ("sky", "wall", "railway track")


def tuning_of(
    blip: Blip, shots: Sequence[Shot], recipe: Recipe = TUNED, words: tuple[str, ...] = ("dog",)
) -> CategoryTuning:
    others = Prompts.of(OTHERS, BACKGROUND, taken=words)
    return CategoryTuning(blip, shots, words, others=others, layers=(0, 3), recipe=recipe)


class TestDecisions:
    @pytest.mark.parametrize(("tuned", "words", "kept"), [(0.6, 0.5, True), (0.5, 0.5, True), (0.4, 0.5, False)])
    def test_tuned_parameters_stay_that_mark_the_examples_no_worse(
        self, tuned: float, words: float, kept: bool
    ) -> None:
        assert is_no_worse(tuned, words) is kept

    @pytest.mark.parametrize(("remembered", "words", "kept"), [(0.5, 0.59, True), (0.5, 0.61, False)])
    def test_under_a_word_the_model_did_not_learn_looks_stay_that_mark_the_examples_a_little_worse(
        self, remembered: float, words: float, kept: bool
    ) -> None:
        assert is_no_worse(remembered, words, new=True) is kept
        assert not is_no_worse(remembered, words)

    @pytest.mark.parametrize(
        ("words", "presence", "suffice"), [(0.6, 0.7, True), (0.59, 0.9, False), (0.9, 0.69, False)]
    )
    def test_words_suffice_that_mark_the_examples_and_are_sure_of_them(
        self, words: float, presence: float, suffice: bool
    ) -> None:
        assert words_suffice(words, presence) is suffice

    @pytest.mark.parametrize(
        ("tuned", "words", "kept"),
        [(0.31, 0.0, True), (0.29, 0.0, False), (0.62, 0.29, True), (0.9, 0.31, False), (0.2, 0.25, False)],
    )
    def test_beside_a_memory_parameters_stay_that_teach_a_word_the_model_does_not_know(
        self, tuned: float, words: float, kept: bool
    ) -> None:
        assert teaches_the_word(tuned, words, known=False) is kept
        assert not teaches_the_word(tuned, words, known=True)

    @pytest.mark.parametrize(
        ("with_others", "without", "kept"),
        [([0.6, 0.4], [0.5, 0.4], True), ([0.6, 0.3], [0.5, 0.4], False), ([0.5, 0.4], [0.5, 0.4], False)],
    )
    def test_of_several_examples_a_visual_prompt_stays_that_finds_the_others(
        self, with_others: list[float], without: list[float], kept: bool
    ) -> None:
        assert visual_prompt_helps(with_others, without) is kept

    @pytest.mark.parametrize(
        ("with_prompt", "without", "words", "harm"),
        [(0.4, 0.6, 0.5, True), (0.5, 0.6, 0.5, False), (0.3, 0.4, 0.5, False), (0.9, 0.6, 0.5, False)],
    )
    def test_of_one_example_a_visual_prompt_goes_that_alone_makes_it_worse_than_the_words(
        self, with_prompt: float, without: float, words: float, harm: bool
    ) -> None:
        assert visual_prompt_harms(with_prompt, without, words) is harm


class TestOutcome:
    def outcome(self, tuning: CategoryTuning, iou: float, words: float) -> Outcome:
        return Outcome(tuning.tuned(), None, None, 0.0, iou, words)

    def test_an_adapter_tells_what_it_was_made_of(self, blip: Blip, shots: list[Shot]) -> None:
        tuning = tuning_of(blip, shots, words=("dog", "hound"))
        adapter = self.outcome(tuning, 0.61237, 0.5).adapter(tuning, "Dog", version=3, created_at="now")
        assert adapter.kept == "adapter"
        assert (adapter.example_iou, adapter.zero_shot_example_iou) == (0.6124, 0.5)
        assert (adapter.category, adapter.version, adapter.prompts) == ("Dog", 3, ("dog", "hound"))
        assert (adapter.backbone, adapter.revision, adapter.layers) == (blip.name, blip.revision, (0, 3))
        assert adapter.ensemble == (0.5, 0.5)
        assert {tensor.dtype for tensor in adapter.tensors} == {torch.float16, torch.int64}
        adapter.check(blip)

    def test_where_the_words_are_better_they_are_kept(self, blip: Blip, shots: list[Shot]) -> None:
        tuning = tuning_of(blip, shots)
        adapter = self.outcome(tuning, 0.49999, 0.50001).adapter(tuning, "dog", version=1, created_at="")
        assert adapter.kept == "words"
        assert adapter.tensors == []
        assert (adapter.example_iou, adapter.zero_shot_example_iou) == (0.5, 0.5)

    def test_an_adapter_of_words_that_hardly_find_anything_can_be_read_back(
        self, blip: Blip, shots: list[Shot]
    ) -> None:
        tuning = tuning_of(blip, shots)
        adapter = self.outcome(tuning, 0.0, 0.00004).adapter(tuning, "dog", version=1, created_at="now")
        assert adapter_from_bytes(adapter_to_bytes(adapter)) == adapter

    def test_what_overflows_in_the_format_in_which_it_is_kept_is_not_kept(self, blip: Blip, shots: list[Shot]) -> None:
        tuning = tuning_of(blip, shots)
        huge = tuning.tuned().map(lambda tensor: torch.full_like(tensor, 7e4))
        adapter = Outcome(huge, None, None, 0.0, 0.7, 0.5).adapter(tuning, "dog", version=1, created_at="")
        assert (adapter.kept, adapter.parameters) == ("words", None)


class TestSelect:
    @pytest.mark.parametrize("recipe", [TUNED, PAPER], ids=lambda recipe: recipe.name)
    def test_the_scores_are_means_over_the_examples(self, blip: Blip, shots: list[Shot], recipe: Recipe) -> None:
        tuning = tuning_of(blip, shots, recipe)
        tuning.step()
        outcome = finished(select(tuning))
        with torch.no_grad():
            words = [tuning.iou(index, None) for index in range(3)]
            kept = [tuning.iou(i, outcome.parameters, visual_prompt=outcome.visual_prompt) for i in range(3)]
        assert outcome.zero_shot_example_iou == pytest.approx(sum(words) / 3)
        assert outcome.example_iou == pytest.approx(sum(kept) / 3)

    def test_it_pauses_after_every_measurement_and_ends_the_same(self, blip: Blip, shots: list[Shot]) -> None:
        tuning = tuning_of(blip, shots)
        tuning.step()
        at_once, pieces, pauses = finished(select(tuning)), select(tuning), 0
        while (outcome := advance(pieces)) is None:
            pauses += 1
        assert pauses == 5 * len(shots)
        assert (outcome.example_iou, outcome.zero_shot_example_iou) == (
            at_once.example_iou,
            at_once.zero_shot_example_iou,
        )

    def test_a_visual_prompt_of_the_object_is_kept(self, blip: Blip, shots: list[Shot]) -> None:
        """The random model's words find nothing, and the red object looks alike in all three photos."""
        outcome = finished(select(tuning_of(blip, shots)))
        assert outcome.visual_prompt is not None
        assert outcome.example_iou > outcome.zero_shot_example_iou

    @pytest.mark.parametrize("recipe", [TUNED, PAPER], ids=lambda recipe: recipe.name)
    def test_parameters_that_are_no_numbers_leave_the_words(
        self, blip: Blip, shots: list[Shot], recipe: Recipe
    ) -> None:
        tuning = tuning_of(blip, shots, recipe)
        tuning.step()
        with torch.no_grad():
            tuning.parameters.trained[0].fill_(torch.nan)
        outcome = finished(select(tuning))
        adapter = outcome.adapter(tuning, "dog", version=1, created_at="")
        assert (adapter.kept, adapter.parameters, adapter.visual_prompt) == ("words", None, None)
        assert adapter.example_iou == adapter.zero_shot_example_iou

    def test_each_example_is_read_once_for_all_prompts_of_the_others(
        self, blip: Blip, shots: list[Shot], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tuning, read = tuning_of(blip, shots), []
        log_odds = CategoryTuning.log_odds
        monkeypatch.setattr(
            CategoryTuning, "log_odds", lambda own, index, *rest: read.append(index) or log_odds(own, index, *rest)
        )
        finished(select(tuning))
        assert read == [0, 1, 2]

    def test_the_paper_keeps_no_appearance(self, blip: Blip, shots: list[Shot]) -> None:
        outcome = finished(select(tuning_of(blip, shots, PAPER)))
        assert outcome.visual_prompt is outcome.memory is None


@pytest.mark.parametrize("helped", [True, False], ids=["parameters", "words"])
def test_the_bias_of_presence_is_that_of_what_is_served(
    blip: Blip, shots: list[Shot], monkeypatch: pytest.MonkeyPatch, helped: bool
) -> None:
    """With a photo that lacks the category, and parameters that are kept or not."""
    noise = torch.rand(3, 112, 112, generator=torch.Generator().manual_seed(1))
    without = Shot.of(blip, encode_one(blip, noise), torch.zeros(112, 112))
    tuning = tuning_of(blip, [shots[0], without])
    for _ in range(3):
        tuning.step()
    monkeypatch.setattr(selection, "is_no_worse", lambda *_, **__: helped)
    outcome = finished(select(tuning))
    adapter = outcome.adapter(tuning, "dog", version=1, created_at="")
    assert (adapter.parameters is not None) is helped

    def bias(parameters: Parameters | None, prompt: VisualPrompt | None) -> float:
        logits = [tuning.presence_logit(index, parameters, visual_prompt=prompt) for index in range(2)]
        return calibrated_bias(torch.stack(logits), torch.tensor([True, False]))

    by_words, by_parameters = bias(None, None), bias(outcome.parameters, outcome.visual_prompt)
    assert by_words != pytest.approx(by_parameters, abs=1e-3)
    assert adapter.presence_bias == pytest.approx(by_parameters if helped else by_words, abs=1e-6)


class TestMemory:
    """The appearance of the examples is kept for a mask decoder, and only for one."""

    @pytest.fixture
    def red(self, embedded) -> Shot:
        rgb = 0.5 * torch.rand(3, 384, 384, generator=torch.Generator().manual_seed(0))
        rgb[0, :160, :224] += 0.5
        labels = torch.zeros(384, 384, dtype=torch.long)
        labels[:160, :224] = 1
        return Shot.of(embedded, encode_one(embedded, rgb), labels)

    def tuning(
        self, embedded, shots: Shot | list[Shot], recipe: Recipe = TUNED, word: str = "gribble"
    ) -> CategoryTuning:
        shots = [shots] if isinstance(shots, Shot) else shots
        others = Prompts.of((), BACKGROUND, taken=[word])
        return CategoryTuning(embedded, shots, [word], others=others, layers=embedded.default_layers, recipe=recipe)

    def test_a_word_that_means_nothing_is_found_by_its_looks(self, embedded, red: Shot) -> None:
        outcome = finished(select(self.tuning(embedded, red)))
        assert isinstance(outcome.memory, ExampleMemory)
        assert outcome.visual_prompt is None
        assert outcome.example_iou > outcome.zero_shot_example_iou + 0.3

    @pytest.mark.parametrize(("word", "kept"), [("gribble", "adapter"), ("mouse", "words")])
    def test_looks_that_mark_the_example_a_little_worse_stay_under_a_word_that_is_not_known(
        self, embedded, red: Shot, word: str, kept: str
    ) -> None:
        tuning = self.tuning(embedded, red, word=word)
        outcome = replace(finished(select(tuning)), example_iou=0.45, zero_shot_example_iou=0.5)
        assert outcome.adapter(tuning, word, version=1, created_at="").kept == kept

    def test_the_paper_has_none(self, embedded, red: Shot) -> None:
        assert finished(select(self.tuning(embedded, red, PAPER))).memory is None

    def test_without_a_mask_decoder_there_is_none(self, blip: Blip, shots: list[Shot]) -> None:
        assert finished(select(tuning_of(blip, shots))).memory is None

    def test_looks_do_not_change_with_the_steps(self, embedded, red: Shot) -> None:
        tuning = self.tuning(embedded, red)
        before = finished(select(tuning)).memory
        tuning.step()
        after = finished(select(tuning)).memory
        assert torch.equal(before.inside, after.inside)
        assert torch.equal(before.outside, after.outside)

    @pytest.mark.parametrize("word", ["cat", "kitten"])
    def test_steps_that_cannot_matter_are_known_beforehand(self, embedded, word: str) -> None:
        """The network has learned the one word from masks and finds the other by itself."""
        tuning = self.tuning(embedded, self.cat(embedded), word=word)
        assert not may_keep_parameters(tuning)
        before = finished(select(tuning))
        for _ in range(20):
            tuning.step()
        after = finished(select(tuning))
        assert (before.parameters, after.parameters) == (None, None)
        assert (before.example_iou, before.presence_bias) == (after.example_iou, after.presence_bias)
        for name, tensor in vars(before.memory).items():
            assert torch.equal(tensor, vars(after.memory)[name])

    def test_steps_may_matter_for_a_word_that_means_nothing(self, embedded, red: Shot) -> None:
        assert may_keep_parameters(self.tuning(embedded, red))

    def test_without_a_mask_decoder_steps_always_may_matter(self, blip: Blip, shots: list[Shot]) -> None:
        assert may_keep_parameters(tuning_of(blip, shots))

    def test_where_the_words_are_better_the_looks_stay_for_presence(self, embedded, red: Shot) -> None:
        tuning = self.tuning(embedded, red)
        outcome = replace(finished(select(tuning)), example_iou=0.3, zero_shot_example_iou=0.5)
        adapter = outcome.adapter(tuning, "gribble", version=1, created_at="")
        assert (adapter.kept, adapter.parameters, adapter.mask_memory) == ("words", None, None)
        assert adapter.memory is not None

    def test_a_photo_without_it_is_remembered_and_counts_for_presence(self, embedded, red: Shot) -> None:
        noise = torch.rand(3, 384, 384, generator=torch.Generator().manual_seed(1))
        without = Shot.of(embedded, encode_one(embedded, noise), torch.zeros(384, 384))
        before = finished(select(self.tuning(embedded, red)))
        after = finished(select(self.tuning(embedded, [red, without])))
        assert (before.presence_bias, float(before.memory.absent_share.sum())) == (0, 0)
        assert after.presence_bias != 0
        assert after.zero_shot_example_iou == before.zero_shot_example_iou
        assert float(after.memory.absent_share.sum()) == pytest.approx(1)

    def cat(self, embedded) -> Shot:
        with Image.open(EXAMPLES / "chelsea.jpg") as photo, Image.open(EXAMPLES / "chelsea_mask.png") as mask:
            rgb, frame = embedded.preprocess(np.array(photo.convert("RGB")))
            marked = np.array(mask.convert("L")) > 0
        return Shot.of(embedded, encode_one(embedded, rgb), mask_to_input(marked, frame, outside=IGNORE))

    def test_a_category_that_the_words_know_is_marked_by_them_and_looks_serve_presence(self, embedded) -> None:
        tuning = self.tuning(embedded, self.cat(embedded), word="cat")
        outcome = finished(select(tuning))
        adapter = outcome.adapter(tuning, "cat", version=1, created_at="")
        assert (adapter.kept, adapter.parameters, adapter.mask_memory) == ("presence", None, None)
        assert adapter.memory is not None
        assert adapter.example_iou == adapter.zero_shot_example_iou > 0.8

    def test_parameters_that_do_harm_are_left_out_and_the_looks_stay(self, embedded, monkeypatch) -> None:
        """The words know a cat; a few steps at an absurd rate ruin that."""
        monkeypatch.setattr(tuning_module, "LEARNING_RATE", 1.0)
        cat = self.cat(embedded)
        tuning = self.tuning(embedded, cat, replace(TUNED, interpolation=1.0), word="cat")
        for _ in range(3):
            tuning.step()
        outcome = finished(select(tuning))
        assert outcome.parameters is None
        assert outcome.memory is not None
        assert outcome.example_iou > 0.8
