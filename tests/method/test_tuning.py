"""One example changes a copy of a few parameters, for the better, and nothing else."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from app.method.class_map import normalise, upsample
from app.method.example_memory import FACTS, MEMORY
from app.method.segment import class_map, encode
from PIL import Image
from torch import Tensor

from app.backbones.blip import Blip
from app.method.adapter import TOKEN_IDS, Adapter
from app.method.evidence import Query
from app.method.frame import labels_to_input
from app.method.prompts import prompt_set
from app.method.tuning import (
    IGNORE,
    PAPER_RECIPE,
    CategoryTuning,
    JointTuning,
    Recipe,
    Shot,
    binary_iou,
    class_map_of,
    object_and_background_weight,
    shot,
)
from app.method.visual_prompt import DIRECTION, Prior

EXAMPLES = Path(__file__).parents[2] / "examples"
LAYERS = (0, 3)
BACKGROUND = ("sky", "wall", "railway track")
OTHERS = ("cat", "tree")
RECIPE = Recipe(steps=7, learning_rate=5e-3, visual_prompt=None)
# So sure of what looks like the example that it is found whatever the words say.
SURE = replace(
    RECIPE,
    interpolation=0.0,
    visual_prompt=Prior(likeness=5.0, likeness_deviation=50.0, bias_deviation=10.0, evidence=50.0),
)


def image_tokens_of(blip: Blip, seed: int) -> Tensor:
    """Of a photo whose object, at the top left, is redder than the rest."""
    rgb = 0.5 * torch.rand(3, 112, 112, generator=torch.Generator().manual_seed(seed))
    rgb[0, :48, :64] += 0.5
    return blip.encode_image(rgb[None])[0]


def labels() -> Tensor:
    """The object covers 3 × 4 of 7 × 7 patches; the last row is padding."""
    square = torch.zeros(112, 112, dtype=torch.long)
    square[:48, :64] = 1
    square[96:] = IGNORE
    return square


@pytest.fixture(scope="module")
def shots(blip: Blip) -> list[Shot]:
    return [shot(blip, image_tokens_of(blip, seed), labels(), label_scale=2) for seed in range(3)]


def tuning_of(
    blip: Blip, shots: list[Shot], recipe: Recipe = RECIPE, words: tuple[str, ...] = ("dog",)
) -> CategoryTuning:
    return CategoryTuning(blip, shots, words, background=BACKGROUND, others=OTHERS, layers=LAYERS, recipe=recipe)


def weights_of(blip: Blip) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in blip._model.state_dict().items()}


class TestShot:
    def test_cells_hold_the_category_s_share_of_what_the_photo_covers(self, blip: Blip) -> None:
        square = torch.zeros(112, 112, dtype=torch.long)
        square[:4, :8] = 1  # half of the first cell
        square[:8, 8:12] = IGNORE  # the left half of the second, whose other half …
        square[:2, 12:16] = 1  # … is the category by a quarter
        square[104:] = IGNORE
        made = shot(blip, torch.zeros(50, 22), square, label_scale=2)
        assert made.size_hw == (14, 14)
        assert made.target[0, :3].tolist() == pytest.approx([0.5, 0.25, 0])
        assert made.inside[0, :3].tolist() == [1, 0.5, 1]
        assert made.inside[13].tolist() == made.target[13].tolist() == [0] * 14


class TestLossWeights:
    # 2 × 2 cells: the object fills one and half of another; one of the rest is half padding.
    EXAMPLE = Shot(
        torch.zeros(5, 3), torch.zeros(4, 3), torch.tensor([[1, 0.5], [0, 0]]), torch.tensor([[1, 1], [1, 0.5]])
    )

    def test_balanced_each_side_has_half(self) -> None:
        weight = object_and_background_weight(self.EXAMPLE, Recipe(balanced=True))
        assert weight[0].flatten().tolist() == pytest.approx([0.5 / 1.5, 0.25 / 1.5, 0, 0])
        assert weight[1].flatten().tolist() == pytest.approx([0, 0.125, 0.25, 0.125])

    def test_by_the_authors_every_pixel_counts_and_background_half(self) -> None:
        weight = object_and_background_weight(self.EXAMPLE, PAPER_RECIPE)
        assert weight[0].flatten().tolist() == pytest.approx([0.4, 0.2, 0, 0])
        assert weight[1].flatten().tolist() == pytest.approx([0, 0.1, 0.2, 0.1])

    @pytest.mark.parametrize("share", [0.0, 1.0])
    def test_a_side_that_is_not_there_weighs_nothing(self, share: float) -> None:
        example = Shot(torch.zeros(5, 3), torch.zeros(4, 3), torch.full((2, 3), share), torch.ones(2, 3))
        weight = object_and_background_weight(example, Recipe(balanced=True)).sum(dim=(1, 2))
        assert weight.tolist() == pytest.approx([0.5 * share, 0.5 * (1 - share)])


class TestIntersectionOverUnion:
    EXAMPLE = Shot(
        torch.zeros(5, 3), torch.zeros(4, 3), torch.tensor([[1, 0.5], [0, 0]]), torch.tensor([[1, 1], [1, 0.5]])
    )

    @pytest.mark.parametrize(
        ("predicted", "iou"),
        [
            ([[True, True], [False, False]], 1.5 / 2),
            ([[True, False], [False, False]], 1 / 1.5),
            ([[False, False], [True, True]], 0),
            ([[True, True], [True, True]], 1.5 / 3.5),
            ([[False, False], [False, False]], 0),
        ],
    )
    def test_cells_count_by_what_they_hold(self, predicted: list[list[bool]], iou: float) -> None:
        assert binary_iou(torch.tensor(predicted), self.EXAMPLE) == pytest.approx(iou)


class TestOneCategory:
    def test_the_loss_falls_and_the_example_is_found(self, blip: Blip, shots: list[Shot]) -> None:
        tuning = tuning_of(blip, shots)
        before = tuning.example_iou(adapted=False)
        losses = [tuning.step() for _ in range(15)]
        assert losses[-1] < 0.7 * losses[0]
        assert tuning.example_iou(adapted=True) > before + 0.2
        assert tuning.example_iou(adapted=False) == before

    def test_untuned_parameters_are_the_words_alone(self, blip: Blip, shots: list[Shot]) -> None:
        tuning = tuning_of(blip, shots)
        torch.testing.assert_close(tuning._scores(0, tuning.adapted()), tuning._scores(0, None))

    def test_exactly_the_trainable_parameters_get_a_gradient(self, blip: Blip, shots: list[Shot]) -> None:
        tuning = tuning_of(blip, shots)
        start = {name: tensor.detach().clone() for name, tensor in tuning.parameters.items()}
        tuning.step()
        assert set(start) == set(blip.trainable(LAYERS, blip.tokenize(["dog"])))
        for name, tensor in tuning.parameters.items():
            if name == TOKEN_IDS:
                assert tensor.grad is None
                assert torch.equal(tensor, start[name])
            else:
                assert tensor.grad is not None
                assert tensor.grad.abs().max() > 0, name
                assert not torch.equal(tensor, start[name])
        assert all(p.grad is None and not p.requires_grad for p in blip._model.parameters())

    def test_the_base_model_is_bit_equal_afterwards(self, blip: Blip, shots: list[Shot]) -> None:
        before = weights_of(blip)
        tuning = tuning_of(blip, shots)
        tuning.step()
        tuning.example_iou(adapted=True)
        assert all(torch.equal(tensor, before[name]) for name, tensor in blip._model.state_dict().items())

    @pytest.mark.parametrize("words", [("dog",), ("dog", "hound", "a small white puppy")])
    def test_the_constant_part_equals_a_pass_over_all_prompts(
        self, blip: Blip, shots: list[Shot], words: tuple[str, ...]
    ) -> None:
        tuning = tuning_of(blip, shots, words=words)
        tuning.step()
        prompts = prompt_set(BACKGROUND, [*([name] for name in OTHERS), words])
        text = blip.tokenize(prompts.words)
        for index, example in enumerate(shots):
            with torch.no_grad():
                at_once = class_map_of(blip, example.image_tokens, text, prompts, LAYERS)
                scores = tuning._scores(index, None)
            in_parts = normalise(upsample(scores, (7, 7), (112, 112)))
            torch.testing.assert_close(in_parts, at_once, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(("tuned", "words", "kept"), [(0.6, 0.5, True), (0.5, 0.5, True), (0.4, 0.5, False)])
    def test_the_better_of_tuned_parameters_and_words_is_kept(
        self, blip: Blip, shots: list[Shot], monkeypatch: pytest.MonkeyPatch, tuned: float, words: float, kept: bool
    ) -> None:
        tuning = tuning_of(blip, shots, words=("dog", "hound"))
        monkeypatch.setattr(tuning, "example_iou", lambda *, adapted: tuned if adapted else words)
        adapter = tuning.adapter("Dog", version=3, created_at="now")
        assert bool(adapter.tensors) is kept
        assert (adapter.example_iou, adapter.zero_shot_example_iou) == (tuned, words)
        assert (adapter.category, adapter.version, adapter.prompts) == ("Dog", 3, ("dog", "hound"))
        assert (adapter.backbone, adapter.revision, adapter.layers) == (blip.name, blip.revision, LAYERS)

    @pytest.mark.parametrize("prior", [None, Prior()])
    def test_finished_an_example_at_a_time_is_finished_at_once(
        self, blip: Blip, shots: list[Shot], prior: Prior | None
    ) -> None:
        at_once, in_pieces = (tuning_of(blip, shots, replace(RECIPE, visual_prompt=prior)) for _ in range(2))
        for tuning in (at_once, in_pieces):
            tuning.step()
        assert len(list(in_pieces.finishing())) == 3 * len(shots)
        one, other = (tuning.adapter("dog", version=1, created_at="") for tuning in (at_once, in_pieces))
        assert (one.example_iou, one.zero_shot_example_iou) == (other.example_iou, other.zero_shot_example_iou)
        assert one.tensors.keys() == other.tensors.keys()
        assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())

    def test_a_step_after_finishing_is_not_forgotten(self, blip: Blip, shots: list[Shot]) -> None:
        finished, straight = tuning_of(blip, shots), tuning_of(blip, shots)
        list(finished.finishing())
        for tuning in (finished, straight):
            tuning.step()
        assert finished.example_iou(adapted=True) == straight.example_iou(adapted=True)

    @pytest.mark.parametrize("learned_ensemble", [False, True])
    @pytest.mark.parametrize("prior", [None, Prior()])
    def test_a_request_sees_what_tuning_saw(
        self, blip: Blip, shots: list[Shot], learned_ensemble: bool, prior: Prior | None
    ) -> None:
        tuning = tuning_of(blip, shots, replace(RECIPE, learned_ensemble=learned_ensemble, visual_prompt=prior))
        for _ in range(5):
            tuning.step()
        adapter = Adapter(
            backbone=blip.name,
            revision=blip.revision,
            category="dog",
            version=1,
            prompts=("dog",),
            layers=LAYERS,
            ensemble=tuning.ensemble,
            tensors=tuning.tensors(torch.float32),
            example_iou=1.0,
            zero_shot_example_iou=0.0,
            created_at="",
        )
        queries = [*(Query((name,)) for name in OTHERS), Query(("dog",), adapter)]
        found = class_map(blip, shots[0].image_tokens, queries, layers=LAYERS, background=BACKGROUND)
        with torch.no_grad():
            scores = tuning._scores(0, tuning.adapted())
        seen = normalise(upsample(scores, (7, 7), (112, 112)))
        torch.testing.assert_close(found.probabilities, seen, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("rank", [7, 50])
    def test_factors_do_what_the_whole_matrices_do(self, blip: Blip, shots: list[Shot], rank: int) -> None:
        """Few steps change few directions: seven of 21 hold nearly all, and 50 are cut to what there is."""
        whole, factors = (tuning_of(blip, shots, replace(RECIPE, rank=each)) for each in (None, rank))
        for _ in range(3):
            assert whole.step() == factors.step()
        assert any(name.endswith(".left") for name in factors.tensors())
        with torch.no_grad():
            expected, found = (each._scores(0, each.adapted()) for each in (whole, factors))
            words = whole._scores(0, None)
        assert (found - expected).abs().max() < (0.1 if rank == 7 else 1e-3) * (words - expected).abs().max()

    def test_a_visual_prompt_finds_an_object_that_the_words_do_not(self, blip: Blip, shots: list[Shot]) -> None:
        tuning = tuning_of(blip, shots, SURE)
        assert tuning.example_iou(adapted=False) < 0.5
        assert tuning.example_iou(adapted=True) > 0.9

    def test_of_several_examples_a_visual_prompt_stays_that_finds_the_others(
        self, blip: Blip, shots: list[Shot]
    ) -> None:
        assert DIRECTION in tuning_of(blip, shots, SURE).adapted()

    def test_a_visual_prompt_is_left_out_that_misleads_on_the_others(self, blip: Blip, shots: list[Shot]) -> None:
        """The words find the object to the last patch, and the prior believes that it looks unlike the example."""
        unlike = Prior(likeness=-50.0, likeness_deviation=0.1, bias_deviation=0.1)
        words = tuning_of(blip, shots, words=("cat dog",))
        found = []
        for index, example in enumerate(shots):
            with torch.no_grad():
                scores = words._scores(index, None)
            target = upsample(scores, (7, 7), (14, 14)).argmax(dim=0) == len(scores) - 1
            assert 0 < target.sum() < target.numel()
            found.append(replace(example, target=target.float()))
        tuning = tuning_of(blip, found, replace(SURE, visual_prompt=unlike), words=("cat dog",))
        assert tuning.example_iou(adapted=False) == pytest.approx(1)
        assert DIRECTION not in tuning.adapted()

    @pytest.mark.parametrize("interpolation", [0.0, 0.25, 1.0])
    def test_the_adapter_goes_a_part_of_the_way(self, blip: Blip, shots: list[Shot], interpolation: float) -> None:
        tuning = tuning_of(blip, shots, replace(RECIPE, interpolation=interpolation, rank=None))
        base = blip.trainable(LAYERS, blip.tokenize(["dog"]))
        tuning.step()
        for name, tensor in tuning.adapted().items():
            tuned = tuning.parameters[name].detach()
            torch.testing.assert_close(tensor.float(), base[name] + interpolation * (tuned - base[name]))

    def test_an_adapter_keeps_half_precision_copies(self, blip: Blip, shots: list[Shot]) -> None:
        tuning = tuning_of(blip, shots)
        tuning.step()
        kept = tuning.tensors()
        copies = {name: tensor.clone() for name, tensor in kept.items()}
        tuning.step()
        assert {tensor.dtype for tensor in kept.values()} == {torch.float16, torch.int64}
        assert not any(tensor.requires_grad for tensor in kept.values())
        assert all(torch.equal(kept[name], copies[name]) for name in kept)

    def test_examples_take_turns(self, blip: Blip, shots: list[Shot]) -> None:
        turns = tuning_of(blip, shots, replace(RECIPE, shots_per_step=2))._turns()
        assert list(itertools.islice(turns, 4)) == [[0, 1], [2, 0], [1, 2], [0, 1]]
        turns = tuning_of(blip, shots, replace(RECIPE, shots_per_step=5))._turns()
        assert list(itertools.islice(turns, 2)) == [[0, 1, 2], [0, 1, 2]]

    def test_layers_are_averaged_unless_their_weights_are_learned(self, blip: Blip, shots: list[Shot]) -> None:
        averaged, learned = tuning_of(blip, shots), tuning_of(blip, shots, replace(RECIPE, learned_ensemble=True))
        for _ in range(5):
            averaged.step()
            learned.step()
        assert averaged.ensemble == (0.5, 0.5)
        assert sum(learned.ensemble) == pytest.approx(1)
        assert abs(learned.ensemble[0] - 0.5) > 0.01

    def test_the_same_example_gives_the_same_adapter(self, blip: Blip, shots: list[Shot]) -> None:
        first, second = tuning_of(blip, shots), tuning_of(blip, shots)
        assert [first.step() for _ in range(3)] == [second.step() for _ in range(3)]

    @pytest.mark.parametrize("share", [0.0, 1.0])
    @pytest.mark.parametrize("balanced", [False, True])
    def test_a_mask_of_nothing_or_everything_gives_numbers(
        self, blip: Blip, shots: list[Shot], share: float, balanced: bool
    ) -> None:
        example = replace(shots[0], target=torch.full_like(shots[0].target, share))
        tuning = tuning_of(blip, [example], replace(RECIPE, balanced=balanced))
        tuning.step()
        assert all(bool(torch.isfinite(tensor).all()) for tensor in tuning.parameters.values())

    def test_no_example_is_refused(self, blip: Blip) -> None:
        with pytest.raises(ValueError, match="at least one shot"):
            tuning_of(blip, [])


class TestAllClassesAtOnce:
    """The numbers are the authors' in `test_golden.py`; here is what those cases don't show."""

    @pytest.fixture
    def tuning(self, blip: Blip) -> JointTuning:
        prompts = prompt_set(BACKGROUND, [["dog"], ["cat", "kitten"]])
        return JointTuning(
            blip,
            [image_tokens_of(blip, seed) for seed in range(3)],
            [labels(), 2 * labels().clamp_max(1), labels()],
            text=blip.tokenize(prompts.words),
            prompts=prompts,
            layers=LAYERS,
            recipe=replace(PAPER_RECIPE, learning_rate=2e-3),
        )

    def test_the_loss_falls_and_the_base_model_stays(self, blip: Blip, tuning: JointTuning) -> None:
        before = weights_of(blip)
        losses = [list(tuning.epoch()) for _ in range(5)]
        assert [len(epoch) for epoch in losses] == [2] * 5  # 3 supports, 2 per step
        assert sum(losses[-1]) < sum(losses[0])
        assert all(torch.equal(tensor, before[name]) for name, tensor in blip._model.state_dict().items())

    def test_the_class_map_is_of_probabilities(self, blip: Blip, tuning: JointTuning) -> None:
        list(tuning.epoch())
        maps = tuning.class_map(tuning.image_tokens[0], tuning.text, tuning.prompts)
        assert maps.shape == (3, 112, 112)
        assert not maps.requires_grad
        torch.testing.assert_close(maps.sum(dim=0), torch.ones(112, 112))


class TestMemory:
    """What the examples look like is kept for a mask decoder, and only for one."""

    @pytest.fixture
    def example(self, embedded) -> Shot:
        rgb = 0.5 * torch.rand(3, 384, 384, generator=torch.Generator().manual_seed(0))
        rgb[0, :160, :224] += 0.5
        labels = torch.zeros(384, 384, dtype=torch.long)
        labels[:160, :224] = 1
        return shot(embedded, embedded.encode_image(rgb[None])[0], labels, label_scale=2)

    def tuning(self, embedded, example: Shot, **how: object) -> CategoryTuning:
        recipe = replace(RECIPE, **how)
        return CategoryTuning(
            embedded, [example], ["gribble"], background=BACKGROUND, layers=embedded.default_layers, recipe=recipe
        )

    def test_with_a_mask_decoder(self, embedded, example: Shot) -> None:
        tuning = self.tuning(embedded, example, visual_prompt=Prior())
        assert set(MEMORY) <= set(tuning.tensors())
        assert DIRECTION not in tuning.tensors()
        # A word that means nothing, and a patch of red: it is found by its looks.
        assert tuning.example_iou(adapted=True) > tuning.example_iou(adapted=False) + 0.3

    def test_the_paper_has_none(self, embedded, example: Shot) -> None:
        assert not set(MEMORY) & set(self.tuning(embedded, example, memory=False).tensors())

    def test_without_a_mask_decoder(self, blip: Blip, shots: list[Shot]) -> None:
        assert not set(MEMORY) & set(tuning_of(blip, shots).tensors())

    def test_looks_do_not_change_with_the_steps(self, embedded, example: Shot) -> None:
        tuning = self.tuning(embedded, example)
        before = tuning.adapted()
        tuning.step()
        after = tuning.adapted()
        assert all(torch.equal(before[name], after[name]) for name in set(MEMORY) - {FACTS})

    def test_parameters_that_do_harm_are_left_out_and_the_looks_stay(self, embedded) -> None:
        """The words know a cat; a few steps at an absurd rate ruin that."""
        with Image.open(EXAMPLES / "chelsea.jpg") as photo, Image.open(EXAMPLES / "chelsea_mask.png") as mask:
            rgb, frame = embedded.preprocess(np.array(photo.convert("RGB")))
            marked = (np.array(mask.convert("L")) > 0).astype(np.uint8)
        labels = torch.from_numpy(labels_to_input(marked, frame, outside=IGNORE)).long()
        cat = shot(embedded, encode(embedded, rgb), labels, label_scale=2)
        recipe = replace(
            RECIPE, learning_rate=1.0, interpolation=1.0, learned_ensemble=True, ensemble_learning_rate=1.0
        )
        tuning = CategoryTuning(
            embedded, [cat], ["cat"], background=BACKGROUND, layers=embedded.default_layers, recipe=recipe
        )
        assert set(MEMORY) < set(tuning.tensors())
        for _ in range(3):
            tuning.step()
        assert set(tuning.tensors()) == set(MEMORY)
        assert tuning.ensemble == pytest.approx((0.5, 0.5))
        assert tuning.example_iou(adapted=True) > 0.8
