"""What is the shipped model's own: its file, its matrices of int8, its image tower."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from app.backbones.efficientnet import Conv
from app.method.segment import class_map, encode, segment
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from app.backbones.embedded import WEIGHTS, Embedded, dequantised, image_tokens, load
from app.errors import InvalidInputError
from app.method.evidence import Query

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    return load_file(WEIGHTS)


@pytest.fixture(scope="module")
def model() -> Embedded:
    return load("", device="cpu", dtype="float32")


def test_the_weights_ship_with_the_service(model: Embedded) -> None:
    assert model.name == "embedded"
    assert (model.layer_count, model.patch_grid_hw, model.input_size) == (4, (24, 24), 384)


def test_a_row_of_a_quantised_matrix_is_int8_times_its_scale() -> None:
    stored = {
        "table.weight": torch.tensor([[2, -3], [127, 0]], dtype=torch.int8),
        "table.weight.scale": torch.tensor([0.5, 0.25]),
        "other": torch.ones(1),
    }
    read = dequantised(stored)
    assert set(read) == {"table.weight", "other"}
    assert read["table.weight"].tolist() == [[1, -1.5], [31.75, 0]]


@pytest.mark.parametrize("raw", [b"", b"garbage" * 9])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(InvalidInputError, match="No embedded model could be read"):
        load(str(tmp_path / "model.safetensors"), device="cpu", dtype="float32")


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    save_file({"encoder.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(InvalidInputError, match="KeyError"):
        load(str(tmp_path / "model.safetensors"), device="cpu", dtype="float32")


def test_photos_are_stretched_to_the_square(model: Embedded) -> None:
    rgb, frame = model.preprocess(np.full((37, 101, 3), 255, np.uint8))
    assert frame.content_hw == (384, 384)
    assert torch.equal(rgb, torch.ones(3, 384, 384))


def test_the_tower_gives_a_map_at_an_eighth_and_two_at_a_sixteenth(model: Embedded) -> None:
    edges, fine, deep = model._tower(torch.rand(1, 3, 96, 160))
    assert edges.shape == (1, 48, 12, 20)
    assert fine.shape == (1, 120, 6, 10)
    assert deep.shape == (1, 352, 6, 10)


def test_a_block_expands_filters_and_projects(model: Embedded, stored: dict[str, Tensor]) -> None:
    weights = {n.removeprefix("image_tower."): t.float() for n, t in stored.items() if n.startswith("image_tower.")}

    def conv(x: Tensor, name: str, **how: int) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **how)

    pixels = torch.rand(1, 3, 13, 11, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model._tower.stem(pixels), conv(F.pad(pixels, (1, 1, 1, 1)), "stem", stride=2))
    # The second block of stage 2: expansion, 3 × 3 depthwise, projection, and the way around them.
    x = torch.randn(1, 24, 7, 5, generator=torch.Generator().manual_seed(1))
    y = F.relu6(conv(x, "blocks.2.expand"))
    y = F.relu6(conv(y, "blocks.2.depthwise", padding=1, groups=y.shape[1]))
    torch.testing.assert_close(model._tower.before[2](x), x + conv(y, "blocks.2.project"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "dilation", "padding"),
    [
        (11, 3, 1, 1, (1, 1)),
        (11, 3, 2, 1, (1, 1)),
        (12, 3, 2, 1, (0, 1)),  # the odd pixel goes right and bottom
        (12, 5, 2, 1, (1, 2)),
        (11, 5, 1, 2, (4, 4)),
        (11, 1, 1, 1, (0, 0)),
        (13, 1, 2, 1, (0, 0)),
    ],
)
def test_padding_is_tensorflow_s(side: int, kernel: int, stride: int, dilation: int, padding: tuple[int, int]) -> None:
    x = torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(side))
    weight = torch.randn(1, 1, kernel, kernel, generator=torch.Generator().manual_seed(kernel))
    expected = F.conv2d(F.pad(x, padding * 2), weight, stride=stride, dilation=dilation)
    torch.testing.assert_close(Conv(weight, torch.zeros(1), stride, dilation)(x), expected)


def test_the_global_token_comes_first(model: Embedded) -> None:
    """It sees a change of the bottom right corner; the first patch, at the top left, hardly does."""
    rgb = torch.rand(1, 3, 384, 384, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    rgb[1, :, -48:, -48:] = 0
    tokens = model.encode_image(rgb)
    change = (tokens[0] - tokens[1]).norm(dim=1)
    assert change[0] > 50 * change[1]
    assert change[-1] > change[0]


@pytest.mark.parametrize(("photo", "word"), [("dog", "dog"), ("kitten", "cat")])
def test_a_named_animal_is_found_without_an_example(model: Embedded, photo: str, word: str) -> None:
    rgb = np.asarray(Image.open(EXAMPLES / f"{photo}.jpg").convert("RGB"))
    marked = np.asarray(Image.open(EXAMPLES / f"{photo}_mask.png").convert("L")) > 0
    words = ["cat", "dog", "giraffe", "cup"]
    asked = class_map(model, encode(model, model.preprocess(rgb)[0]), [Query((one,)) for one in words])
    assert words[int(asked.match_score.argmax())] == word
    found = (segment(model, rgb, [Query((word,))]).argmax(dim=0) == 1).numpy()
    assert (found & marked).sum() / (found | marked).sum() > 0.5


def test_the_map_of_edges_comes_behind_the_tokens(model: Embedded) -> None:
    rgb = torch.rand(2, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    edges, fine, deep = model._tower(rgb)
    tokens = model.encode_image(rgb)
    plain = image_tokens(model._weights, fine, deep)
    for index in range(2):
        assert torch.equal(tokens[index, : 1 + 576], plain[index])
        assert torch.equal(model.patch_features(tokens[index]), plain[index, 1:])
        assert torch.equal(model.edge_features(tokens[index]), edges[index])


def test_what_comes_behind_the_tokens_is_not_attended_to(model: Embedded) -> None:
    tokens = model.encode_image(torch.rand(1, 3, 384, 384, generator=torch.Generator().manual_seed(0)))[0]
    other = tokens.clone()
    other[1 + 576 :] = 100
    text = model.tokenize(["dog"])
    seen, same = (model.attend(each, text, layers=(0, 1)) for each in (tokens, other))
    assert torch.equal(seen.match_score, same.match_score)
    assert all(torch.equal(seen.logits[layer], same.logits[layer]) for layer in (0, 1))
