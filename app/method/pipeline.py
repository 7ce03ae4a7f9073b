"""The whole method on one screen: a photo and the categories to look for, to a probability per class and pixel.

    photo → EncodedImage → Evidence → ScoreMap → ClassMap → Prediction

`Pipeline.run` is the chain: the service, warm-up and notebooks call it. Evaluation calls `Pipeline.find`, which is all
of it but the edges, to compare with and without them. Each step is a file: `frame` (photo to network input and back),
the backbone (image tokens, attention), `prompts`, `evidence`, `scores`, the backbone's mask decoder, `tiles`,
`refinement`, `prediction`. `tuning` makes the adapters, `infoscore` chooses layers.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from . import tiles
from .adapter import Adapter
from .backbone import Backbone, EncodedImage
from .evidence import Evidence, layer_weights, prompt_evidence
from .frame import Frame
from .parameters import ExampleMemory
from .prediction import ClassMap, Prediction
from .presence import by_best_patches, shifted
from .prompts import BACKGROUND_WORDS, Prompts, Query
from .refinement import Refinement, unrefined
from .scores import LayerWeights, ScoreMap

Rgb = UInt8[np.ndarray, "height width 3"]
# Encodes a network input. Its number is 0 for the whole photo and 1, 2, … for its tiles or pieces, so that a
# cache can name it.
Encode = Callable[[Float[Tensor, "3 size size"], int], EncodedImage]
# Times a named step.
Stage = Callable[[str], AbstractContextManager[None]]

# A category with less than this share of the best class's score everywhere is not in the photo. With a hundred names
# asked for in two of the example photos four are kept, and 99.8 % of the refined labels equal those of all hundred.
# Below 1/4 no pixel's best class changes by this before refinement: interpolation is a mean of four patches.
MIN_RELATIVE_SCORE = 0.2


def untimed(name: str) -> AbstractContextManager[None]:
    """Times nothing."""
    return nullcontext()


@dataclass(frozen=True)
class FramedPhoto:
    """A photo, or a part of it, as the network takes it.

    Attributes:
        rgb: The network input, in [0, 1].
        frame: Place of the photo in it.
    """

    rgb: Float[Tensor, "3 size size"]
    frame: Frame


@dataclass(frozen=True)
class FramedImage(FramedPhoto):
    """A photo, or a part of it, as the network takes it, encoded.

    Attributes:
        encoded: Output of the image tower.
    """

    encoded: EncodedImage


@dataclass(frozen=True)
class Reading:
    """All prompts' attention over one image, from which masks of any of the classes can be made.

    Attributes:
        image: The encoded image.
        evidence: Of all classes, the background first.
        weights: Weight of each layer per class.
        adapters: Per class its adapter, if it was taught and is usable.
        scores: Of all classes on the patch grid.
        match_score: Per category its best image-text score.
        presence: Per category the probability that the image shows it.
    """

    image: EncodedImage
    evidence: Evidence
    weights: LayerWeights
    adapters: tuple[Adapter | None, ...]
    scores: Float[Tensor, "class patch"]
    match_score: Float[Tensor, "category"]
    presence: Float[Tensor, "category"]

    def present(self, min_presence: float) -> list[int]:
        """The background and the classes of at least this presence."""
        return [0, *(number for number, p in enumerate(self.presence.tolist(), 1) if p >= min_presence)]

    def scores_of(self, classes: Sequence[int]) -> Float[Tensor, "class patch"]:
        """Scores of some classes as they would be if the others had not been requested."""
        if len(classes) == len(self.scores):
            return self.scores
        return self.evidence.only(classes).class_scores(self.weights.only(classes))


@dataclass(frozen=True)
class Pipeline:
    """The chain from a photo to a prediction, with its settings.

    Attributes:
        backbone: A loaded model.
        layers: Layers read for categories without an adapter; the backbone's default if None.
        background: Words for "none of them"; those that name a category in play are left out.
        use_mask_decoder: True to decode masks on a finer grid, if the backbone has a decoder. (The paper has none.)
        use_tiles: True to look for everything found again in four overlapping parts of the photo.
        refinement: Refinement of the edges.
        min_relative_score: A category that has less than this share of the best class's score at every place is left
            out. Of a thousand categories few are in a photo, and only those cost upsampling and refinement.
        min_presence: A category that is less probably in the photo gets no mask and competes with no other.
    """

    backbone: Backbone
    layers: tuple[int, ...] | None = None
    background: Sequence[str] = BACKGROUND_WORDS
    use_mask_decoder: bool = True
    use_tiles: bool = False
    refinement: Refinement = unrefined
    min_relative_score: float = MIN_RELATIVE_SCORE
    min_presence: float = 0.0

    @torch.inference_mode()
    def run(
        self, photo: Rgb, queries: Sequence[Query], *, encode: Encode | None = None, stage: Stage = untimed
    ) -> Prediction:
        """Segment a photo into the background and the categories asked for.

        Args:
            photo: RGB, 0 … 255.
            queries: The categories, taught ones and merely named ones alike.
            encode: Runs the image tower, perhaps through a cache; the backbone's by default.
            stage: Times each step.
        """
        # 1. to 3. Photo to class probabilities on the network's input.
        framed, class_map = self.find(photo, queries, encode=encode, stage=stage)
        # 4. Edges.
        with stage("refine") if self.refinement is not unrefined else nullcontext():
            class_map = self.refine(class_map, framed.rgb)
        # 5. Back to the photo, class by class when asked.
        return Prediction(class_map.cpu(), framed.frame)

    @torch.no_grad()
    def find(
        self, photo: Rgb, queries: Sequence[Query], *, encode: Encode | None = None, stage: Stage = untimed
    ) -> tuple[FramedPhoto, ClassMap]:
        """The photo as the network takes it, and its class map before refinement; arguments as of `run`."""
        if tiles.is_long((photo.shape[0], photo.shape[1])):
            return self._find_in_pieces(photo, queries, encode, stage)
        # 1. Photo to network input, and the image tower once for all prompts.
        image = self.see(photo, encode=encode, stage=stage)
        # 2. Attention of every prompt, to class scores on a grid, to probabilities on the input.
        with stage("attend"):
            class_map = self.class_map(image.encoded, queries)
        # 3. The same in four parts of the photo, for whatever the whole shows.
        if self.use_tiles:
            with stage("tiles"):
                class_map = self._join_tiles(class_map, photo, image.frame, queries, encode)
        return image, class_map

    def _find_in_pieces(
        self, photo: Rgb, queries: Sequence[Query], encode: Encode | None, stage: Stage
    ) -> tuple[FramedPhoto, ClassMap]:
        """`find` in a long photo: its pieces are looked at instead of the whole, which would be squeezed."""
        with stage("preprocess"):
            framed = FramedPhoto(*self.backbone.preprocess(photo))
        pieces = tiles.pieces_of(framed.frame.photo_hw)
        seen = [self.see(piece.of(photo), encode=encode, number=n, stage=stage) for n, piece in enumerate(pieces, 1)]
        with stage("attend"):
            return framed, self._join_pieces(pieces, seen, framed.frame, queries)

    def _join_pieces(
        self, pieces: Sequence[tiles.Tile], seen: Sequence[FramedImage], frame: Frame, queries: Sequence[Query]
    ) -> ClassMap:
        """Class map of a long photo: a category that one piece shows is looked for in all of them."""
        readings = [self.read(piece.encoded, queries) for piece in seen]
        shown = (self.decode(reading, reading.present(self.min_presence)).classes for reading in readings)
        sought = sorted({0}.union(*shown))
        closer = replace(self, min_relative_score=0.0)
        maps = (  # one after the other: of many classes the maps of all pieces at once are gigabytes
            (tile, piece.frame, closer.decode(reading, sought).probabilities)
            for tile, piece, reading in zip(pieces, seen, readings, strict=True)
        )
        nothing = readings[0].scores.new_zeros(len(sought), frame.input_size, frame.input_size)
        return ClassMap(
            classes=tuple(sought),
            probabilities=tiles.join(nothing, frame, maps, whole_weight=0.0),
            match_score=torch.stack([reading.match_score for reading in readings]).amax(dim=0),
            presence=torch.stack([reading.presence for reading in readings]).amax(dim=0),
            layers=readings[0].weights.layers,
            unusable=tuple(sorted({number for reading in readings for number in reading.evidence.unusable})),
        )

    def _for_parts(self, queries: Sequence[Query]) -> "Pipeline":
        """The pipeline for a part that is asked for few of the classes: it must answer for all of those.

        A word that names a category stays out of the background, also where that category isn't looked for any more.
        """
        background = Prompts.of(queries, self.background).queries[0].words
        return replace(self, background=background, min_relative_score=0.0, min_presence=0.0)

    def see(self, photo: Rgb, *, encode: Encode | None = None, number: int = 0, stage: Stage = untimed) -> FramedImage:
        """Preprocess and encode a photo, or its part of this number."""
        with stage("preprocess"):
            rgb, frame = self.backbone.preprocess(photo)
        with stage("encode_image"):
            return FramedImage(rgb, frame, encode(rgb, number) if encode else encode_one(self.backbone, rgb))

    def class_map(self, image: EncodedImage, queries: Sequence[Query]) -> ClassMap:
        """Class probabilities on the network's input, before refinement (paper, sections 3.2 and 4.1)."""
        reading = self.read(image, queries)
        return self.decode(reading, reading.present(self.min_presence))

    @torch.no_grad()
    def read(self, image: EncodedImage, queries: Sequence[Query]) -> Reading:
        """Attention of all prompts over an image, each under its category's adapter, and presence."""
        prompts = Prompts.of(queries, self.background)
        weights = layer_weights(prompts.queries, self.layers or self.backbone.default_layers)
        evidence = prompt_evidence(self.backbone, image, prompts, weights.layers)
        adapters = tuple(
            None if number in evidence.unusable else query.adapter for number, query in enumerate(prompts.queries)
        )
        scores, match_score = evidence.class_scores(weights), evidence.best_match()
        words = [query.words for query in prompts.queries[1:]]
        presence = category_presence(self.backbone, image, scores, match_score, words, adapters[1:])
        return Reading(image, evidence, weights, adapters, scores, match_score, presence)

    @torch.no_grad()
    def decode(self, reading: Reading, classes: Sequence[int]) -> ClassMap:
        """Class probabilities of some classes, the background among them, which compete with no others."""
        found = score_map(
            self.backbone,
            reading.image,
            reading.scores_of(classes),
            [adapter.mask_memory if adapter else None for adapter in (reading.adapters[number] for number in classes)],
            use_mask_decoder=self.use_mask_decoder,
        )
        return ClassMap.of(
            found,
            size=self.backbone.input_size,
            min_relative_score=self.min_relative_score,
            numbers=classes,
            match_score=reading.match_score,
            presence=reading.presence,
            layers=reading.weights.layers,
            unusable=reading.evidence.unusable,
        )

    def refine(self, class_map: ClassMap, rgb: Float[Tensor, "3 size size"]) -> ClassMap:
        """The class map with refined edges."""
        decoded = self.use_mask_decoder and self.backbone.mask_decoder is not None
        return replace(class_map, probabilities=self.refinement(class_map.probabilities, rgb, few_rounds=decoded))

    def _join_tiles(
        self, whole: ClassMap, photo: Rgb, frame: Frame, queries: Sequence[Query], encode: Encode | None
    ) -> ClassMap:
        """The class map of a whole photo, joined with those of its overlapping parts.

        Categories that the whole does not show at all are not looked for in the parts; without any left the parts are
        not encoded.
        """
        shown = whole.only_shown()
        if len(shown.classes) == 1:
            return whole
        sought = [queries[number - 1] for number in shown.classes[1:]]
        closer = self._for_parts(queries)
        seen = (
            (tile, self.see(tile.of(photo), encode=encode, number=n))
            for n, tile in enumerate(tiles.tiles_of(frame.photo_hw), 1)
        )
        maps = (  # one after the other: of many classes the maps of all parts at once are gigabytes
            (tile, part.frame, closer.class_map(part.encoded, sought).probabilities) for tile, part in seen
        )
        return replace(shown, probabilities=tiles.join(shown.probabilities, frame, maps))


