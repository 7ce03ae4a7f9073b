"""Refinements of class probabilities along the photo's edges, by name.

A refinement is a function of a `ClassMap`'s probabilities and of the network input they lie on. Its cost does not grow
with the photo, since both have the input's size. To add one, add it to `REFINEMENTS`.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from .crf import THREE_ROUNDS, CrfParameters, conv_crf
from .frame import imagenet_normalise


@runtime_checkable  # the tests check annotations
class Refinement(Protocol):
    """A refinement of one photo's class probabilities."""

    def __call__(
        self, probabilities: Float[Tensor, "class size size"], rgb: Float[Tensor, "3 size size"], *, few_rounds: bool
    ) -> Float[Tensor, "class size size"]:
        """Refined probabilities.

        Args:
            probabilities: On the network's input, the background first.
            rgb: The input, in [0, 1].
            few_rounds: True for objects that have edges already, such as those of a mask decoder.
        """


def crf(
    probabilities: Float[Tensor, "class size size"], rgb: Float[Tensor, "3 size size"], *, few_rounds: bool
) -> Float[Tensor, "class size size"]:
    """ConvCRF (paper, section 4.1): the authors' twenty rounds, or three of near neighbours."""
    parameters = THREE_ROUNDS if few_rounds else CrfParameters()
    return conv_crf(probabilities, imagenet_normalise(rgb).to(probabilities.device), parameters)


def unrefined(
    probabilities: Float[Tensor, "class size size"], rgb: Float[Tensor, "3 size size"], *, few_rounds: bool
) -> Float[Tensor, "class size size"]:
    """The probabilities as they are."""
    return probabilities


REFINEMENTS: Mapping[str, Refinement] = {"crf": crf, "none": unrefined}
