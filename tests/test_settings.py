"""Variables of the environment that look like settings and are none."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from app.settings import Settings, unknown_variables


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("EXEMPLAR_PORTT", "EXEMPLAR_PORT"),
        ("EXEMPLAR_REDIS_URI", "EXEMPLAR_REDIS_URL"),
        ("EXEMPLAR_API_KEY", "EXEMPLAR_API_KEYS"),
        ("exemplar_backbones", "EXEMPLAR_BACKBONE"),
    ],
)
def test_a_slip_is_named_with_the_setting_that_is_meant(given: str, meant: str) -> None:
    assert unknown_variables({given: "4"}) == [f"{given.upper()} is no setting and has no effect: is {meant} meant?"]


def test_a_name_that_is_like_no_setting() -> None:
    assert unknown_variables({"EXEMPLAR_ZZZ": "1"}) == ["EXEMPLAR_ZZZ is no setting and has no effect."]


def test_settings_and_variables_of_other_programs_are_expected() -> None:
    settings = {f"EXEMPLAR_{name.upper()}": "1" for name in Settings.model_fields}
    others = {"EXEMPLAR_URL": "1", "EXEMPLAR_API_KEY": "1", "EXEMPLAR_MODELS": "1", "PATH": "1", "MY_EXEMPLAR_X": "1"}
    assert unknown_variables(settings | others) == []


def test_an_empty_variable_counts_as_not_set() -> None:
    assert unknown_variables({"EXEMPLAR_PORTT": "", "EXEMPLAR_API_KEYS": "", "EXEMPLAR_API_KEY": "x"}) == [
        "EXEMPLAR_API_KEY is no setting and has no effect: is EXEMPLAR_API_KEYS meant?"
    ]


@pytest.mark.parametrize("path", ["exemplar", "/exemplar/", "/", "//a", "/a b", "/a?b", "https://host/a"])
def test_a_prefix_is_a_path_without_a_slash_at_its_end(path: str) -> None:
    with pytest.raises(ValidationError, match="without a slash at its end"):
        Settings(root_path=path)
    assert Settings(root_path="/team/exemplar-2").root_path == "/team/exemplar-2"
