"""Parity with the authors' code: a small random BLIP through attention, class map, CRF, InfoScore and joint tuning."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from app.errors import InvalidInputError
from app.research.parity import Row, check

CASE = Path(__file__).parents[1] / "golden" / "case_a.safetensors"


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return list(check(CASE))


def test_every_output_is_the_authors(rows: list[Row]) -> None:
    assert [row.output for row in rows] == [
        "attention_head_max.0",
        "attention_head_max.1",
        "attention_head_max.2",
        "attention_head_max.3",
        "itm_scores",
        "unary",
        "crf",
        "infoscore (relative)",
        "infoscore_entropy_ratio (relative)",
        "infoscore_cov (relative)",
        "tune_losses",
        "tuned_unary",
        "tuned_query_weight",
    ]
    assert [row for row in rows if not row.ok] == []


def test_no_number_passes_for_a_small_error() -> None:
    assert not Row("unary", float("nan"), 1e-4).ok


@pytest.mark.parametrize("output", ["unary", "crf", "tuned_query_weight"])
def test_another_number_is_noticed(tmp_path: Path, output: str) -> None:
    metadata, tensors = stored()
    tensors[f"out.{output}"].view(-1)[-1] += 0.01
    save_file(tensors, tmp_path / "case.safetensors", metadata)
    failed = [row.output for row in check(tmp_path / "case.safetensors") if not row.ok]
    assert failed == [output]


@pytest.mark.parametrize("left_out", ["spans", "blip_config", "query", "model.itm_head.weight"])
def test_a_case_that_lacks_something_is_refused(tmp_path: Path, left_out: str) -> None:
    metadata, tensors = stored()
    metadata.pop(left_out, None)
    tensors.pop(left_out, None)
    save_file(tensors, tmp_path / "case.safetensors", metadata)
    with pytest.raises(InvalidInputError, match="not a golden case"):
        next(check(tmp_path / "case.safetensors"))


@pytest.mark.parametrize("raw", [b"", b"garbage", CASE.read_bytes()[:1_000_000]], ids=["empty", "garbage", "cut"])
def test_a_broken_file_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "case.safetensors").write_bytes(raw)
    with pytest.raises(InvalidInputError, match="not a golden case"):
        next(check(tmp_path / "case.safetensors"))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="not a golden case"):
        next(check(tmp_path / "nowhere.safetensors"))


def stored() -> tuple[dict, dict]:
    with safe_open(CASE, "pt") as case:
        return dict(case.metadata()), {name: case.get_tensor(name) for name in case.keys()}  # noqa: SIM118  # not a dict
