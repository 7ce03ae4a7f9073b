"""Words become prompts, and every prompt is assigned to its class."""

from __future__ import annotations

import pytest

from app.method.prompts import BACKGROUND_WORDS, Prompts, Query, free_background, phrase


def test_the_text_tower_reads_a_sentence() -> None:
    assert phrase("railway track") == "Image of railway track."


def test_the_background_is_the_authors_list_for_pascal() -> None:
    assert len(set(BACKGROUND_WORDS)) == len(BACKGROUND_WORDS) == 29


def test_prompts_lie_in_order_and_spans_are_half_open() -> None:
    prompts = Prompts.of([Query(("dog",)), Query(("cat", "kitten", "tom"))], ["sky", "wall"])
    assert prompts.words == ("sky", "wall", "dog", "cat", "kitten", "tom")
    assert prompts.spans == ((0, 2), (2, 3), (3, 6))


def test_the_background_comes_first_and_every_query_stays_as_it_was() -> None:
    queries = (Query(("dog",)), Query(("cat", "kitten")))
    assert Prompts.of(queries, ["sky"]).queries == (Query(("sky",)), *queries)


def test_a_photo_may_be_asked_for_nothing_but_the_background() -> None:
    assert Prompts.of([], ["sky"]).spans == ((0, 1),)
    assert Prompts.of([]).words == BACKGROUND_WORDS


@pytest.mark.parametrize("queries", [(), (Query(()), Query(("dog",))), (Query(("sky",)), Query(("dog",)), Query(()))])
def test_a_class_without_a_word_is_refused(queries: tuple[Query, ...]) -> None:
    with pytest.raises(ValueError, match="at least one word"):
        Prompts(queries)


def test_a_category_without_a_word_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one word"):
        Prompts.of([Query(("dog",)), Query(())], ["sky"])


def test_a_background_word_that_names_a_category_leaves() -> None:
    assert free_background(("sky", "bed", "Railway Track"), ["BED", "railway track"]) == ("sky",)


def test_a_synonym_or_another_categorys_word_leaves_the_background_too() -> None:
    prompts = Prompts.of([Query(("cot", "bed"))], ("sky", "bed", "wall"), taken=["Wall"])
    assert prompts.queries == (Query(("sky",)), Query(("cot", "bed")))


def test_a_background_word_given_twice_is_asked_once() -> None:
    assert free_background(("sky", "wall", "Sky", "sky"), ["dog"]) == ("sky", "wall")


def test_the_softmax_always_has_an_alternative() -> None:
    assert free_background(("bed",), ["bed"]) == ("background",)
    assert Prompts.of([Query(("dog",))], []).queries[0].words == ("background",)
