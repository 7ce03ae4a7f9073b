"""Stages of the training in order, with their trained parts, learning rates and data."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Stage:
    """One stage of the training.

    Attributes:
        name: Name in the progress bar and for `--stage`.
        steps: Optimiser steps.
        learning_rates: Peak learning rate of each trained part of the network (see `Network.part`).
        tower_waits: Share of the steps before the training of the image tower starts.
        batch: Photos per step.
        shares: Shares of a batch: photos of COCO, of VOC, photos with only a class, and of people's own things.
        patches: Number of random patches of a photo that are used.
        first_layer: True to train the first layer's class map over many words at once.
        map_layers: Layers whose class maps are trained in the pass through all layers.
        deep_every: Interval in steps of that pass, which trains the later layers and the match head.
        deep_prompts: Prompts per photo in that pass.
        match_weight: Weight of the match head's loss.
        average: Decay of the running mean of the weights; the mean is the result.
        mosaics: Share of the samples that are mosaics of four photos.
        share: Position of the result between the weights before the stage (0) and their running mean (1).
        own_labels: True to label the photos without masks again, with the network at the start of the stage.
        together: True to train the masks (`training.together`), on pairs of photos.
        open_requests: True to ask mostly for what is absent when the masks are trained.
        detected: True to add labels by an object detector (`training.detected`).
        bfloat16: True to run the image tower and the text tower in bfloat16, which is faster where the processor
            multiplies it.
    """

    name: str
    steps: int
    learning_rates: tuple[tuple[str, float], ...]
    tower_waits: float = 0.12
    batch: int = 12
    shares: tuple[float, float, float, float] = (0.45, 0.3, 0.25, 0.0)
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
    open_requests: bool = False
    detected: bool = False
    bfloat16: bool = False


@dataclass(frozen=True)
class DecoderStage:
    """A stage that trains the mask decoder; everything else is frozen (`training.mask_decoder`).

    Attributes:
        name: Name in the progress bar and for `--stage`.
        open_requests: True to train it further on open requests, False to train it from the start.
    """

    name: str
    open_requests: bool = False


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

_TOGETHER = Stage(
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
    shares=(0.42, 0.58, 0.0, 0.0),
    average=0.998,
    mosaics=0.06,
    share=0.625,
    together=True,
)

# First the class maps, then the same with sharper pseudo-labels by the network itself; the mean of the weights before
# and after is better than either (Wortsman et al. 2022, https://arxiv.org/abs/2109.01903). Then the match head, with
# only the layers behind the second layer's map: training the whole text tower cost the maps five points. Then masks,
# first with everything else frozen, then together with the tower, again interpolated. The match head does not fit the
# changed tower and is trained again. The mask decoder learns from people's own things and from requests of which most
# is absent. Tower, maps and masks learn together once more, from more photos: people's own things, photos with a class
# that the network has labelled, and what a detector sees in all but COCO's; then the match head.
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
    _TOGETHER,
    replace(_MATCH, name="match again", shares=(0.5, 0.5, 0.0, 0.0)),
    DecoderStage("open requests", open_requests=True),
    replace(
        _TOGETHER,
        name="more photos",
        steps=800,
        learning_rates=(
            ("joining", 2.5e-4),
            ("tower", 7e-5),
            ("earlier tower", 2.5e-5),
            ("decoder's spaces", 1e-4),
            ("decoder", 5e-4),
        ),
        shares=(0.3, 0.25, 0.3, 0.15),
        average=0.997,
        share=0.7,
        own_labels=True,
        open_requests=True,
        detected=True,
        bfloat16=True,
    ),
    replace(_MATCH, name="match at last", shares=(0.4, 0.25, 0.35, 0.0)),
)
