"""What is learned in which order, and how fast."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Stage:
    """A part of the training.

    Attributes:
        name: For the progress bar.
        steps: Optimiser steps.
        learning_rates: Of the parts of the network that learn (see `Network.part`), each at its peak.
        tower_waits: Share of the steps before the image tower learns too.
        batch: Photos of a step.
        shares: Of a batch: COCO's photos, VOC's, those with a class only.
        patches: Patches of a photo that are looked at.
        first_layer: Whether the first layer's class map, over many words at once, is trained.
        map_layers: Later layers whose class maps are trained.
        deep_every: Of so many steps one trains the later layers and the match head.
        deep_prompts: Prompts of a photo that run through all layers.
        match_weight: Of the match head's loss.
        average: Decay of the running mean of the weights, which is what is kept.
        mosaics: Share of the samples that are made of four photos.
        share: How far to go from the weights before the stage to those after it.
        own_labels: Whether the photos without masks are labelled anew, by the network as it is when the stage begins.
        together: Whether the masks themselves are what is learned (`training.together`), from pairs of photos.
    """

    name: str
    steps: int
    learning_rates: tuple[tuple[str, float], ...]
    tower_waits: float = 0.12
    batch: int = 12
    shares: tuple[float, float, float] = (0.45, 0.3, 0.25)
    patches: int = 192
    first_layer: bool = True
    map_layers: tuple[int, ...] = (0, 1, 2, 3)
    deep_every: int = 2
    deep_prompts: int = 14
    match_weight: float = 0.4
    average: float = 0.995
    mosaics: float = 0.0
    share: float = 1.0
    own_labels: bool = False
    together: bool = False


@dataclass(frozen=True)
class DecoderStage:
    """A part in which the mask decoder is learned, while all else stands still (`training.mask_decoder`)."""

    name: str


_MATCH = Stage(
    "match",
    steps=120,
    learning_rates=(("match", 7e-4), ("text", 5e-5)),
    patches=320,
    first_layer=False,
    map_layers=(2, 3),
    deep_every=1,
    deep_prompts=24,
    match_weight=1.0,
    average=0.97,
)

# First where things are, then the same with the network's own, sharper guesses: half-way between the two is better than
# either (Wortsman et al. 2022, https://arxiv.org/abs/2109.01903). Then who is there at all, which only what comes after
# the second layer's map learns: when the whole text tower did, the maps lost five points. Then masks, first with all
# else standing still; then the tower learns what makes good masks, again a part of the way. The match head doesn't
# survive that, and learns again.
STAGES: tuple[Stage | DecoderStage, ...] = (
    Stage("maps", steps=1200, learning_rates=(("joining", 7e-4), ("tower", 8e-5))),
    Stage(
        "sharper",
        steps=900,
        learning_rates=(("joining", 4e-4), ("tower", 8e-5)),
        tower_waits=0.0,
        mosaics=0.15,
        share=0.5,
        own_labels=True,
    ),
    _MATCH,
    DecoderStage("mask decoder"),
    Stage(
        "together",
        steps=1000,
        learning_rates=(
            ("joining", 3e-4),
            ("tower", 8e-5),
            ("earlier tower", 3e-5),
            ("decoder's spaces", 2e-4),
            ("decoder", 1e-3),
        ),
        tower_waits=0.0,
        batch=8,
        shares=(0.42, 0.58, 0.0),
        average=0.998,
        mosaics=0.06,
        share=0.625,
        together=True,
    ),
    replace(_MATCH, name="match again", shares=(0.5, 0.5, 0.0)),
)
