"""The README says what is true: its settings, its metrics, its tree, its make targets."""

from __future__ import annotations

import re
from pathlib import Path

from app.metrics import Metrics
from app.settings import Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_every_setting_has_a_row_and_no_other() -> None:
    told = set(re.findall(r"^\| `(EXEMPLAR_[A-Z_]+)`", README, re.MULTILINE))
    assert told == {f"EXEMPLAR_{name.upper()}" for name in Settings.model_fields}


def test_every_metric_has_a_row_and_no_other() -> None:
    told = set(re.findall(r"^\| `(exemplar_[a-z_]+)`", README, re.MULTILINE))
    families = Metrics().registry.collect()
    assert told == {f"{family.name}_total" if family.type == "counter" else family.name for family in families}


def test_the_tree_names_the_files_of_the_package() -> None:
    tree = README.split("```\napp/\n")[1].split("```")[0].split("benchmarks/")[0]
    told = sorted(re.findall(r"(\w+\.py)\b", tree))
    assert told == sorted(path.name for path in (ROOT / "app").rglob("*.py") if path.name != "__init__.py")


def test_links_and_make_targets_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z]+)|`make ([a-z]+)`", README, re.MULTILINE):
        target = "".join(target)
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
