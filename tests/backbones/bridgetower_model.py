"""A BridgeTower small enough for any test, and a tokenizer of RoBERTa's kind that knows a few words.

Its axes are prime where the network lets them be: 7 layers of each tower, 5 cross-modal ones, 3 heads of 7, 13 numbers
inside the feed-forward parts, positions of 5 × 5 patches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import BridgeTowerConfig, BridgeTowerForImageAndTextRetrieval, RobertaTokenizer

# Each is one token; of anything else, every byte is.
_KNOWN = ("Image", " of", " dog", " cat", " railway", " sky", " sea", " track", " a")


def random_bridgetower(
    *, seed: int = 7, changed: bool = False, **options: Any
) -> tuple[BridgeTowerForImageAndTextRetrieval, RobertaTokenizer]:
    """A model and its tokenizer; 16 pixels a patch. A changed one has one other weight.

    Args:
        options: Of `BridgeTowerConfig`.
    """
    tokenizer = _tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 21,
        "num_hidden_layers": 7,
        "num_attention_heads": 3,
        "intermediate_size": 13,
        "max_position_embeddings": 89,
    }
    # Heads of the image tower always have 64 numbers.
    vision = {"hidden_size": 64, "num_hidden_layers": 7, "image_size": 80, "patch_size": 16}
    config = BridgeTowerConfig(
        text_config=text, vision_config=vision, hidden_size=21, num_hidden_layers=5, num_attention_heads=3, **options
    )
    model = BridgeTowerForImageAndTextRetrieval(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        # A fresh model has no biases and hardly any attention: a test could not tell one layer from another.
        for name, parameter in model.named_parameters():
            norm = "layernorm" in name.lower() or ".ln_" in name
            centre = 1.0 if norm and name.endswith("weight") else 0.0
            inputs = parameter[0].numel() if parameter.ndim > 1 and "embedding.weight" not in name else 21
            scale = 0.3 * (21 / inputs) ** 0.5
            parameter.copy_(centre + scale * torch.randn(parameter.shape, generator=generator))
        model.itm_score.fc.bias[0] += changed
    return model.eval(), tokenizer


def _tokenizer() -> RobertaTokenizer:
    vocabulary = {token: number for number, token in enumerate(("<s>", "<pad>", "</s>", "<unk>", "<mask>"))}
    for token in sorted(ByteLevel.alphabet()):
        vocabulary[token] = len(vocabulary)
    merges = []
    for word in _KNOWN:
        letters = word.replace(" ", "Ġ")
        for end in range(1, len(letters)):
            if letters[: end + 1] not in vocabulary:
                vocabulary[letters[: end + 1]] = len(vocabulary)
                merges.append((letters[:end], letters[end]))
    return RobertaTokenizer(vocab=vocabulary, merges=merges)


def write(folder: Path, *, changed: bool) -> str:
    """Save one and return its spec."""
    for part in random_bridgetower(changed=changed):
        part.save_pretrained(folder)
    return f"bridgetower:{folder}"
