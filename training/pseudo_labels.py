"""Guessed masks for photos that have only a class: where the ImageNet classifier sees it (Zhou et al. 2016)."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from .network import Network
from .photos import SIZE, UNKNOWN, Labels, Photo

# Share of the best patch's probability from which a patch is the object, and below which it is background.
_OBJECT, _BACKGROUND = 0.5, 0.15
# A class that is nowhere at least this probable gets no mask.
_SEEN = 0.2


@torch.no_grad()
def pseudo_labels(network: Network, photos: list[Photo]) -> dict[Path, Labels]:
    """Label maps for the photos that have none; photos whose class is not seen are left out."""
    found: dict[Path, Labels] = {}
    waiting = [photo for photo in photos if photo.labels is None]
    for photo in tqdm(waiting, desc="pseudo-labels", unit="photo", mininterval=20):
        image = Image.open(photo.image).convert("RGB")
        # At an aspect of its own the object would look different to the classifier; the maps are stretched back.
        rgb = torch.from_numpy(np.array(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))).permute(2, 0, 1)
        probabilities = _class_probabilities(network, rgb[None].float() / 255)[0]
        # The class itself, or whatever is seen best in a photo whose class ImageNet doesn't have.
        guess = list(photo.guess) or probabilities.mean(dim=(1, 2)).topk(5).indices.tolist()
        map_ = probabilities[guess].sum(dim=0)
        if map_.max() < _SEEN:
            continue
        map_ = F.interpolate(map_[None, None], size=(image.height, image.width), mode="bilinear")[0, 0]
        share = map_ / map_.max()
        labels = torch.full(share.shape, UNKNOWN, dtype=torch.uint8)
        labels[share > _OBJECT] = 1
        labels[share < _BACKGROUND] = 0
        found[photo.image] = labels.numpy()
    return found


def _class_probabilities(network: Network, rgb: Tensor) -> Tensor:
    """ImageNet's classes at each patch, `[photo, class, y, x]`."""
    _, deep = network.tower(rgb)
    w = network.weights
    head = F.relu6(F.linear(deep.flatten(2).transpose(1, 2), w["head_w"], w["head_b"]))
    logits = F.linear(head, w["fc_w"], w["fc_b"])
    return logits.softmax(dim=-1).transpose(1, 2).unflatten(2, deep.shape[2:])
