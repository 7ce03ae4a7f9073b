"""One example, ready for tuning: its encoded photo, its mask on the loss grid, the loss weights and the IoU."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor
from torch.nn import functional as F

from .backbone import Backbone, EncodedImage

IGNORE = 255  # label of pixels that count for neither side

# Resolution of the loss, in cells per patch and axis.
CELLS_PER_PATCH = 4
# Weight of a background pixel where the sides are not balanced (the authors').
BACKGROUND_WEIGHT = 0.5


@dataclass(frozen=True)
class Shot:
    """One example, with the category or without it.

    Attributes:
        image: Its encoded photo; the image tower is frozen, so it is computed once.
        features: Its patch features.
        target: Share of each cell that the category covers, in [0, 1].
        inside: Share of each cell that the photo covers (0 in the padding).
    """

    image: EncodedImage
    features: Float[Tensor, "patch feature"]
    target: Float[Tensor, "y x"]
    inside: Float[Tensor, "y x"]

    @staticmethod
    def of(backbone: Backbone, image: EncodedImage, labels: Real[Tensor, "size size"]) -> "Shot":
        """A shot of an example.

        Args:
            backbone: A loaded model.
            image: The encoded photo.
            labels: On the network's input: the share of the pixel that the category covers, so 1 or 0 almost
                everywhere; 255 for padding or unknown. An example without the category has no other pixel than 0.
        """
        rows, columns = backbone.patch_grid_hw
        cells = (rows * CELLS_PER_PATCH, columns * CELLS_PER_PATCH)
        labels = labels.to(image.tokens.device)
        known = labels != IGNORE
        inside = F.adaptive_avg_pool2d(known.float()[None], cells)[0]
        category = F.adaptive_avg_pool2d((labels * known).float()[None], cells)[0]
        return Shot(image, backbone.patch_features(image), category / inside.clamp_min(1e-6), inside)

    @property
    def shows(self) -> bool:
        """True if the photo shows the category, False for an example without it."""
        return bool(self.target.any())

    @property
    def size_hw(self) -> tuple[int, int]:
        """Cells from top to bottom and from left to right."""
        height, width = self.target.shape
        return height, width

    def sides(self, grid_hw: tuple[int, int]) -> tuple[Float[Tensor, "patch"], Float[Tensor, "patch"]]:
        """Share of each patch that is the category, and that is not; padding is neither."""
        both = torch.stack([self.target, 1 - self.target]) * self.inside
        inside, outside = F.adaptive_avg_pool2d(both, grid_hw).flatten(1)
        return inside, outside

    def loss_weight(self, *, balanced: bool) -> Float[Tensor, "2 y x"]:
        """Weight of each cell's "is the category" and "is not" in the loss.

        Args:
            balanced: True if both sides have weights that sum to 0.5 however small the object is, so that a photo with
                one side alone counts half; False for the authors' way, in which each pixel counts, background pixels
                half, and all weights sum to 1.
        """
        sides = torch.stack([self.target, 1 - self.target]) * self.inside
        if balanced:
            return 0.5 * sides / sides.sum(dim=(1, 2), keepdim=True).clamp_min(1e-6)
        sides = torch.stack([sides[0], BACKGROUND_WEIGHT * sides[1]])
        return sides / sides.sum()

    def iou(self, predicted: Bool[Tensor, "y x"]) -> float:
        """Intersection over union of a predicted mask, each cell weighted by what it holds; in [0, 1]."""
        chosen = predicted.float() * self.inside
        wanted = self.target * self.inside
        overlap = (chosen * self.target).sum()
        return float(overlap / (chosen.sum() + wanted.sum() - overlap).clamp_min(1e-6))
