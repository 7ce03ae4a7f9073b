"""Store keys: one per name, and no name can address the keys of another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.storage import keys

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Cat", "cAT"),
        ("Füße", "FÜSSE"),
        ("Fu\N{COMBINING DIAERESIS}ße", "füße"),
        ("\N{KELVIN SIGN}", "k"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("\N{LATIN SMALL LETTER DOTLESS I}", "\N{LATIN SMALL LETTER DOTLESS I}"),
    ],
)
def test_spellings_of_one_name(one: str, other: str) -> None:
    assert keys.category_id(one) == keys.category_id(other)


@pytest.mark.parametrize(("one", "other"), [("cat", "cats"), ("猫", "描"), ("a b", "ab"), ("a+b", "a b"), ("ı", "i")])
def test_different_names(one: str, other: str) -> None:
    assert keys.category_id(one) != keys.category_id(other)


@given(names)
def test_an_id_has_no_sign_that_keys_are_built_with(name: str) -> None:
    assert not set(keys.category_id(name)) & set(":{}*?[]/ \n")
    assert keys.category_id(name).isascii()


@given(names, names)
def test_keys_of_two_names_never_meet(one: str, other: str) -> None:
    if keys.category_id(one) == keys.category_id(other):
        return
    builders = (keys.category, keys.counters, keys.example_ids, keys.versions)
    first, second = ({build(keys.category_id(name)) for build in builders} for name in (one, other))
    assert not first & second
