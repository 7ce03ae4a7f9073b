"""The network in training equals the embedded model, and its shortcuts do not change results."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from app.backbones import embedded
from app.backbones.embedded.model import dequantised
from training.network import Network, _Depthwise, class_map_loss
from training.pack import write
from training.start import quantised


@pytest.fixture(scope="module")
def network() -> Network:
    return Network({name: t.float() for name, t in dequantised(load_file(embedded.WEIGHTS)).items()})


def test_training_sees_the_tokens_that_the_service_sees(network: Network) -> None:
    backbone = embedded.load("", device="cpu", dtype="float32")
    rgb = torch.rand(1, 3, 384, 384, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        trained = network.encode(rgb, torch.arange(576), tower_learns=False)
    torch.testing.assert_close(trained[0], backbone.encode_image(rgb)[0].tokens, atol=2e-3, rtol=1e-3)


def test_training_all_of_the_tower_sees_the_same(network: Network) -> None:
    backbone = embedded.load("", device="cpu", dtype="float32")
    rgb = torch.rand(1, 3, 384, 384, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        edges, tokens = network.encode_whole(rgb)
    seen = backbone.encode_image(rgb)[0]
    torch.testing.assert_close(tokens[0], seen.tokens, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(edges[0], seen.fine_features, atol=1e-3, rtol=1e-3)


def test_the_first_layers_need_not_the_later_ones(network: Network) -> None:
    tokens = torch.randn(1 + 31, 512, generator=torch.Generator().manual_seed(6))
    text = network.tokens_of(["dog", "traffic light"])
    with torch.no_grad():
        few, all_ = network.layer_scores(tokens, text, 2), network.all_scores(tokens, text)[0]
    assert len(few) == 2
    torch.testing.assert_close(few, all_[:2])


def test_the_first_layer_is_the_same_for_all_photos_at_once(network: Network) -> None:
    tokens = torch.randn(2, 1 + 31, 512, generator=torch.Generator().manual_seed(2))
    text = network.tokens_of(["dog", "traffic light", "sky"])
    with torch.no_grad():
        together = network.first_scores(network.first_hidden(text), text.attention_mask, tokens[:, 1:])
        alone = torch.stack([network.all_scores(photo, text)[0][0] for photo in tokens])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-4)


def test_the_cheap_gradient_of_a_depthwise_convolution_is_the_gradient() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 7, 13, 11, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 1, 5, 5, generator=generator, dtype=torch.float64)
    bias = torch.randn(7, generator=generator, dtype=torch.float64, requires_grad=True)
    mine = torch.autograd.grad(_Depthwise.apply(x, weight, bias, 2).sin().sum(), (x, bias))
    plain = F.conv2d(x, weight, bias, padding=4, dilation=2, groups=7)
    theirs = torch.autograd.grad(plain.sin().sum(), (x, bias))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_the_loss_by_hand() -> None:
    # Two background prompts of log-score 0 and one category of log 2: background 2/4, category 2/4 at the only patch.
    scores = torch.tensor([[0.0], [0.0], [0.6931472]])
    target, known = torch.tensor([[0.0], [1.0]]), torch.ones(1)
    assert class_map_loss(scores, 2, target, known).item() == pytest.approx(0.6931472, abs=1e-5)
    # With four background words in use for the two here, the background is twice as likely: 4 / 6.
    shifted = class_map_loss(scores, 2, target, known, background_shift=0.6931472)
    assert shifted.item() == pytest.approx(1.0986123, abs=1e-5)


def test_a_patch_that_is_unknown_teaches_nothing() -> None:
    scores = torch.tensor([[0.0, 5.0], [1.0, -5.0]])
    target = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    known = torch.tensor([1.0, 0.0])
    assert class_map_loss(scores, 1, target, known).item() == pytest.approx(1.3132617, abs=1e-5)


def test_a_written_file_is_read_as_what_was_written(network: Network, tmp_path) -> None:
    out = tmp_path / "weights.safetensors"
    write(network.weights, out, {})
    again = dequantised(load_file(out))
    assert set(again) == set(network.weights)
    for name, tensor in network.weights.items():
        scale = tensor.abs().max().item()
        torch.testing.assert_close(again[name].float(), tensor.float(), atol=scale * 1e-3, rtol=1e-3)


def test_a_quantised_matrix_is_quantised_to_itself() -> None:
    matrix = {"m": torch.randn(5, 17, generator=torch.Generator().manual_seed(4))}
    once = dequantised(quantised(matrix))
    twice = dequantised(quantised(once))
    torch.testing.assert_close(once["m"], matrix["m"], atol=0.02, rtol=0)
    torch.testing.assert_close(twice["m"], once["m"], atol=1e-6, rtol=1e-6)
