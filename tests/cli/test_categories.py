"""Commands that show and change what a service keeps."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.timeout(300)
EXAMPLE = ("examples/kitten.jpg", "examples/kitten_mask.png")


def test_the_life_of_a_category(command, tiny_url, tmp_path) -> None:
    def ran(*words: object) -> str:
        done = command(*words, "--url", tiny_url)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def told(*words: object):
        return json.loads(ran(*words, "--json"))

    assert told("categories") == []
    for _ in range(2):
        ran("teach", "cat [small]", *EXAMPLE, "--replace", "--prompt", "kitten, young")
    (category,) = told("categories")
    assert category["prompts"] == ["cat [small]", "kitten, young"]
    assert told("category", "CAT [small]") == category
    assert "cat [small]" in ran("categories")
    assert "kitten, young" in ran("category", "cat [small]")

    jobs = told("jobs")
    assert {job["status"] for job in jobs} == {"succeeded"}
    assert told("jobs", "--status", "failed") == []
    assert len(told("jobs", "--limit", "1")) == 1
    assert jobs[0]["id"] in ran("jobs", "--status", "succeeded", "--category", "cat [small]")

    file = tmp_path / "cat.safetensors"
    assert told("export", "cat [small]", file)["bytes"] == file.stat().st_size > 0
    assert told("import", "copy", file)["adapter"]["version"] == 1
    told("import", "copy", file)
    assert [version["version"] for version in told("versions", "copy")] == [2, 1]
    assert told("rollback", "copy", 1)["adapter"]["version"] == 1
    assert [version["current"] for version in told("versions", "copy")] == [False, True]
    assert "yes" in ran("versions", "copy")
    assert "copy was deleted" in ran("delete", "copy")
    assert [category["name"] for category in told("categories")] == ["cat [small]"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["category", "unicorn"], "unicorn"),
        (["versions", "unicorn"], "unicorn"),
        (["rollback", "unicorn", "1"], "unicorn"),
        (["rollback", "unicorn", "0"], "version"),
        (["delete", "unicorn"], "unicorn"),
        (["export", "unicorn", "build-no-such/x"], "build-no-such"),
        (["export", "unicorn", "README.md/x"], "README.md"),
        (["import", "unicorn", "README.md"], "adapter"),
        (["import", "unicorn", "no-such-file"], "no-such-file"),
        (["jobs", "--status", "asleep"], "--status"),
        (["jobs", "--category", "a/b"], "slash"),
    ],
)
def test_an_error_is_a_sentence(command, tiny_url, words, told) -> None:
    done = command(*words, "--url", tiny_url)
    assert done.returncode
    assert told in done.stderr
    assert "Traceback" not in done.stderr
