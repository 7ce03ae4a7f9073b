"""Measuring on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from app.backbones import families
from app.masks.rle import mask_to_rle

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "case_a.safetensors"

pytestmark = pytest.mark.timeout(300)  # some start processes, which import torch


def test_backbones_lists_every_family_and_what_the_loaded_model_takes(command) -> None:
    done = command("backbones")
    assert done.returncode == 0, done.stderr
    for family in families():
        assert family in done.stdout
    assert "24 × 24" in done.stdout


def test_parity_prints_a_table_and_succeeds(command) -> None:
    done = command("parity", str(GOLDEN))
    assert done.returncode == 0, done.stderr
    for output in ("unary", "attention_head_max.0", "itm_scores", "infoscore", "tune_losses", "tuned_unary", "crf"):
        assert output in done.stdout
    assert "TOO FAR" not in done.stdout


def test_parity_fails_where_an_output_is_too_far_off(command, tmp_path: Path) -> None:
    with safe_open(GOLDEN, "pt") as stored:
        facts = stored.metadata()
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # not a dict
    tensors["out.crf"] = tensors["out.crf"] + 0.01
    save_file(tensors, tmp_path / "changed.safetensors", metadata=facts)
    done = command("parity", str(tmp_path / "changed.safetensors"), str(GOLDEN))
    assert done.returncode == 1
    assert done.stdout.count("TOO FAR") == 1


def test_evaluate_writes_its_scores(tmp_path: Path, command) -> None:
    data = tmp_path / "set"
    for part in ("images", "masks"):
        (data / part).mkdir(parents=True)
    (data / "images" / "cat.jpg").write_bytes((ROOT / "examples" / "chelsea.jpg").read_bytes())
    with Image.open(ROOT / "examples" / "chelsea_mask.png") as mask:
        mask.convert("L").point(lambda value: 1 if value else 0).save(data / "masks" / "cat.png")
    index = {"classes": ["background", "cat"], "images": [{"id": "cat", "classes": [1]}]}
    (data / "index.json").write_text(json.dumps(index))
    scores = tmp_path / "scores.json"
    pictures = tmp_path / "cases.png"
    done = command("evaluate", "--data", data, "--json", scores, "--pictures", pictures, EXEMPLAR_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert "mIoU" in done.stdout
    written = json.loads(scores.read_text())
    assert set(written["columns"]) == {"words", "words + CRF"}
    assert written["columns"]["words"]["classes"]["cat"] > 0.5
    with Image.open(pictures) as sheet:
        assert sheet.height == 240, "one row: photo, truth, words"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--protocol", "joint", "--tiles"), "--tiles has no effect on --protocol joint"),
        (("--protocol", "open", "--size", "input"), "--size has no effect on --protocol open"),
        (("--protocol", "single", "--prompts", "all"), "--prompts has no effect on --protocol open"),
        (("--protocol", "click", "--seeds", "3"), "--seeds has no effect on --protocol click"),
        (("--method", "prototype", "--min-presence", "0.2"), "--min-presence has no effect on --method prototype"),
        (("--protocol", "words", "--single"), "--single has no effect on --protocol words"),
        (("--protocol", "one-shot", "--single"), "--single has no effect on --protocol one-shot"),
        (
            ("--protocol", "one-shot", "--method", "prototype", "--single"),
            "--single has no effect on --method prototype",
        ),
        (("--seeds", "3"), "--seeds has no effect on --protocol words"),
        (("--shots", "1"), "--shots has no effect on --protocol words"),
        (("--protocol", "one-shot", "--categories", "20"), "--categories has no effect on --protocol one-shot"),
        (("--protocol", "open", "--joint-epochs", "2"), "--joint-epochs has no effect on --protocol open"),
        (("--protocol", "interference", "--no-crf"), "--no-crf has no effect on --protocol interference"),
        (("--protocol", "click", "--layers", "0"), "--layers has no effect on --protocol click"),
    ],
)
def test_evaluate_refuses_options_without_effect(command, words: tuple[str, ...], told: str) -> None:
    done = command("evaluate", "--data", "nowhere", *words)
    assert done.returncode == 1
    assert told in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--single",),
        ("--single", "--categories", "all", "--seeds", "2", "--shots", "2", "--min-presence", "0.2"),
        ("--protocol", "open", "--protocol", "single", "--single", "--no-crf", "--tiles"),
        ("--protocol", "one-shot", "--seeds", "3", "--shots", "2", "--prompts", "all", "--size", "input"),
        ("--protocol", "joint", "--joint-epochs", "5", "--seeds", "3", "--shots", "2"),
        ("--protocol", "interference", "--seeds", "3", "--shots", "2", "--tiles", "--min-presence", "0.2"),
        ("--method", "prototype", "--seeds", "3", "--shots", "2"),
        ("--protocol", "click", "--no-crf"),
    ],
)
def test_evaluate_takes_options_that_have_an_effect(command, words: tuple[str, ...]) -> None:
    """They get as far as the data."""
    done = command("evaluate", "--data", "nowhere", *words)
    assert done.returncode == 1
    assert "nowhere can't be read" in done.stderr


def test_single_alone_is_the_protocol(command) -> None:
    done = command("evaluate", "--data", "nowhere", "--single", "--method", "prototype")
    assert "which --protocol open measures" in done.stderr


def mask_of(name: str) -> np.ndarray:
    with Image.open(ROOT / "examples" / f"{name}_mask.png") as image:
        return np.array(image.convert("L")) > 0


def test_evaluate_reads_coco_and_voc(tmp_path: Path, command) -> None:
    coco, voc, scores = tmp_path / "coco.json", tmp_path / "voc", tmp_path / "scores.json"
    kitten = mask_to_rle(mask_of("kitten"))
    content = {
        "categories": [{"id": 3, "name": "cat"}],
        "images": [{"id": 1, "file_name": "kitten.jpg"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "segmentation": kitten}],
    }
    coco.write_text(json.dumps(content))
    for part in ("JPEGImages", "SegmentationClass"):
        (voc / part).mkdir(parents=True)
    (voc / "JPEGImages" / "chelsea.jpg").write_bytes((ROOT / "examples" / "chelsea.jpg").read_bytes())
    Image.fromarray(mask_of("chelsea").astype(np.uint8) * 8).save(voc / "SegmentationClass" / "chelsea.png")
    examples = str(ROOT / "examples")
    words = ("--data", str(coco), "--images", examples, "--data", str(voc), "--json", str(scores))
    done = command("evaluate", *words, EXEMPLAR_THREADS="1")
    assert done.returncode == 0, done.stderr
    written = json.loads(scores.read_text())
    assert written["dataset"] == "coco.json + voc"
    assert written["columns"]["words"]["classes"]["cat"] > 0.5
