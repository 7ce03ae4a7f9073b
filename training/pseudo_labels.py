"""Guessed masks for photos that have only a class.

First where the ImageNet classifier sees it (class activation maps, Zhou et al. 2016, https://arxiv.org/abs/1512.04150);
later where the half-trained model itself sees it when told what there is (self-training, Xie et al. 2020,
https://arxiv.org/abs/1911.04252), with edges that follow the photo.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from app.method.backbone import Backbone
from app.method.crf import CrfParameters, conv_crf
from app.method.frame import imagenet_normalise, to_photo
from app.method.pipeline import Pipeline
from app.method.prompts import Query

from .network import Network
from .photos import SIZE, UNKNOWN, Labels, Photo

# Share of the best patch's probability from which a patch is the object, and below which it is background.
_OBJECT, _BACKGROUND = 0.5, 0.15
# A class that is nowhere at least this probable gets no mask.
_SEEN = 0.2
# The model's own probability from which a pixel is the object, or background.
_SURE = 0.6
# Share of a photo that its object takes at least; with less of it, it was not found.
_FOUND = 0.01
# People stand about in photos of other things: not the object, and not background either.
_PEOPLE = ("person", "people", "face")


@torch.no_grad()
def pseudo_labels(network: Network, photos: list[Photo]) -> dict[Path, Labels]:
    """Label maps for the photos that have none; photos whose class is not seen are left out."""
    found: dict[Path, Labels] = {}
    waiting = [photo for photo in photos if photo.labels is None]
    for photo in tqdm(waiting, desc="pseudo-labels", unit="photo", mininterval=20):
        with Image.open(photo.image) as file:
            image = file.convert("RGB")
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


@torch.no_grad()
def own_labels(
    model: Backbone, photos: list[Photo], first: dict[Path, Labels], *, layers: tuple[int, ...]
) -> dict[Path, Labels]:
    """Better label maps, by a model that learned from the first ones; a photo whose object it doesn't find is left out.

    Args:
        first: What `pseudo_labels` made: what is an object there doesn't become background.
        layers: Layers that are read.
    """
    pipeline = Pipeline(model, layers=layers, min_relative_score=0.0)
    found: dict[Path, Labels] = {}
    for photo in tqdm(photos, desc="own labels", unit="photo", mininterval=20):
        with Image.open(photo.image) as file:
            image = np.array(file.convert("RGB"))
        names = photo.regions[1].names
        queries = [Query(names)] if set(_PEOPLE) & set(names) else [Query(names), Query(_PEOPLE)]
        seen = pipeline.see(image)
        probabilities = pipeline.class_map(seen.encoded, queries).probabilities
        # All rounds, with a mask decoder too: the edges are what these labels are made for.
        refined = conv_crf(probabilities, imagenet_normalise(seen.rgb), CrfParameters())
        background, object_, *_ = to_photo(refined, seen.frame)
        if (object_ > _SURE).float().mean() < _FOUND:
            continue
        labels = np.full(object_.shape, UNKNOWN, np.uint8)
        labels[(background > _SURE).numpy() & (first[photo.image] != 1)] = 0
        labels[(object_ > _SURE).numpy()] = 1
        found[photo.image] = labels
    return found


def _class_probabilities(network: Network, rgb: Tensor) -> Tensor:
    """ImageNet's classes at each patch, `[photo, class, y, x]`."""
    *_, deep = network.tower(rgb)
    w = network.weights
    head = F.relu6(F.linear(deep.flatten(2).transpose(1, 2), w["head_w"], w["head_b"]))
    logits = F.linear(head, w["fc_w"], w["fc_b"])
    return logits.softmax(dim=-1).transpose(1, 2).unflatten(2, deep.shape[2:])
