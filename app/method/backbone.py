"""What the method needs of a vision-language model; `app/backbones` has one file per family that provides it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from .frame import Frame


@dataclass(frozen=True)
class TextTokens:
    """Tokenised prompts, padded to the longest.

    Attributes:
        input_ids: Numbers of the vocabulary.
        attention_mask: 1 on tokens and 0 on padding.
        questions: The same words in questions, for a model whose image-text score is its answer.
    """

    input_ids: Int[Tensor, "prompt token"]
    attention_mask: Int[Tensor, "prompt token"]
    questions: "TextTokens | None" = None

    def __getitem__(self, prompts: slice) -> "TextTokens":
        """Some of the prompts."""
        questions = None if self.questions is None else self.questions[prompts]
        return TextTokens(self.input_ids[prompts], self.attention_mask[prompts], questions)


# How a model says whether a text and an image belong together.
ImageTextScore = Literal["match head", "yes/no question", "none"]


@dataclass(frozen=True)
class TextToImage:
    """What the text saw in one image.

    Attributes:
        logits: Per layer asked for, q·k/√d **before** the softmax (paper, section 3.2), `[prompt, head, token, patch]`:
            of every text token to the patches in the order of the grid, row by row. Image tokens that have no place in
            the grid are left out.
        match_score: Probability that image and prompt belong together, `[prompt]`, in [0, 1]; 1 of a model that has no
            score, so that the maps decide alone.
    """

    logits: Mapping[int, Float[Tensor, "prompt head token patch"]]
    match_score: Float[Tensor, "prompt"]


@runtime_checkable  # the tests check annotations
class Backbone(Protocol):
    """A loaded model. Its parameters are never written after loading: what one example changes is an argument."""

    name: str
    family: str
    revision: str
    layer_count: int
    default_layers: tuple[int, ...]
    patch_grid_hw: tuple[int, int]
    input_size: int
    feature_width: int
    image_text_score: ImageTextScore
    # Tensors of `app.method.mask_decoder`; None of a model that has not learned them.
    mask_decoder: Mapping[str, Tensor] | None

    @property
    def device(self) -> str:
        """Where the weights are, such as `cpu` or `cuda:0`."""

    @property
    def dtype(self) -> str:
        """Number format of the network, such as `float32`."""

    @property
    def memory_bytes(self) -> int:
        """Bytes of the weights."""

    def preprocess(self, photo: UInt8[np.ndarray, "height width 3"]) -> tuple[Float[Tensor, "3 size size"], Frame]:
        """Photo to square input with values in [0, 1], and where the photo lies in it."""

    def encode_image(self, rgb: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch image_token width"]:
        """Inputs in [0, 1] to all that `attend` needs to know of them. Constant under tuning, so it may be cached."""

    def patch_features(self, image_tokens: Float[Tensor, "image_token width"]) -> Float[Tensor, "patch feature"]:
        """What the image tokens say of each patch, in the order of the grid: patches of like things are alike."""

    def edge_features(self, image_tokens: Float[Tensor, "image_token width"]) -> Float[Tensor, "channel y x"]:
        """Features on a finer grid than the patches', for the mask decoder; no channels of a model without one."""

    def tokenize(self, words: Sequence[str]) -> TextTokens:
        """Words to the tokens of their prompts."""

    def attend(
        self,
        image_tokens: Float[Tensor, "image_token width"],
        text: TextTokens,
        *,
        layers: Sequence[int],
        adapters: Mapping[str, Tensor] | None = None,
    ) -> TextToImage:
        """Run prompts over one image.

        Args:
            image_tokens: Of one image, from `encode_image`.
            text: P prompts.
            layers: Layers whose logits are wanted.
            adapters: None for the base model, or parameters named as in `trainable`, each with a leading axis of A
                adapters; prompts 0 … P/A − 1 run under the first adapter, and so on. All matrices may also come as
                factors of their change (`app.method.low_rank`).

        Raises:
            ValueError: If P is not a multiple of A.
        """

    def trainable(self, layers: Sequence[int], text: TextTokens) -> dict[str, Tensor]:
        """Copies of the parameters that one example may change when it is tuned on these layers with these prompts."""
