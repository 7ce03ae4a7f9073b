"""Tokens of prompts, by a tokenizer of transformers."""

from collections.abc import Sequence
from typing import Any

import torch

from app.method.backbone import TextTokens
from app.method.prompts import phrase

# The longest name has 64 characters, so at most 64 pieces, and the sentence around it fits as well.
MAX_TOKENS = 80


def tokenize(tokenizer: Any, words: Sequence[str], device: torch.device) -> TextTokens:
    """Tokenise the words' prompts as one padded batch.

    Args:
        tokenizer: A transformers tokenizer (untyped).
        words: One per prompt.
        device: Device of the result.
    """
    batch = tokenizer(
        [phrase(word) for word in words],
        padding=True,
        padding_side="right",
        truncation=True,
        max_length=MAX_TOKENS,
        return_tensors="pt",
    )
    return TextTokens(batch["input_ids"].to(device), batch["attention_mask"].to(device))
