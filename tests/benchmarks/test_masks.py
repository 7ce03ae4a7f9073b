"""Comparison of the masks of two versions of the code."""

from __future__ import annotations

from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest

from benchmarks.masks import _follow, compare


def record(path: Path, **maps: int) -> Path:
    np.savez(path, **{key.replace("_", "/"): np.full((2, 3), value, np.uint8) for key, value in maps.items()})
    return path


def test_equal_records_have_no_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = record(tmp_path / "a.npz", dog_words=1), record(tmp_path / "b.npz", dog_words=1)
    assert compare(before, after) == 0
    assert capsys.readouterr().out == "words: 0 of 1 photos differ, 0 of 6 pixels, at most 0 in one photo\n"


def test_masks_that_one_record_lacks_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = record(tmp_path / "a.npz", dog_words=1, dog_taught=1)
    after = record(tmp_path / "b.npz", dog_words=2, cat_words=1)
    assert compare(before, after) == 1
    told = capsys.readouterr().out
    assert "words: 1 of 1 photos differ, 6 of 6 pixels" in told
    assert "a.npz lacks 1 masks: cat/words" in told
    assert "b.npz lacks 1 masks: dog/taught" in told


def test_a_job_that_fails_ends_the_recording() -> None:
    state = {"status": "failed", "error": "the disk is full", "example_iou": None}
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=state))
    with (
        httpx.Client(base_url="http://service", transport=transport) as client,
        pytest.raises(SystemExit, match="cat did not succeed: the disk is full"),
    ):
        _follow(client, "cat", "/jobs/1")
