"""The mask decoder: from class scores on the patch grid to masks at twice its resolution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from app.backbones.embedded.example_memory import empty_memory
from app.backbones.embedded.mask_decoder import decode, fuse_appearance, image_features, logits
from app.method.backbone import EncodedImage
from app.method.frame import mask_to_input
from app.method.parameters import ExampleMemory
from app.method.pieces import finished
from app.method.pipeline import FramedImage, Pipeline, encode_one, score_map
from app.method.prompts import Prompts, Query
from app.method.selection import select
from app.method.shot import IGNORE, Shot
from app.method.tuning import TUNED, CategoryTuning

EXAMPLES = Path(__file__).parents[3] / "examples"

GRID = (5, 7)
PATCHES = 35
FEATURES, CHANNELS, WIDTH, SPACE = 11, 3, 13, 17


def random_weights(seed: int = 0) -> dict[str, Tensor]:
    """A network that has learned nothing, of prime widths."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "projection.weight": (SPACE, FEATURES), "projection.bias": (SPACE,),
        "presence.0.weight": (5, 4), "presence.0.bias": (5,), "presence.1.weight": (1, 5), "presence.1.bias": (1,),
        "likeness": (), "words": (), "background": (),
        "example.weight": (SPACE, FEATURES), "example.bias": (SPACE,), "example.sharpness": (),
        "example.0.weight": (7, 9), "example.0.bias": (7,), "example.1.weight": (7, 7), "example.1.bias": (7,),
        "example.2.weight": (1, 7), "example.2.bias": (1,),
        "tokens.weight": (WIDTH, FEATURES), "tokens.bias": (WIDTH,),
        "edges.weight": (WIDTH, CHANNELS, 3, 3), "edges.bias": (WIDTH,),
        "edges.mean": (CHANNELS, 1, 1),
        "image.weight": (WIDTH, WIDTH, 3, 3), "image.bias": (WIDTH,),
        "place.weight": (2, WIDTH, 1, 1), "place.bias": (2,),
        "class.weight": (WIDTH, 8, 3, 3), "class.bias": (WIDTH,),
        "layers.0.weight": (WIDTH, WIDTH, 3, 3), "layers.0.bias": (WIDTH,),
        "layers.1.weight": (WIDTH, WIDTH, 3, 3), "layers.1.bias": (WIDTH,),
        "mask.weight": (1, WIDTH, 1, 1), "mask.bias": (1,),
    }  # fmt: skip
    made = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**made, "edges.deviation": torch.ones(CHANNELS, 1, 1)}


def plain_weights() -> dict[str, Tensor]:
    """A network that adds nothing to the words."""
    nothing = {name: torch.zeros_like(tensor) for name, tensor in random_weights().items()}
    return {**nothing, "words": torch.tensor(1.0), "edges.deviation": torch.ones(CHANNELS, 1, 1)}


def photo(seed: int = 1) -> tuple[Tensor, Tensor]:
    """Features of the patches, and of the edges on twice the grid."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(PATCHES, FEATURES, generator=generator), torch.randn(CHANNELS, 10, 14, generator=generator)


def random_scores(classes: int, seed: int = 2) -> Tensor:
    return torch.rand(classes, PATCHES, generator=torch.Generator().manual_seed(seed))


def memories(count: int, seed: int = 3) -> ExampleMemory:
    generator = torch.Generator().manual_seed(seed)
    empty = empty_memory(random_weights())
    return ExampleMemory.stack(
        [empty.map(lambda tensor: torch.rand(tensor.shape, generator=generator)) for _ in range(count)]
    )


def read(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.array(image.convert("L" if file.suffix == ".png" else "RGB"))


def test_the_map_is_finer_and_sums_to_one() -> None:
    maps = decode(random_weights(), random_scores(4), *photo(), grid_hw=GRID)
    assert maps.shape == (4, 10, 14)
    torch.testing.assert_close(maps.sum(dim=0), torch.ones(10, 14))


def test_a_network_that_adds_nothing_gives_the_words_back() -> None:
    """Likeness, presence and convolutions at nothing: what is left is the words' log-probability, interpolated."""
    scores = random_scores(3)
    log_p = (scores / scores.sum(dim=0)).log().view(1, 3, *GRID)
    expected = F.interpolate(log_p, size=(10, 14), mode="bilinear")[0].softmax(dim=0)
    torch.testing.assert_close(decode(plain_weights(), scores, *photo(), grid_hw=GRID), expected)