def default_min_presence(backbone: Backbone, bound: float) -> float:
    """A bound that nobody asked for, which applies to calibrated presence alone."""
    return 0.0 if backbone.presence is None else bound


@torch.no_grad()
def encode_one(backbone: Backbone, rgb: Float[Tensor, "3 size size"]) -> EncodedImage:
    """Run the image tower over one network input."""
    return backbone.encode_image(rgb[None])[0]


def category_presence(
    backbone: Backbone,
    image: EncodedImage,
    scores: Float[Tensor, "class patch"],
    match_score: Float[Tensor, "category"],
    words: Sequence[Sequence[str]],
    adapters: Sequence[Adapter | None],
) -> Float[Tensor, "category"]:
    """Probability that a photo shows each category, with the bias of those that were taught.

    Args:
        backbone: A loaded model.
        image: The encoded image.
        scores: On the patch grid, the background first.
        match_score: Image-text scores.
        words: Per category its name and synonyms.
        adapters: Per category its adapter, if it was taught.
    """
    memories = [adapter.memory if adapter else None for adapter in adapters]
    found = backbone_presence(backbone, image, scores, match_score, words, memories)
    return shifted(found, found.new_tensor([adapter.presence_bias if adapter else 0.0 for adapter in adapters]))


def backbone_presence(
    backbone: Backbone,
    image: EncodedImage,
    scores: Float[Tensor, "class patch"],
    match_score: Float[Tensor, "category"],
    words: Sequence[Sequence[str]],
    memories: Sequence[ExampleMemory | None],
) -> Float[Tensor, "category"]:
    """Presence by the backbone's own model or, if it has none, by its image-text score or the best patches."""
    if backbone.presence:
        return backbone.presence(scores, match_score, backbone.patch_features(image), image, words, memories)
    return by_best_patches(scores, match_score) if backbone.image_text_score == "none" else match_score


def score_map(
    backbone: Backbone,
    image: EncodedImage,
    scores: Float[Tensor, "class patch"],
    memories: Sequence[ExampleMemory | None],
    *,
    use_mask_decoder: bool,
) -> ScoreMap:
    """Class scores on the finest grid there is: the mask decoder's, if it is used and there is one, or the patches'.

    Args:
        backbone: A loaded model.
        image: The encoded image.
        scores: On the patch grid, the background first.
        memories: Per class the memory of its examples, if it was taught.
        use_mask_decoder: False for the patches' scores.
    """
    if not use_mask_decoder or backbone.mask_decoder is None:
        return ScoreMap(scores, backbone.patch_grid_hw, align_corners=True)
    return backbone.mask_decoder.decode_masks(scores, backbone.patch_features(image), image, memories)
