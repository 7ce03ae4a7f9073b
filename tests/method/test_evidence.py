"""Many adapters in one pass or in several: every prompt gets the same result as alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.backbones.blip import Blip
from app.method import evidence
from app.method.backbone import EncodedImage, TextToImage, TextTokens
from app.method.evidence import Evidence, batches, layer_weights, patch_logits, prompt_evidence, usable
from app.method.low_rank import factorised
from app.method.parameters import ExampleMemory
from app.method.prompts import Prompts, Query
from app.method.scores import LayerWeights, ScoreMap
from tests.models import random_adapter

LAYERS = (0, 3)


@pytest.fixture(scope="module")
def image(blip: Blip) -> EncodedImage:
    return blip.encode_image(torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(5)))[0]


def test_the_sum_over_tokens_is_not_rounded() -> None:
    """Where the network computes in bfloat16, which has no number between 240 and 241."""
    logits = torch.tensor([80.0, 80.0, 80.5], dtype=torch.bfloat16).view(1, 1, 3, 1)
    seen = TextToImage({0: logits}, torch.ones(1))
    assert patch_logits(seen, torch.ones(1, 3, dtype=torch.long), (0,)).item() == 240.5


@pytest.fixture(scope="module")
def groups(blip: Blip) -> list[Query]:
    """The background, two adapters that fit into one pass, and four groups that each need something else."""
    dog = random_adapter(blip, "dog", seed=1)
    track = random_adapter(blip, "railway track in fog", seed=2)  # replaces more rows
    cat = random_adapter(blip, "cat", "kitten", "tom", seed=3)
    tree = random_adapter(blip, "tree", layers=(1, 3), seed=4)
    useless = replace(random_adapter(blip, "sea"), parameters=None, visual_prompt=None)  # its words alone were better
    return [
        Query(("sky", "a very long word for a wall", "grass")),
        Query(dog.prompts, dog),
        Query(("hill", "mountain")),
        Query(cat.prompts, cat),
        Query(track.prompts, track),
        Query(useless.prompts, useless),
        Query(tree.prompts, tree),
    ]


def alone(blip: Blip, image: EncodedImage, groups: Sequence[Query]) -> tuple[Tensor, Tensor]:
    found = [prompt_evidence(blip, image, Prompts((group,)), LAYERS) for group in groups]
    return torch.cat([one.patch_logits for one in found], dim=1), torch.cat([one.match_score for one in found])


def test_together_each_group_is_as_alone(blip: Blip, image: EncodedImage, groups: list[Query]) -> None:
    found = prompt_evidence(blip, image, Prompts(tuple(groups)), LAYERS)
    logits, match = alone(blip, image, groups)
    assert found.patch_logits.shape == (2, 12, 49)
    assert found.spans == ((0, 3), (3, 4), (4, 6), (6, 9), (9, 10), (10, 11), (11, 12))
    torch.testing.assert_close(found.patch_logits, logits, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.match_score, match, rtol=0, atol=1e-5)


def test_an_example_memory_is_no_concern_of_the_prompts(blip: Blip, image: EncodedImage) -> None:
    directions, shares = torch.ones(2, 5), torch.ones(2)
    memory = ExampleMemory(directions, shares, directions, shares, directions, shares, torch.ones(3))
    dog = random_adapter(blip, "dog")
    for plain in (dog, replace(dog, parameters=None, visual_prompt=None)):
        with_it = replace(plain, memory=memory)
        assert plain.form == with_it.form
        found, same = (
            prompt_evidence(blip, image, Prompts((Query(("sky",)), Query(("dog",), one))), LAYERS)
            for one in (with_it, plain)
        )
        assert torch.equal(found.patch_logits, same.patch_logits)


def test_a_visual_prompt_is_added_to_every_layer_and_synonym_of_its_category(blip: Blip, image: EncodedImage) -> None:
    cat = random_adapter(blip, "cat", "kitten", seed=3)
    assert cat.visual_prompt is not None
    with_it, without = (
        prompt_evidence(blip, image, Prompts((Query(("sky",)), Query(cat.prompts, one))), LAYERS)
        for one in (cat, replace(cat, visual_prompt=None))
    )
    unit = torch.nn.functional.normalize(blip.patch_features(image), dim=1)
    added = unit @ cat.visual_prompt.direction + cat.visual_prompt.bias
    torch.testing.assert_close(with_it.patch_logits[:, :1], without.patch_logits[:, :1])
    torch.testing.assert_close(with_it.patch_logits[:, 1:], without.patch_logits[:, 1:] + added, rtol=1e-5, atol=1e-4)


@pytest.fixture(scope="module")
def pool(blip: Blip) -> list[Query]:
    """Adapters of two ranks and without, with one to three prompts, some of them long."""
    made = []
    names = (("dog",), ("cat", "kitten"), ("q" * 64,), ("狗" * 64, "tom"), ("fog in the sea",), ("狗" * 30,))
    for seed, words in enumerate(names):
        adapter = random_adapter(blip, *words, seed=seed)
        base = blip.trainable(LAYERS, blip.tokenize(words))
        few = [replace(adapter, parameters=factorised(adapter.parameters, base, rank)) for rank in (1, 3)]
        made += [Query(words, one) for one in (adapter, *few)]
    return made


NAMES = st.lists(st.sampled_from(["sky", "sea", "a very long word for a wall", "狗" * 64]), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None)
@given(
    asked=st.lists(st.one_of(NAMES, st.integers(0, 17)), max_size=6),
    bounds=st.tuples(st.integers(1, 8), st.integers(1, 200), st.integers(1, 100_000)),
)
def test_each_prompt_is_as_alone_whatever_the_bounds_of_a_pass(
    blip: Blip, image: EncodedImage, pool: list[Query], asked: list[list[str] | int], bounds: tuple[int, int, int]
) -> None:
    groups = [Query(("sky",)), *(pool[one] if isinstance(one, int) else Query(tuple(one)) for one in asked)]
    with pytest.MonkeyPatch.context() as patched:
        for name, bound in zip(("PROMPTS_PER_PASS", "TOKENS_PER_PASS", "ADAPTER_BYTES_PER_PASS"), bounds, strict=True):
            patched.setattr(evidence, name, bound)
        found = prompt_evidence(blip, image, Prompts(tuple(groups)), LAYERS)
    logits, match = alone(blip, image, groups)
    torch.testing.assert_close(found.patch_logits, logits, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(found.match_score, match, rtol=0, atol=1e-5)


def test_an_adapter_changes_its_own_prompts_only(blip: Blip, image: EncodedImage, groups: list[Query]) -> None:
    adapted = prompt_evidence(blip, image, Prompts(tuple(groups)), LAYERS).patch_logits
    plain = prompt_evidence(blip, image, Prompts(tuple(Query(group.words) for group in groups)), LAYERS).patch_logits
    change = (adapted - plain).abs().amax(dim=(0, 2))
    taught = torch.tensor([False] * 3 + [True] + [False] * 2 + [True] * 3 + [True] + [False] + [True])
    assert bool((change[taught] > 0.1).all())
    assert bool((change[~taught] < 1e-4).all())


def test_a_pass_holds_parts_of_one_kind(groups: list[Query]) -> None:
    parts = [Query(("sky",)), Query(("sea",)), *groups[1:2], Query(("hill",)), groups[3], groups[4], groups[6]]
    assert batches(parts, [6] * 7) == [[0, 1, 3], [2, 5], [4], [6]]


def test_a_thousand_categories_go_in_passes_of_bounded_size(blip: Blip) -> None:
    dog = random_adapter(blip, "dog", "hound", "puppy")
    passes = batches([Query(("sky",)), *[Query(dog.prompts, dog)] * 1000], [6] * 1001)
    assert sorted(index for members in passes for index in members) == list(range(1001))
    assert [len(members) for members in passes] == [1, *[42] * 23, 34]  # 42 · 3 = 126 of at most 128


def test_one_long_name_pads_no_other(blip: Blip) -> None:
    words, dog = Query(("word",)), random_adapter(blip, "dog")
    taught = Query(("dog",), dog)
    for part in (words, taught):
        assert batches([part] * 128, [16] * 128) == [list(range(128))]  # as long as names are short
        assert batches([part] * 128, [6] * 63 + [69] + [6] * 64) == [[*range(63), *range(64, 128)], [63]]
        assert [len(members) for members in batches([part] * 100, [69] * 100)] == [29, 29, 29, 13]  # 29 · 69 = 2001


def test_adapters_of_one_pass_have_bounded_bytes(blip: Blip, monkeypatch: pytest.MonkeyPatch) -> None:
    dog = random_adapter(blip, "dog")
    size = sum(tensor.nbytes for tensor in dog.parameters.trained)
    monkeypatch.setattr(evidence, "ADAPTER_BYTES_PER_PASS", 3 * size)
    assert [len(members) for members in batches([Query(("dog",), dog)] * 7, [6] * 7)] == [3, 3, 1]
    monkeypatch.setattr(evidence, "ADAPTER_BYTES_PER_PASS", size - 1)
    assert [len(members) for members in batches([Query(("dog",), dog)] * 2, [6] * 2)] == [1, 1]


def test_passes_are_as_few_and_as_short_as_the_words_allow(
    blip: Blip, image: EncodedImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = [Query(tuple(f"thing {number}" for number in range(131))), Query(("狗" * 64,)), Query(("dog",))]
    shapes, attend = [], blip.attend

    def counted(tokens: Tensor, text: TextTokens, **how: object) -> TextToImage:
        shapes.append(tuple(text.attention_mask.shape))
        return attend(tokens, text, **how)

    monkeypatch.setattr(blip, "attend", counted)
    in_parts = prompt_evidence(blip, image, Prompts(tuple(groups)), LAYERS)
    assert shapes == [(128, 7), (5, 69)]  # "dog" has 6 tokens, "thing 100" has 7
    monkeypatch.setattr(evidence, "PROMPTS_PER_PASS", 133)
    monkeypatch.setattr(evidence, "TOKENS_PER_PASS", 133 * 69)
    at_once = prompt_evidence(blip, image, Prompts(tuple(groups)), LAYERS)
    assert shapes[2:] == [(133, 69)]
    torch.testing.assert_close(in_parts.patch_logits, at_once.patch_logits, rtol=1e-5, atol=1e-3)
    assert in_parts.spans == at_once.spans


class TestLayerWeights:
    """Each class reads its own layers, with the weights of its adapter."""

    def test_a_class_without_adapter_averages_the_chosen_layers_and_an_adapter_brings_its_own(self, blip: Blip) -> None:
        taught = Query(("dog",), random_adapter(blip, "dog", layers=(1, 3), ensemble=(0.25, 0.75)))
        found = layer_weights([Query(("sky",)), taught, Query(("cat",))], chosen=(0, 3))
        assert found.layers == (0, 1, 3)
        assert found.weights.tolist() == [[0.5, 0, 0.5], [0, 0.25, 0.75], [0.5, 0, 0.5]]

    def test_layers_are_named_once_and_in_order(self) -> None:
        assert layer_weights([Query(("sky",))], chosen=(3, 0)).layers == (0, 3)


class TestClassScores:
    # The background (1 prompt) and a category (2 synonyms) at 1 patch of 2 layers.
    EVIDENCE = Evidence(
        patch_logits=torch.tensor([[[math.log(2)], [0.0], [0.0]], [[0.0], [math.log(3)], [0.0]]]),
        match_score=torch.tensor([1.0, 0.4, 0.8]),
        spans=((0, 1), (1, 3)),
    )
    # Layer 0: softmax (1/2, 1/4, 1/4) · match = (0.5, 0.1, 0.2); layer 3: (1/5, 3/5, 1/5) · match = (0.2, 0.24, 0.16).

    def test_layer_by_layer_by_hand(self) -> None:
        first, second = self.EVIDENCE.by_layer()
        assert first.flatten().tolist() == pytest.approx([0.5, 0.2])
        assert second.flatten().tolist() == pytest.approx([0.2, 0.24])

    def test_layers_are_mixed_by_hand(self) -> None:
        weights = LayerWeights(layers=(0, 3), weights=torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
        expected = torch.tensor([[0.5 * 0.5 + 0.5 * 0.2], [0.25 * 0.2 + 0.75 * 0.24]])
        assert torch.allclose(self.EVIDENCE.class_scores(weights), expected)

    def test_a_match_score_is_that_of_the_best_synonym_and_the_background_has_none(self) -> None:
        assert self.EVIDENCE.best_match().tolist() == pytest.approx([0.8])

    def test_mixing_before_upsampling_equals_mixing_after(self) -> None:
        generator = torch.Generator().manual_seed(0)
        evidence = Evidence(
            patch_logits=torch.randn(3, 5, 6, generator=generator),
            match_score=torch.rand(5, generator=generator),
            spans=((0, 2), (2, 4), (4, 5)),
        )
        mix = torch.rand(3, 3, generator=generator).softmax(dim=1)
        before = pixels(evidence, LayerWeights((0, 1, 2), mix))
        after = torch.zeros(3, 11, 13)
        for layer in range(3):
            alone = LayerWeights((layer,), torch.ones(3, 1))
            one = Evidence(evidence.patch_logits[[layer]], evidence.match_score, evidence.spans)
            after += mix[:, layer, None, None] * pixels(one, alone)
        assert torch.allclose(before, after, atol=1e-6)


def pixels(seen: Evidence, weights: LayerWeights) -> Tensor:
    return ScoreMap(seen.class_scores(weights), (2, 3), align_corners=True).at((11, 13))


@pytest.mark.parametrize("value", [math.nan, 3e4])
def test_an_adapter_of_absurd_numbers_costs_its_own_category_alone(
    blip: Blip, image: EncodedImage, groups: list[Query], value: float
) -> None:
    broken = random_adapter(blip, "cat", "kitten", "tom")
    broken = replace(broken, parameters=broken.parameters.map(lambda tensor: torch.full_like(tensor, value)))
    among = [*groups[:3], Query(broken.prompts, broken), *groups[4:]]
    found = prompt_evidence(blip, image, Prompts(tuple(among)), LAYERS)
    assert found.unusable == (3,)
    words = [*groups[:3], Query(broken.prompts), *groups[4:]]
    expected = prompt_evidence(blip, image, Prompts(tuple(words)), LAYERS)
    torch.testing.assert_close(found.patch_logits, expected.patch_logits, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.match_score, expected.match_score, rtol=0, atol=1e-5)
    assert not usable(broken, blip, image)
    assert usable(groups[1].adapter, blip, image)