def test_the_order_of_the_classes_changes_nothing() -> None:
    scores, order = random_scores(4), [0, 3, 1, 2]
    maps = decode(random_weights(), scores, *photo(), grid_hw=GRID)
    torch.testing.assert_close(decode(random_weights(), scores[order], *photo(), grid_hw=GRID), maps[order])


def test_a_class_that_is_nowhere_first_is_taken_to_be_absent() -> None:
    scores = random_scores(3)
    weak = torch.cat([scores, 0.9 * scores[1:2]])
    maps = decode(random_weights(), weak, *photo(), grid_hw=GRID)
    assert maps[3].max() == 0
    torch.testing.assert_close(maps.sum(dim=0), torch.ones(10, 14))


def test_a_class_that_loses_all_it_had_competes_no_more() -> None:
    """By the words the fourth is barely first in one patch, and between that patch and its neighbours it is not."""
    scores = torch.cat([random_scores(3), torch.zeros(1, PATCHES)])
    scores[3, 17] = 1.01 * scores[:, 17].max()
    maps = decode(plain_weights(), scores, *photo(), grid_hw=GRID)
    assert maps[3].max() == 0
    torch.testing.assert_close(maps[:3], decode(plain_weights(), scores[:3], *photo(), grid_hw=GRID))


def test_it_is_then_as_if_nobody_had_asked_for_it() -> None:
    """Also in what classes make of each other's number, and with examples of some of those that stay."""
    weights, scores = random_weights(5), random_scores(3)
    scores = torch.cat([scores[:1], torch.zeros(2, PATCHES), scores[1:]])
    scores[1, 17] = scores[2, 3] = 1.01 * scores.max()
    kept = memories(3)
    gone = decode(weights, scores, *photo(), grid_hw=GRID, taught=[1, 3, 4], memories=kept)
    lost = [row for row in (1, 2, 3, 4) if not gone[row].any()]
    assert 2 in lost
    rows = [row for row in range(5) if row not in lost]
    taught = [row for row in (1, 3, 4) if row not in lost]
    some = kept.map(lambda tensor: tensor[[(1, 3, 4).index(row) for row in taught]])
    alone = decode(
        weights, scores[rows], *photo(), grid_hw=GRID, taught=[rows.index(row) for row in taught], memories=some
    )
    torch.testing.assert_close(gone[rows], alone)


def test_if_all_are_absent_there_is_background() -> None:
    scores = torch.cat([torch.ones(1, PATCHES), 0.5 * random_scores(2)])
    maps = decode(random_weights(), scores, *photo(), grid_hw=GRID)
    assert maps[0].min() == 1
    assert maps[1:].max() == 0


def test_examples_can_bring_back_what_the_words_miss() -> None:
    scores = torch.cat([torch.ones(1, PATCHES), 0.5 * random_scores(2)])
    weights = random_weights() | {"example.2.bias": torch.tensor([50.0])}
    maps = decode(weights, scores, *photo(), grid_hw=GRID, taught=[2], memories=memories(1))
    assert maps[2].mean() > 0.5
    assert maps[1].max() == 0


def test_a_category_s_examples_speak_for_it_alone() -> None:
    scores, kept = random_scores(4), memories(2)
    features, _ = photo()
    plain, _ = fuse_appearance(random_weights(), scores, features)
    found, seen = fuse_appearance(random_weights(), scores, features, taught=[1, 3], memories=kept)
    assert torch.equal(found[[0, 2]], plain[[0, 2]])
    assert not seen[[0, 2]].any()
    for place, row in enumerate((1, 3)):
        alone = kept.map(lambda tensor: tensor[place : place + 1])  # noqa: B023  # called at once
        other, _ = fuse_appearance(random_weights(), scores, features, taught=[row], memories=alone)
        torch.testing.assert_close(other[row], found[row])
        assert (found[row] - plain[row]).abs().max() > 0.01


