"""CLIPSeg with one encoded photo for all texts computes what CLIPSeg computes."""

from __future__ import annotations

import torch
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from benchmarks.peers import clipseg_masks

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}


@torch.inference_mode()
def test_one_pass_of_the_image_tower_serves_all_texts() -> None:
    config = CLIPSegConfig(
        text_config={**TOWER, "vocab_size": 99, "eos_token_id": 98, "bos_token_id": 97, "pad_token_id": 0},
        vision_config={**TOWER, "image_size": 32, "patch_size": 16},
        projection_dim=16,
        extract_layers=[0, 1, 2],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    torch.manual_seed(0)
    model = CLIPSegForImageSegmentation(config).eval()
    photo, texts = torch.rand(1, 3, 48, 48), torch.randint(1, 97, (3, 5))
    expected = model(input_ids=texts, pixel_values=photo.expand(3, -1, -1, -1), interpolate_pos_encoding=True).logits
    towers = []
    model.clip.vision_model.register_forward_hook(
        lambda module, given, out: towers.append(len(given[0] if given else out[0]))
    )
    found = clipseg_masks(model, photo, texts)
    torch.testing.assert_close(found, expected)
    assert not found[0].equal(found[1])
    assert towers == [1]
