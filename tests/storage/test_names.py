"""Names of categories: what is a name, how it is stored, and which names are the same."""

from __future__ import annotations

import pytest

from app.errors import InvalidInputError
from app.storage import keys
from app.storage.names import CategoryName, other_words, parse_names


def texts(names: tuple[CategoryName, ...]) -> list[str]:
    return [name.text for name in names]


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("cat", "cat"),
        ("  fire  truck\t", "fire  truck"),
        ("Fu\N{COMBINING DIAERESIS}ße", "Füße"),
        ("猫", "猫"),
        ("...", "..."),
        (".cat", ".cat"),
        ("👩‍🚒", "👩‍🚒"),
        ("é" * 64, "é" * 64),
        ("e\N{COMBINING ACUTE ACCENT}" * 64, "é" * 64),
        (" " * 1000 + "α\u0313\u0300\u0345" * 64, "\u1f82" * 64),  # no character has more parts
    ],
)
def test_names(given: str, stored: str) -> None:
    assert CategoryName.parse(given).text == stored


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        " ..\t",
        "a/b",
        "a\nb",
        "\0",
        "a\x9f",
        "x" * 65,
        "e" + "\u0315\u0300" * 100_000,
        "\ud800",
        "a\N{REPLACEMENT CHARACTER}",
    ],
)
def test_no_names(name: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        CategoryName.parse(name, field="prompts")
    assert refused.value.field == "prompts"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("\N{ZERO WIDTH SPACE}", "visible"),
        ("\N{HANGUL FILLER} \N{ZERO WIDTH JOINER}", "visible"),
        ("\N{VARIATION SELECTOR-16}", "visible"),
        ("\N{RIGHT-TO-LEFT OVERRIDE}tac", "direction"),
        ("\N{RIGHT-TO-LEFT ISOLATE}cat\N{POP DIRECTIONAL ISOLATE}", "direction"),
    ],
    ids=ascii,
)
def test_names_that_nobody_can_tell_apart_are_not_given_any_more(name: str, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        CategoryName.parse(name).check_new()


@pytest.mark.parametrize("name", ["cat", "חתול", "👩‍🚒", "می‌خواهم", "a\N{LEFT-TO-RIGHT MARK}", "❤️", "\U0001fae9"])
def test_names_of_every_script_are_given(name: str) -> None:
    CategoryName.parse(name).check_new()


def test_each_name_once_where_it_came_first() -> None:
    names = parse_names(["dog", "Cat", "DOG", "cat", "bird"], field="categories", limit=5)
    assert texts(names) == ["dog", "Cat", "bird"]
    with pytest.raises(InvalidInputError, match="EXEMPLAR_MAX_CATEGORIES"):
        parse_names(["a"] * 6, field="categories", limit=5)


def test_other_words_leave_out_the_name() -> None:
    words = map(CategoryName, ["kitten", "CAT", "Kitten", "tomcat"])
    assert texts(other_words(words, CategoryName("cat"))) == ["kitten", "tomcat"]


def test_spellings_of_one_name_are_equal_and_keep_their_texts() -> None:
    one, other = CategoryName("Füße"), CategoryName("FÜSSE")
    assert one == other
    assert hash(one) == hash(other)
    assert one.id == keys.category_id("füße")
    assert texts((one, other)) == ["Füße", "FÜSSE"]
    assert one != CategoryName("Fuß")
