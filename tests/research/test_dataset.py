"""The data folder that `evaluate` reads: its format, and the selection of photos."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import InvalidInputError
from app.research.layouts import read_dataset


def test_split_ids_and_limit_choose_photos(folder: Path, tmp_path: Path) -> None:
    assert [photo.id for photo in read_dataset(folder, split="val", ids=None, limit=None).photos] == ["chelsea"]
    keep = tmp_path / "ids.json"
    keep.write_text('["kitten", "astronaut"]')
    assert [p.id for p in read_dataset(folder, split=None, ids=keep, limit=None).photos] == ["astronaut", "kitten"]
    assert len(read_dataset(folder, split=None, ids=None, limit=3).photos) == 3


@pytest.mark.parametrize("content", ["", "{", "[]", '{"classes": ["a"]}', '{"classes": 3, "images": [{"id": 1}]}'])
def test_a_folder_of_another_form_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(InvalidInputError, match="index"):
        read_dataset(tmp_path, split=None, ids=None, limit=None)


def test_nothing_left_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidInputError, match="--split"):
        read_dataset(folder, split="no such split", ids=None, limit=None)
