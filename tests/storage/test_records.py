"""Stored values are input: read to a known type, or refused with a ValueError that names the field."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, ResponseError

from app.storage.records import damaged, json_value, replies_of, reply_of, sound, text


@given(raw=st.binary(max_size=30))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    for read in (text, json_value):
        try:
            read("field", raw)
        except ValueError as error:
            assert str(error).startswith("field: not ")  # noqa: PT017  # any other error fails the test


@pytest.mark.parametrize(
    "raw", [b"{{{", b"", b"\xff", b"[" * 100_000, b'"\\ud800"', b'{"a": ["\\udfff"]}', b"1" * 5000]
)
def test_what_is_not_json(raw: bytes) -> None:
    with pytest.raises(ValueError, match="field: not JSON"):
        json_value("field", raw)


@pytest.mark.parametrize("value", [None, 1, "Füße", "🦒", ["\\u", {"a": 1.5}]], ids=str)
def test_what_is_json(value: object) -> None:
    for ascii_only in (True, False):
        assert json_value("field", json.dumps(value, ensure_ascii=ascii_only).encode()) == value


async def test_a_key_of_another_type_is_told_apart_from_an_outage(redis: Redis) -> None:
    await redis.set("text", "x")
    with pytest.raises(ValueError, match="another type"):
        sound(await reply_of(redis.hgetall("text")))
    assert sound(await reply_of(redis.get("text"))) == b"x"
    async with redis.pipeline(transaction=False) as pipe:
        pipe.lrange("text", 0, -1)
        pipe.get("text")
        wrong, right = await replies_of(pipe)
    assert (isinstance(wrong, ResponseError), right) == (True, b"x")
    with pytest.raises(ResponseError, match="unknown command"):
        await reply_of(redis.execute_command("NOTHING"))
    async with redis.pipeline(transaction=False) as pipe:
        pipe.execute_command("NOTHING")
        with pytest.raises(ResponseError, match="unknown command"):
            await replies_of(pipe)


@pytest.mark.parametrize(
    "body",
    ["redis.call('HGET', KEYS[1], 'a')", "redis.call('HINCRBY', KEYS[2], 'n', 1)", "cjson.decode('{{{')", "nil < 1"],
)
async def test_a_script_that_met_junk(redis: Redis, body: str) -> None:
    await redis.set("text", "x")
    await redis.hset("hash", "n", "junk")
    with pytest.raises(ResponseError) as caught:
        await redis.eval(f"return {body}", 2, "text", "hash")
    assert damaged(caught.value)


def test_a_full_server_is_no_junk() -> None:
    assert not damaged(
        OutOfMemoryError("command not allowed when used memory > 'maxmemory'. script: on @user_script:1.")
    )