def test_scores_are_on_the_decoders_grid_or_on_the_patches(embedded, tiny) -> None:
    """Without a decoder, or where it isn't asked, the words' scores go to pixels as they are."""
    image = encode_one(embedded, torch.rand(3, embedded.input_size, embedded.input_size))
    rows, columns = embedded.patch_grid_hw
    scores, nobody = torch.rand(2, rows * columns), [None, None]
    with torch.no_grad():
        decoded = score_map(embedded, image, scores, nobody, use_mask_decoder=True)
        plain = score_map(embedded, image, scores, nobody, use_mask_decoder=False)
    assert (decoded.grid_hw, decoded.align_corners) == ((2 * rows, 2 * columns), False)
    torch.testing.assert_close(decoded.values.sum(dim=0), torch.ones(4 * rows * columns))
    assert plain.values is scores
    assert (plain.grid_hw, plain.align_corners) == ((rows, columns), True)
    scores = torch.rand(2, 25)
    without = score_map(tiny, EncodedImage(torch.zeros(26, 8)), scores, nobody, use_mask_decoder=True)
    assert without.values is scores
    assert (without.grid_hw, without.align_corners) == ((5, 5), True)


def test_gradients_reach_every_weight_that_learns() -> None:
    weights = {name: tensor.requires_grad_(True) for name, tensor in random_weights().items()}
    scores, (features, edges) = random_scores(3), photo()
    found, seen = fuse_appearance(weights, scores, features, taught=[1], memories=memories(1))
    fine = logits(weights, scores, found, seen, image_features(weights, features, edges, grid_hw=GRID), grid_hw=GRID)
    (fine.log_softmax(dim=0) * torch.rand(3, 10, 14)).sum().backward()
    # One number for all classes alike moves no probability: its gradient is 0 but for rounding.
    still = {name for name, tensor in weights.items() if tensor.grad is None or not tensor.grad.any()}
    assert still - {"mask.bias"} == set()


def test_an_image_without_fine_features_is_refused(embedded) -> None:
    rows, columns = embedded.patch_grid_hw
    image = EncodedImage(torch.zeros(1 + rows * columns, 8))
    with pytest.raises(ValueError, match="fine features"):
        embedded.mask_decoder.decode_masks(torch.rand(2, rows * columns), image.tokens[1:], image, [None, None])


class TestEmbedded:
    """The model that ships with the service."""

    def shown(self, embedded, name: str) -> tuple[FramedImage, Tensor]:
        """An example photo, and its mask on the network's input."""
        image = Pipeline(embedded).see(read(EXAMPLES / f"{name}.jpg"))
        mask = read(EXAMPLES / f"{name}_mask.png") > 0
        return image, mask_to_input(mask, image.frame, outside=IGNORE)

    def test_it_marks_more_of_a_person_with_it(self, embedded) -> None:
        image, labels = self.shown(embedded, "astronaut")

        def iou(*, use_mask_decoder: bool) -> float:
            pipeline = Pipeline(embedded, use_mask_decoder=use_mask_decoder)
            found = pipeline.class_map(image.encoded, [Query(("person",))]).probabilities.argmax(dim=0) == 1
            return iou_of(found, labels == 1)

        assert iou(use_mask_decoder=True) > iou(use_mask_decoder=False) + 0.05

    def test_an_example_teaches_what_there_is_no_word_for(self, embedded) -> None:
        """A made-up word finds no giraffe; one giraffe's head shows what is meant, without a step of tuning."""
        image, labels = self.shown(embedded, "giraffe_head")
        tuning = CategoryTuning(
            embedded,
            [Shot.of(embedded, image.encoded, labels)],
            ["blorptang"],
            others=Prompts.of([], ("sky", "grass", "tree")),
            layers=embedded.default_layers,
            recipe=TUNED,
        )
        memory = finished(select(tuning)).adapter(tuning, "blorptang", version=1, created_at="now").memory
        assert memory is not None
        assert memory.facts.dtype == torch.float16
        assert sum(tensor.nbytes for tensor in vars(memory).values()) < 15_000
        image, labels = self.shown(embedded, "giraffes")
        rows, columns = embedded.patch_grid_hw
        # Words that say nothing: background and category alike everywhere.
        scores = torch.tensor([[0.6], [0.4]]).expand(2, rows * columns)
        with torch.no_grad():
            decoded = score_map(embedded, image.encoded, scores, [None, memory], use_mask_decoder=True)
        found = decoded.at((labels.shape[0], labels.shape[1])).argmax(dim=0) == 1
        assert iou_of(found, labels == 1) > 0.3


def iou_of(found: Tensor, wanted: Tensor) -> float:
    return float((found & wanted).sum() / (found | wanted).sum())
