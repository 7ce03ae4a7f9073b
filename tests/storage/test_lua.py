"""Scripts in Lua: how they are sent, and what every file says of itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from redis.asyncio import Redis

import app.storage
from app.storage.lua import script

FOLDER = Path(app.storage.__file__).parent / "scripts"
SCRIPTS = sorted(FOLDER.glob("*.lua"))


async def test_a_script_runs_again_after_the_server_forgot_it(redis: Redis) -> None:
    swap = script(redis, "swap_statistics")
    for old, new in (("", "a"), ("a", "b")):
        await redis.script_flush()
        assert await swap(keys=["sums", "ranking"], args=[old, new, "r"]) == 1
    assert await redis.get("sums") == b"b"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_says_what_it_takes_and_returns(path: Path) -> None:
    header = re.match(r"(?:--.*\n)+", path.read_text())[0]
    assert [word for word in ("KEYS", "ARGV", "Returns") if f"\n-- {word} " in header] == ["KEYS", "ARGV", "Returns"]


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.lua")), ids=lambda path: path.stem)
def test_a_script_makes_no_key_of_its_own(path: Path) -> None:
    """Keys and prefixes come from `keys.py`: no part of one is written in Lua."""
    code = re.sub(r"--.*", "", path.read_text())
    assert not [text for text in re.findall(r"'([^']*)'", code) if ":" in text or "exemplar" in text]
