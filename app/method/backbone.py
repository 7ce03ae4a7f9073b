"""Interface of a vision-language model; `app/backbones` has one file per family that provides it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from .frame import Frame
from .parameters import ExampleMemory, Parameters
from .scores import ScoreMap


@dataclass(frozen=True)
class EncodedImage:
    """Everything that the rest of the chain reads of one image. Constant under tuning, so it may be cached.

    Attributes:
        tokens: Image tokens, as `Backbone.attend` reads them.
        fine_features: Map on a finer grid than the patches', for the mask decoder; None for a model without one.
        kinds: Facts about each kind of thing that a classifier in the image tower knows, for `PresenceModel`; None for
            a model without one.
    """

    tokens: Float[Tensor, "image_token width"]
    fine_features: Float[Tensor, "channel y x"] | None = None
    kinds: Float[Tensor, "kind fact"] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(part.nbytes for part in (self.tokens, self.fine_features, self.kinds) if part is not None)


@dataclass(frozen=True)
class TextTokens:
    """Tokenised prompts, padded on their right to the longest.

    Attributes:
        input_ids: Numbers in the vocabulary.
        attention_mask: 1 on tokens and 0 on padding.
        questions: The same words in yes/no questions, for a model whose image-text score is its answer.
    """

    input_ids: Int[Tensor, "prompt token"]
    attention_mask: Int[Tensor, "prompt token"]
    questions: "TextTokens | None" = None

    def __getitem__(self, prompts: slice) -> "TextTokens":
        """Some of the prompts."""
        questions = None if self.questions is None else self.questions[prompts]
        return TextTokens(self.input_ids[prompts], self.attention_mask[prompts], questions)


# Source of a model's image-text score.
ImageTextScore = Literal["match head", "yes/no question", "none"]


@dataclass(frozen=True)
class TextToImage:
    """Text-to-image attention of one image's prompts.

    Attributes:
        logits: Per layer asked for, q·k/√d **before** the softmax (paper, section 3.2), `[prompt, head, token, patch]`:
            of every text token to the patches in the order of the grid, row by row. Image tokens that have no place in
            the grid are left out.
        match_score: Probability that image and prompt belong together, `[prompt]`, in [0, 1]; 1 for a model without
            such a score, so that the maps decide alone.
    """

    logits: Mapping[int, Float[Tensor, "prompt head token patch"]]
    match_score: Float[Tensor, "prompt"]


@runtime_checkable  # the tests check annotations
class MaskDecoder(Protocol):
    """Network that turns class scores on the patch grid into scores on a finer one; it serves every class alike."""

    @property
    def memory_bytes(self) -> int:
        """Bytes of the weights."""

    def decode_masks(
        self,
        scores: Float[Tensor, "class patch"],
        patch_features: Float[Tensor, "patch feature"],
        image: EncodedImage,
        memories: Sequence[ExampleMemory | None],
    ) -> ScoreMap:
        """Class probabilities on the decoder's grid; sum 1 over classes.

        Args:
            scores: By the words, the background first.
            patch_features: By `Backbone.patch_features`.
            image: The encoded image.
            memories: Per class the memory of its examples, if it was taught.
        """

    def comparison_spaces(
        self, patch_features: Float[Tensor, "patch feature"], image: EncodedImage
    ) -> Mapping[str, Float[Tensor, "_feature _y _x"]]:
        """Spaces that the decoder compares places in, by name, each on a grid of its own: like places are near.

        Args:
            patch_features: By `Backbone.patch_features`.
            image: The encoded image.
        """

    def remember(
        self,
        features: Sequence[Float[Tensor, "patch feature"]],
        inside: Sequence[Float[Tensor, "patch"]],
        outside: Sequence[Float[Tensor, "patch"]],
        log_odds: Sequence[Float[Tensor, "patch"]],
    ) -> ExampleMemory:
        """Memory of a category's examples, one entry of each list per example.

        Args:
            features: Patch features of the photo.
            inside: Share of each patch that the category covers.
            outside: Share of each patch that it does not cover.
            log_odds: Of the category against everything else, without a memory.
        """

    def empty_memory(self) -> ExampleMemory:
        """Memory of no example; every other has its shapes."""


@runtime_checkable  # the tests check annotations
class PresenceModel(Protocol):
    """Presence of each category as a backbone of its own estimates it."""

    def knows(self, words: Sequence[str]) -> bool:
        """True if the network has learned one of a category's words from many masks."""

    def __call__(
        self,
        scores: Float[Tensor, "class patch"],
        match_score: Float[Tensor, "category"],
        patch_features: Float[Tensor, "patch feature"],
        image: EncodedImage,
        words: Sequence[Sequence[str]],
        memories: Sequence[ExampleMemory | None],
    ) -> Float[Tensor, "category"]:
        """Probability that the photo shows each category.

        Args:
            scores: By the words, under each category's adapter, the background first.
            match_score: Image-text scores.
            patch_features: By `Backbone.patch_features`.
            image: The encoded image.
            words: Per category its name and synonyms.
            memories: Per category the memory of its examples, if it was taught.
        """


@runtime_checkable  # the tests check annotations
class Backbone(Protocol):
    """A loaded model. Its parameters are never written after loading: an adapter is an argument."""

    name: str
    family: str
    revision: str
    layer_count: int
    default_layers: tuple[int, ...]
    patch_grid_hw: tuple[int, int]
    input_size: int
    feature_width: int
    image_text_score: ImageTextScore
    mask_decoder: MaskDecoder | None
    presence: PresenceModel | None

    @property
    def device(self) -> str:
        """Device of the weights, such as `cpu` or `cuda:0`."""

    @property
    def dtype(self) -> str:
        """Number format of the network, such as `float32`."""

    @property
    def memory_bytes(self) -> int:
        """Bytes of the weights."""

    def preprocess(self, photo: UInt8[np.ndarray, "height width 3"]) -> tuple[Float[Tensor, "3 size size"], Frame]:
        """Square network input with values in [0, 1], and the place of the photo in it."""

    def encode_image(self, rgb: Float[Tensor, "batch 3 size size"]) -> list[EncodedImage]:
        """Run the image tower over network inputs in [0, 1]."""

    def patch_features(self, image: EncodedImage) -> Float[Tensor, "patch feature"]:
        """Features of the patches in the order of the grid; patches that show like things have like features."""

    def tokenize(self, words: Sequence[str]) -> TextTokens:
        """Tokens of the words' prompts."""

    def attend(
        self,
        image: EncodedImage,
        text: TextTokens,
        *,
        layers: Sequence[int],
        adapters: Parameters | None = None,
    ) -> TextToImage:
        """Run prompts over one image.

        Args:
            image: From `encode_image`.
            text: P prompts.
            layers: Layers whose logits are wanted.
            adapters: None for the model's own parameters, or a stack of A adapters' parameters on its device, named as
                in `trainable`; prompts 0 … P/A − 1 run under the first adapter, and so on.

        Raises:
            ValueError: If P is not a multiple of A.
        """

    def trainable(self, layers: Sequence[int], text: TextTokens) -> Parameters:
        """Copies of the parameters that one example may change when tuned on these layers with these prompts."""
