"""Pseudo-labels: estimated masks for photos that have only a class.

The first ones are class activation maps of the ImageNet classifier (Zhou et al. 2016,
https://arxiv.org/abs/1512.04150). Later ones are masks by the partly trained model, which is given the class, refined
by the CRF (self-training, Xie et al. 2020, https://arxiv.org/abs/1911.04252).
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

# Relative to the highest probability in the photo: object above the first value, background below the second.
_OBJECT, _BACKGROUND = 0.5, 0.15
# A photo gets no pseudo-label if its class has nowhere at least this probability.
_SEEN = 0.2
# Probability by the model above which a pixel is labelled as object or as background.
_SURE = 0.6
# Minimum share of a photo that its object must cover; below it the object counts as not found.
_FOUND = 0.01
# People in photos of other objects are neither the object nor background.
_PEOPLE = ("person", "people", "face")


@torch.no_grad()
def pseudo_labels(network: Network, photos: list[Photo]) -> dict[Path, Labels]:
    """Label maps for the photos without masks; photos in which the class is not found are left out."""
    found: dict[Path, Labels] = {}
    waiting = [photo for photo in photos if photo.labels is None]
    for photo in tqdm(waiting, desc="pseudo-labels", unit="photo", mininterval=20):
        with Image.open(photo.image) as file:
            image = file.convert("RGB")
        # Stretched to the square, as the network gets photos; the maps are stretched back.
        rgb = torch.from_numpy(np.array(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))).permute(2, 0, 1)
        probabilities = _class_probabilities(network, rgb[None].float() / 255)[0]
        # The class itself, or the most probable classes of a photo whose class is not in ImageNet.
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
    """Better label maps, by a model trained on the first ones; photos whose object it does not find are left out.

    Args:
        model: The model.
        photos: Photos with a class.
        first: Results of `pseudo_labels`; a pixel that is object there does not become background.
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
        # All rounds of the CRF, even if the model has a mask decoder: these labels must have exact edges.
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
    """Probabilities of the ImageNet classes at each patch, `[photo, class, y, x]`."""
    *_, deep = network.tower(rgb)
    w = network.weights
    head = F.relu6(F.linear(deep.flatten(2).transpose(1, 2), w["head_w"], w["head_b"]))
    logits = F.linear(head, w["fc_w"], w["fc_b"])
    return logits.softmax(dim=-1).transpose(1, 2).unflatten(2, deep.shape[2:])
