"""Words become prompts, and prompts know their class."""

from __future__ import annotations

import pytest

from app.method.prompts import BACKGROUND_WORDS, PromptSet, free_background, phrase, prompt_set


def test_the_text_tower_reads_a_sentence() -> None:
    assert phrase("railway track") == "Image of railway track."


def test_the_background_is_the_authors_list_for_pascal() -> None:
    assert len(set(BACKGROUND_WORDS)) == len(BACKGROUND_WORDS) == 29


def test_prompts_lie_in_order_and_spans_are_half_open() -> None:
    assert prompt_set(["sky", "wall"], [["dog"], ["cat", "kitten", "tom"]]) == PromptSet(
        words=("sky", "wall", "dog", "cat", "kitten", "tom"), spans=((0, 2), (2, 3), (3, 6))
    )


def test_a_photo_may_be_asked_for_nothing_but_the_background() -> None:
    assert prompt_set(["sky"], []).spans == ((0, 1),)


@pytest.mark.parametrize(("background", "categories"), [([], [["dog"]]), (["sky"], [["dog"], []])])
def test_a_class_without_a_word_is_refused(background: list[str], categories: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="at least one word"):
        prompt_set(background, categories)


def test_a_background_word_that_names_a_category_leaves() -> None:
    assert free_background(("sky", "bed", "Railway Track"), ["BED", "railway track"]) == ("sky",)


def test_a_background_word_given_twice_is_asked_once() -> None:
    assert free_background(("sky", "wall", "sky"), ["dog"]) == ("sky", "wall")


def test_the_softmax_always_has_an_alternative() -> None:
    assert free_background(("bed",), ["bed"]) == ("background",)
