"""Replies are bytes; any other type is refused with a TypeError."""

from __future__ import annotations

import pytest

from app.storage.replies import as_bytes, as_fields, as_texts


def test_bytes_pass() -> None:
    assert as_bytes(b"x") == b"x"
    assert as_texts(["ü".encode(), b""]) == ["ü", ""]
    assert as_fields({b"a": b"1"}) == {b"a": b"1"}


@pytest.mark.parametrize("reply", ["x", None, 1])
def test_others_do_not(reply: object) -> None:
    with pytest.raises(TypeError, match=f"expected bytes, got {type(reply).__name__}"):
        as_bytes(reply)
