"""Many adapters in one pass, or many passes: each prompt sees what it would see alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from app.method.example_memory import FACTS
from torch import Tensor

from app.backbones.blip import Blip
from app.method import evidence
from app.method.adapter import TOKEN_IDS, TOKEN_ROWS
from app.method.backbone import TextToImage, TextTokens
from app.method.evidence import Query, batches, prompt_evidence, stack
from tests.models import random_adapter

LAYERS = (0, 3)


@pytest.fixture(scope="module")
def image_tokens(blip: Blip) -> Tensor:
    return blip.encode_image(torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(5)))[0]


@pytest.fixture(scope="module")
def groups(blip: Blip) -> list[Query]:
    """The background, two adapters that fit into one pass, and four groups that each need something else."""
    dog = random_adapter(blip, "dog", seed=1)
    track = random_adapter(blip, "railway track in fog", seed=2)  # replaces more rows
    cat = random_adapter(blip, "cat", "kitten", "tom", seed=3)
    tree = random_adapter(blip, "tree", layers=(1, 3), seed=4)
    useless = random_adapter(blip, "sea", tensors={})  # its words alone were better
    return [
        Query(("sky", "a very long word for a wall", "grass")),
        Query(dog.prompts, dog),
        Query(("hill", "mountain")),
        Query(cat.prompts, cat),
        Query(track.prompts, track),
        Query(useless.prompts, useless),
        Query(tree.prompts, tree),
    ]


def alone(blip: Blip, image_tokens: Tensor, groups: Sequence[Query]) -> tuple[Tensor, Tensor]:
    found = [prompt_evidence(blip, image_tokens, [group], LAYERS) for group in groups]
    return torch.cat([one.patch_logits for one in found], dim=1), torch.cat([one.match_score for one in found])


def test_together_each_group_is_as_alone(blip: Blip, image_tokens: Tensor, groups: list[Query]) -> None:
    found = prompt_evidence(blip, image_tokens, groups, LAYERS)
    logits, match = alone(blip, image_tokens, groups)
    assert found.patch_logits.shape == (2, 12, 49)
    assert found.spans == ((0, 3), (3, 4), (4, 6), (6, 9), (9, 10), (10, 11), (11, 12))
    torch.testing.assert_close(found.patch_logits, logits, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.match_score, match, rtol=0, atol=1e-5)


def test_how_examples_look_is_no_concern_of_the_prompts(blip: Blip, image_tokens: Tensor) -> None:
    memory, background, dog = {FACTS: torch.ones(3)}, Query(("sky",)), random_adapter(blip, "dog")
    for tensors in (dog.tensors, {}):
        plain, with_it = (replace(dog, tensors=both) for both in (tensors, {**tensors, **memory}))
        assert plain.form == with_it.form
        found, same = (
            prompt_evidence(blip, image_tokens, [background, Query(("dog",), one)], LAYERS) for one in (with_it, plain)
        )
        assert torch.equal(found.patch_logits, same.patch_logits)


@pytest.mark.parametrize("prompts_per_pass", [1, 2, 3, 5])
def test_small_passes_change_nothing(
    blip: Blip, image_tokens: Tensor, groups: list[Query], monkeypatch: pytest.MonkeyPatch, prompts_per_pass: int
) -> None:
    at_once = prompt_evidence(blip, image_tokens, groups, LAYERS)
    monkeypatch.setattr(evidence, "PROMPTS_PER_PASS", prompts_per_pass)
    assert len(batches(groups)) > 4
    in_parts = prompt_evidence(blip, image_tokens, groups, LAYERS)
    torch.testing.assert_close(in_parts.patch_logits, at_once.patch_logits, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(in_parts.match_score, at_once.match_score, rtol=0, atol=1e-5)


def test_an_adapter_changes_its_own_prompts_only(blip: Blip, image_tokens: Tensor, groups: list[Query]) -> None:
    adapted = prompt_evidence(blip, image_tokens, groups, LAYERS).patch_logits
    plain = prompt_evidence(blip, image_tokens, [Query(group.words) for group in groups], LAYERS).patch_logits
    change = (adapted - plain).abs().amax(dim=(0, 2))
    taught = torch.tensor([False] * 3 + [True] + [False] * 2 + [True] * 3 + [True] + [False] + [True])
    assert bool((change[taught] > 0.1).all())
    assert bool((change[~taught] < 1e-4).all())


def test_a_pass_holds_groups_of_one_kind(groups: list[Query]) -> None:
    assert batches(groups) == [[0, 2, 5], [1, 4], [3], [6]]


def test_a_thousand_categories_go_in_passes_of_bounded_size(blip: Blip) -> None:
    dog = random_adapter(blip, "dog", "hound", "puppy")
    passes = batches([Query(("sky",)), *[Query(dog.prompts, dog)] * 1000])
    assert sorted(index for members in passes for index in members) == list(range(1001))
    assert [len(members) for members in passes] == [1, *[42] * 23, 34]  # 42 · 3 = 126 of at most 128


def test_a_group_larger_than_a_pass_gets_one_of_its_own() -> None:
    assert batches([Query(("sky",)), Query(("word",) * 131), Query(("wall",))]) == [[0], [1], [2]]


def test_a_thousand_words_for_the_background_go_in_parts(
    blip: Blip, image_tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = [Query(tuple(f"thing {number}" for number in range(131))), Query(("dog",))]
    sizes, attend = [], blip.attend

    def counted(tokens: Tensor, text: TextTokens, **how: object) -> TextToImage:
        sizes.append(len(text.attention_mask))
        return attend(tokens, text, **how)

    monkeypatch.setattr(blip, "attend", counted)
    in_parts = prompt_evidence(blip, image_tokens, groups, LAYERS)
    assert sizes == [128, 3, 1]
    monkeypatch.setattr(evidence, "PROMPTS_PER_PASS", 131)
    at_once = prompt_evidence(blip, image_tokens, groups, LAYERS)
    torch.testing.assert_close(in_parts.patch_logits, at_once.patch_logits, rtol=1e-5, atol=1e-4)
    assert in_parts.spans == at_once.spans


def test_shorter_lists_of_tokens_are_padded_with_one_that_matches_nothing(blip: Blip) -> None:
    short, long = random_adapter(blip, "dog"), random_adapter(blip, "railway track")
    stacked = stack([short, long])
    assert stacked is not None
    # [CLS] image of dog . [SEP], and one more for the second word; in the order of the vocabulary.
    assert stacked[TOKEN_IDS].tolist() == [
        [*short.tensors[TOKEN_IDS].tolist(), -1],
        long.tensors[TOKEN_IDS].tolist(),
    ]
    assert stacked[TOKEN_ROWS].shape == (2, 7, 21)
    assert stacked[TOKEN_ROWS][0, 6].abs().sum() == 0


def test_no_adapter_stacks_to_nothing() -> None:
    assert stack([]) is None
