"""BLIP: its image tower, and its match head with padding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from app.backbones.blip import Blip
from app.method.backbone import Backbone, TextTokens
from tests.models import INPUT_PX, random_blip


@pytest.fixture(scope="module")
def blip() -> Blip:
    model, tokenizer = random_blip()
    return Blip(model, tokenizer, input_size=INPUT_PX)


def test_a_folder_becomes_a_model_on_512_pixels(loaded: dict[str, Backbone]) -> None:
    model = loaded["blip"]
    assert (model.input_size, model.patch_grid_hw) == (512, (32, 32))
    assert (model.layer_count, model.default_layers) == (5, (0, 3))


def test_photos_are_fitted_and_padded_as_by_the_authors(blip: Blip) -> None:
    rgb, frame = blip.preprocess(np.full((37, 101, 3), 255, np.uint8))
    assert frame.content_hw == (40, 112)  # 37 · 112/101 = 41.03, floored to a multiple of 8
    assert rgb[:, :40].min() == 1
    assert rgb[:, 40:].max() == 0


def test_the_image_tower_sees_imagenet_s_statistics(blip: Blip) -> None:
    """And positions of 5 × 5 patches, interpolated to the 7 × 7 of this input."""
    rgb = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    tower = random_blip()[0].vision_model
    with torch.no_grad():
        pixels = (rgb - mean[:, None, None]) / deviation[:, None, None]
        patches = tower.embeddings.patch_embedding(pixels).flatten(2).mT
        position = tower.embeddings.position_embedding
        grid = position[:, 1:].mT.unflatten(2, (5, 5))
        grid = F.interpolate(grid, size=(7, 7), mode="bicubic", align_corners=False).flatten(2).mT
        global_token = tower.embeddings.class_embedding + position[:, :1]
        expected = torch.cat([global_token, patches + grid], dim=1)
        expected = tower.post_layernorm(tower.encoder(inputs_embeds=expected).last_hidden_state)
    torch.testing.assert_close(blip.encode_image(rgb)[0].tokens, expected[0], rtol=1e-4, atol=1e-4)


def test_the_best_token_matches_and_padding_only_if_told_so(blip: Blip) -> None:
    image = blip.encode_image(torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0)))[0]
    text = blip.tokenize(["dog", "railway track", "cat", "sky", "sea"])
    extended = TextTokens(F.pad(text.input_ids, (0, 11)), F.pad(text.attention_mask, (0, 11)))
    as_the_authors = Blip(*random_blip(), input_size=INPUT_PX, match_on_padding=True)
    _, hidden = blip._text.attend(image.tokens, extended, layers=(), adapters=None)
    head = blip._model.itm_head
    match = F.linear(hidden, head.weight, head.bias).softmax(dim=-1)[..., 1]
    by_hand = torch.stack([row[mask.bool()].max() for row, mask in zip(match, extended.attention_mask, strict=True)])
    for asked in (text, extended):
        torch.testing.assert_close(blip.attend(image, asked, layers=()).match_score, by_hand)
    padded = as_the_authors.attend(image, extended, layers=()).match_score
    torch.testing.assert_close(padded, match.amax(dim=1))
    assert (padded - by_hand).max() > 0.001


def test_a_model_without_tokenizer_takes_tokens_only(blip: Blip) -> None:
    bare = Blip(random_blip()[0], None, input_size=INPUT_PX)
    assert bare.revision == blip.revision
    with pytest.raises(ValueError, match="tokens only"):
        bare.tokenize(["dog"])


def test_the_input_size_is_part_of_the_revision(blip: Blip) -> None:
    assert Blip(random_blip()[0], None, input_size=80).revision != blip.revision


def test_the_layers_that_are_not_there_are_no_default() -> None:
    model = random_blip()[0]
    model.config.text_config.num_hidden_layers = 3
    assert Blip(model, None).default_layers == (0,)


def test_tokens_can_be_replaced_one_by_one(blip: Blip) -> None:
    text = blip.tokenize(["dog", "railway track"])
    assert replace(text, input_ids=text.input_ids).attention_mask.tolist() == [[1] * 6 + [0], [1] * 7]
