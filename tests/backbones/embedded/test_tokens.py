"""Tokens of the embedded model: those that transformers gives, without its import."""

from __future__ import annotations

import subprocess
import sys

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer

from app.backbones.embedded import VOCABULARY
from app.backbones.shared.tokens import tokenize

WORDS = ["cat", "Straßenbahn", "fire-hydrant 2", "ÉCOLE", "猫", "🚋", "a" * 64, "x y  z", "don't", "[MASK]", "ﬁne"]


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.text(min_size=1, max_size=64), min_size=1, max_size=5))
def test_they_are_those_of_transformers(embedded, words: list[str]) -> None:
    oracle = BertTokenizer(vocab=str(VOCABULARY))
    for asked in (words, WORDS):
        expected = tokenize(oracle, asked, torch.device("cpu"))
        found = embedded.tokenize(asked)
        assert torch.equal(found.input_ids, expected.input_ids)
        assert torch.equal(found.attention_mask, expected.attention_mask)


def test_padding_is_on_the_right_whatever_the_tokenizer_s_side() -> None:
    found = tokenize(BertTokenizer(vocab=str(VOCABULARY), padding_side="left"), ["x y", "z"], torch.device("cpu"))
    assert found.attention_mask.tolist() == [[1] * 7, [1] * 6 + [0]]


def test_the_service_with_the_embedded_model_imports_no_transformers() -> None:
    code = (
        "import sys, app.main; from app import backbones;"
        "backbones.load('embedded', device='cpu', dtype='float32').tokenize(['cat']);"
        "sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
