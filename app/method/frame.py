"""Geometry between a photo and the square network input, in both directions."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

# The authors normalise BLIP's input with the ImageNet statistics, not with those of BLIP's own processor.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Frame:
    """Position of a photo in the square network input.

    Attributes:
        photo_hw: Height and width of the photo in pixels.
        input_size: Side of the square input in pixels.
        content_hw: Height and width of the part that the photo fills, from the top left corner; the rest is padding.
    """

    photo_hw: tuple[int, int]
    input_size: int
    content_hw: tuple[int, int]


def stretch(photo: UInt8[np.ndarray, "height width 3"], size: int) -> tuple[Float[Tensor, "3 size size"], Frame]:
    """Resize a photo to the square without keeping its proportions; values in [0, 1].

    Bilinear, as in the training of the embedded model; a bicubic filter would make an enlarged photo sharper.
    """
    height, width = photo.shape[:2]
    return _resize(photo, (size, size), Image.Resampling.BILINEAR), Frame((height, width), size, (size, size))


def fit_and_pad(photo: UInt8[np.ndarray, "height width 3"], size: int) -> tuple[Float[Tensor, "3 size size"], Frame]:
    """Resize a photo so that its long side fills the square, and pad right and bottom with 0; values in [0, 1].

    The short side is rounded down to a multiple of 8, as in the authors' loader.
    """
    height, width = photo.shape[:2]
    longest = max(height, width)
    content = tuple(
        size if side == longest else max(8, int(side * size / longest + 1e-6) // 8 * 8) for side in (height, width)
    )
    rgb = torch.zeros(3, size, size)
    rgb[:, : content[0], : content[1]] = _resize(photo, (content[0], content[1]), Image.Resampling.BICUBIC)
    return rgb, Frame((height, width), size, (content[0], content[1]))


def to_photo(maps: Float[Tensor, "class size size"], frame: Frame) -> Float[Tensor, "class height width"]:
    """Crop the padding and resize maps of the input to the photo's size."""
    height, width = frame.content_hw
    content = maps[None, :, :height, :width]
    return F.interpolate(content, size=frame.photo_hw, mode="bilinear", align_corners=False)[0]


def without_padding(maps: Float[Tensor, "channel y x"], frame: Frame) -> Float[Tensor, "channel y x"]:
    """The part of maps of the input that the photo fills, stretched to the whole of them."""
    if frame.content_hw == (frame.input_size, frame.input_size):
        return maps
    sides = tuple(zip(maps.shape[1:], frame.content_hw, strict=True))
    filled_y, filled_x = (cells * content / frame.input_size for cells, content in sides)
    # Cells that are padding alone are cut off, so that none of it is mixed into the photo's last row and column.
    rows, columns = math.ceil(filled_y), math.ceil(filled_x)
    height, width = filled_y / rows, filled_x / columns
    part = maps.new_tensor([[[width, 0, width - 1], [0, height, height - 1]]])  # of a square from -1 to 1
    places = F.affine_grid(part, [1, *maps.shape], align_corners=False)
    return F.grid_sample(maps[None, :, :rows, :columns], places, padding_mode="border", align_corners=False)[0]


def labels_to_input(
    labels: UInt8[np.ndarray, "height width"], frame: Frame, *, outside: int
) -> UInt8[np.ndarray, "size size"]:
    """Resize labels of the photo to the input (nearest neighbour); the padding gets the value `outside`."""
    height, width = frame.content_hw
    square = np.full((frame.input_size, frame.input_size), outside, np.uint8)
    square[:height, :width] = np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))
    return square


def mask_to_input(mask: Bool[np.ndarray, "height width"], frame: Frame, *, outside: int) -> Float[Tensor, "size size"]:
    """Share of each input pixel that a mask covers; the padding gets the value `outside`.

    By area, because nearest-neighbour sampling can miss a small object in a large photo.
    """
    height, width = frame.content_hw
    square = torch.full((frame.input_size, frame.input_size), float(outside))
    share = Image.fromarray(mask.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
    square[:height, :width] = torch.from_numpy(np.array(share)).clamp(0, 1)
    return square


def imagenet_normalise(rgb: Float[Tensor, "*batch 3 height width"]) -> Float[Tensor, "*batch 3 height width"]:
    """Normalise values in [0, 1] with ImageNet's mean and standard deviation."""
    mean = rgb.new_tensor(IMAGENET_MEAN)[:, None, None]
    std = rgb.new_tensor(IMAGENET_STD)[:, None, None]
    return (rgb - mean) / std


def _resize(
    photo: UInt8[np.ndarray, "height width 3"], hw: tuple[int, int], how: Image.Resampling
) -> Float[Tensor, "3 h w"]:
    resized = Image.fromarray(photo).resize((hw[1], hw[0]), how)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255
