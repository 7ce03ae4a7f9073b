"""The embedded model's presence: likeness to the examples is measured against a bank of photos."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from app.backbones.embedded.model import PRESENCE
from app.backbones.embedded.presence import (
    COMPARED_FACTS,
    EXAMPLE_FACTS,
    KIND_FACTS,
    NAMED_FACTS,
    Bank,
    KnownWords,
    Presence,
    density,
    example_facts,
    kind_facts,
    likeness_in_bank,
    named_facts,
)
from app.method.backbone import EncodedImage
from app.method.parameters import ExampleMemory

EXAMPLES = Path(__file__).parents[3] / "examples"
SHARPNESS = torch.tensor(2.0)


def image_of(embedded) -> EncodedImage:
    """An image of which the classifier thinks that all kinds are as probable."""
    kinds = torch.full((len(embedded.presence.known.members), len(KIND_FACTS)), -4.0)
    return EncodedImage(torch.zeros(577, 512), kinds=kinds)


def directions(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, 5, generator=torch.Generator().manual_seed(seed)), dim=-1)


def bank_of(photos: torch.Tensor) -> Bank:
    """A bank whose everyday patches lie one way."""
    centroids, share = F.normalize(torch.tensor([[1.0, 0, 0, 0, 0]]), dim=1), torch.ones(1)
    at = density(photos.flatten(0, 1), centroids, share, SHARPNESS).view(photos.shape[:2])
    return Bank(photos, at, centroids, share)


def memory_of(inside: torch.Tensor) -> ExampleMemory:
    share = torch.full((len(inside),), 1 / len(inside))
    outside = directions(len(inside), seed=9)
    facts = torch.tensor([0.5, -1.0, 0.25])
    alone = ExampleMemory(inside, share, outside, share, 0 * outside, 0 * share, facts)
    return alone.map(lambda tensor: tensor[None])


def test_density_of_one_kernel_is_its_cosine() -> None:
    places, centre = directions(3, seed=0), directions(1, seed=1)
    torch.testing.assert_close(density(places, centre, torch.ones(1), SHARPNESS), 2 * (places @ centre[0]))


def test_a_photo_with_the_example_in_it_stands_out_and_one_of_the_bank_does_not() -> None:
    photos, example = directions(31, 7, seed=2), directions(3, seed=3)
    bank, memory = bank_of(photos), memory_of(example)
    stands_out = EXAMPLE_FACTS.index("stands out 0.005")
    showing = torch.cat([directions(46, seed=4), example])
    in_bank = likeness_in_bank(bank, memory, SHARPNESS)
    everywhere = [density(places, bank.centroids, bank.share, SHARPNESS) for places in (showing, photos[0])]
    facts = torch.cat(
        [
            example_facts(in_bank, usual, places, memory, SHARPNESS)
            for usual, places in zip(everywhere, (showing, photos[0]), strict=True)
        ]
    )
    assert facts[0, stands_out] > 1
    assert facts[1, stands_out] < facts[0, stands_out]
    torch.testing.assert_close(facts[0, -3:], memory.facts[0])


def test_facts_of_a_kind_by_hand() -> None:
    """Three classes, of which the last two are of the kind; one photo of three patches."""
    classes = torch.tensor([[0.6, 0.3, 0.1], [1.0, 0, 0], [0.5, 0.25, 0.25], [0.75, 0.2, 0.05]])
    facts = kind_facts(torch.tensor([[0.0, 1, 1]]), classes)[0]
    assert facts.tolist() == pytest.approx([math.log(0.5)] * 3 + [math.log(0.4)])


def known_words(**spread: float) -> KnownWords:
    """Two words of a kind each; what is usual without them is 1 for every fact, and 0 for all other words."""
    shape = (3, len(COMPARED_FACTS))
    median, spreads = torch.zeros(shape), torch.full(shape, torch.inf)
    median[:2] = 1
    for row, word in enumerate(("cup", "bowl")):
        spreads[row] = spread.get(word, torch.inf)
    return KnownWords({"cup": 0, "bowl": 1}, torch.eye(2), torch.tensor([1, 0, 0]), median, spreads)


def test_a_known_word_is_compared_with_photos_without_what_it_names() -> None:
    known, kinds = known_words(cup=2.0), torch.tensor([[5.0, 5, 5, 5], [7.0, 7, 7, 9]])
    scores = torch.full((4, 7), 0.25)
    facts = named_facts(scores, torch.full((3,), 0.5), kinds, known, [("mug", "Cup"), ("bowl",), ("gribble",)])
    columns = [NAMED_FACTS.index(name) for name in ("known word", "unusual match", "unusual kind 0.02")]
    # A match of one half has log-odds of 0, half a spread below the usual. Bowls were seen in too few photos.
    assert facts[:, columns].tolist() == [[1, -0.5, 3], [1, 0, 0], [0, 0, 0]]
    assert facts[0, -1] == 4


def test_what_is_usual_is_shipped_for_words_of_coco(embedded) -> None:
    known = embedded.presence.known
    cat, person = (known.rows([(word,)])[0] for word in ("cat", "Man"))
    assert known.spread[[cat, person]].isfinite().all()
    assert known.spread[-1].isinf().all()
    assert known.members[known.kind[cat]].nonzero().flatten().tolist() == [281, 282, 283, 284, 285]
    assert known.members.shape[1] == 1000


def test_a_photo_of_a_cat_is_unusual_for_photos_without_one(embedded) -> None:
    """By the classifier in the image tower."""
    with Image.open(EXAMPLES / "chelsea.jpg") as file:
        rgb, _ = embedded.preprocess(np.array(file.convert("RGB")))
    kinds = embedded.encode_image(rgb[None])[0].kinds
    known = embedded.presence.known
    rows = known.rows([("cat",), ("giraffe",), ("dog",)])
    unusual = known.unusual(rows, torch.zeros(3, len(NAMED_FACTS)), kinds)[:, -len(KIND_FACTS) :]
    assert (unusual[0] > 3).all()
    assert (unusual[1:] < unusual[0]).all()


def test_the_shipped_file_belongs_to_the_shipped_weights(embedded) -> None:
    assert isinstance(embedded.presence, Presence)
    assert PRESENCE.stat().st_size < 2**20


def test_a_file_of_other_weights_is_left_alone(embedded) -> None:
    assert Presence.load(PRESENCE, embedded.mask_decoder.weights, revision="0123456789abcdef") is None


def test_the_bank_is_of_unit_length(embedded) -> None:
    bank = embedded.presence._bank
    for vectors in (bank.directions, bank.centroids):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:-1]), atol=1e-3, rtol=0)
    assert bank.share.sum().item() == pytest.approx(1, abs=1e-2)


def test_an_adapter_of_absurd_numbers_has_a_presence_all_the_same(embedded) -> None:
    """Imported adapters are only known to be finite."""
    memory = embedded.mask_decoder.empty_memory()
    features, scores = torch.randn(576, 512), torch.rand(2, 576)
    image = image_of(embedded)
    for absurd in (memory, memory.map(lambda tensor: tensor + 3e4), memory.map(lambda tensor: tensor - 3e4)):
        presence = embedded.presence(scores, torch.tensor([0.5]), features, image, [("cat",)], [absurd])
        assert 0 <= presence.item() <= 1


def test_words_learned_from_many_masks_are_known(embedded) -> None:
    presence = embedded.presence
    assert presence.knows(("cat",))
    assert presence.knows(("moggy", "Kitten"))
    assert presence.knows(("aeroplane",))
    assert not presence.knows(("gribble", "catfish"))


def test_a_known_word_alone_has_a_third_of_the_say(embedded) -> None:
    presence = embedded.presence
    generator = torch.Generator().manual_seed(0)
    scores, match = torch.rand(3, 576, generator=generator), torch.tensor([0.9, 0.9])
    features = torch.randn(576, 512, generator=generator)
    memory = embedded.mask_decoder.empty_memory()
    words = [("cat",), ("gribble",)]
    image = image_of(embedded)
    by_words = presence(scores, match, features, image, words, [None, None]).logit()
    taught = presence(scores, match, features, image, words, [memory, memory]).logit()
    facts = named_facts(scores, match, image.kinds, presence.known, words)
    both = presence._taught.logit(torch.cat([facts, presence._example_facts(features, [memory, memory])], dim=1))
    torch.testing.assert_close(taught[0], (by_words[0] + 2 * both[0]) / 3, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(taught[1], both[1], rtol=1e-3, atol=1e-3)


def test_many_categories_have_the_presence_that_each_has_alone_and_what_was_computed_of_them_goes_with_them(
    embedded,
) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(576, 512, generator=generator)
    empty = embedded.mask_decoder.empty_memory()

    def memory() -> ExampleMemory:
        inside = F.normalize(torch.randn(empty.inside.shape, generator=generator), dim=1)
        share = torch.full_like(empty.inside_share, 1 / len(inside))
        return ExampleMemory(inside, share, inside, share, empty.absent, empty.absent_share, empty.facts)

    before = len(embedded.presence._in_bank)
    memories = [memory() for _ in range(67)]
    together = embedded.presence._example_facts(features, memories)
    assert len(embedded.presence._in_bank) == before + 67
    for number in (0, 63, 64, 66):
        anew = memories[number].map(torch.clone)  # of which nothing is kept
        alone = embedded.presence._example_facts(features, [anew])
        torch.testing.assert_close(alone[0], together[number], rtol=1e-4, atol=1e-4)
    del memories, anew
    assert len(embedded.presence._in_bank) == before
