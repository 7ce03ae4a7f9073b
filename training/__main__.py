"""`python -m training --data DIR --out FILE`: make the embedded model's weights."""

import argparse
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from app.backbones import embedded
from app.backbones.embedded import DEFAULT_LAYERS
from app.backbones.embedded.mask_decoder import PREFIX
from app.backbones.embedded.model import dequantised

from . import pack
from .batches import Collections, Material
from .detected import label_detected
from .detector import detections
from .looking import look, whole_file
from .losses import Vocabulary
from .mask_decoder import train_mask_decoder, train_on_open_requests
from .network import Network
from .own_things import own_photos
from .photos import Labels, Photo, imagenet_names, load, masked_photos, named_photos, vary
from .pseudo_labels import own_labels, pseudo_labels
from .self_support import train_self_support
from .stages import STAGES, DecoderStage, Stage
from .start import starting_weights
from .train import train
from .vocabulary import excluded_with, names_of

# Factor on the log-odds of the match head, which is overconfident on photos outside the training set.
_MATCH_SHARE = 0.3

# Layers that label photos: the later layers give the best masks (docs/embedded-model.md).
_TEACHER_LAYERS = (1, 2, 3)

Stages = tuple[Stage | DecoderStage, ...]

_RESUMED = (
    "A run with --resume does not make the weights of an uninterrupted one: it begins with weights rounded to float16, "
    "and labels the photos without masks with them, where an uninterrupted run uses the labels by the network at the "
    "start of the last stage that labels photos."
)

_HELD_OUT = Path(__file__).parent / "held_out.json"


def main() -> None:
    names = [stage.name for stage in STAGES]
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__, epilog=_RESUMED)
    parser.add_argument("--data", type=Path, required=True, help="folder with the five collections of photos")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--pace", type=float, default=1.0, help="factor on the number of steps of each stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--resume", type=Path, help="weights to continue from, at --stage; not equal to an uninterrupted run"
    )
    parser.add_argument("--stage", choices=names, default=names[0], help="the first stage; those after it follow")
    parser.add_argument(
        "--without-every-fourth",
        action="store_true",
        help="leave out every fourth COCO category: its photos, masks, detections and words",
    )
    arguments = parser.parse_args()
    done, stages = _split_at(arguments.stage)
    if done and not arguments.resume:
        parser.error(f"--stage {arguments.stage} needs --resume: give the weights of the stages before it.")
    data: Path = arguments.data
    imagenet = imagenet_names(data)
    without = _every_fourth(data) if arguments.without_every_fourth else set()
    words = {name for category in without for name in excluded_with(category, imagenet)}
    held_out = json.loads(_HELD_OUT.read_text())
    voc = [image["id"] for image in json.loads((data / "voc_animals_dev" / "index.json").read_text())["images"]]
    own = own_photos(data, without=words)
    collections = Collections(
        coco=masked_photos(data, "coco_mini_dev", held_out=set(held_out["coco"]), imagenet=imagenet, without=without),
        voc=masked_photos(data, "voc_animals_dev", held_out=set(voc[::10]), imagenet=imagenet, without=without),
        named=named_photos(data, imagenet=imagenet, without=words),
        own=[photo for photos in own.values() for photo in photos],
    )
    torch.set_flush_denormal(True)
    if arguments.resume:
        network = Network({name: t.float() for name, t in dequantised(load_file(arguments.resume)).items()})
    else:
        network = Network(starting_weights(imagenet, seed=arguments.seed, without=without))
        _standardise(network, [*collections.coco, *collections.voc[:100]])
    others = (*collections.voc, *collections.named, *collections.own)
    vocabulary = Vocabulary(network, collections.coco, others, imagenet, without=words)
    material = Material(collections, {}, vocabulary)
    if any(isinstance(stage, Stage) and stage.shares[2] for stage in stages):
        untrained = Network(starting_weights(imagenet, seed=arguments.seed)) if arguments.resume else network
        material = _guessed(untrained, material, arguments.out)
        if any(isinstance(stage, Stage) and stage.own_labels for stage in done):
            material = _labelled_by(network, material, arguments.out)
        if any(isinstance(stage, Stage) and stage.detected for stage in done):
            material = _with_detections(network, material, arguments.out, imagenet)
    for stage in stages:
        facts = {"stage": stage.name, "seed": str(arguments.seed), "without": ", ".join(sorted(without))}
        if isinstance(stage, DecoderStage):
            sets = list(own.values()) if stage.open_requests else []
            _learn_decoder(network, arguments.out, collections, sets, seed=arguments.seed, pace=arguments.pace)
        else:
            if stage.own_labels:
                material = _labelled_by(network, material, arguments.out)
            if stage.detected:
                material = _with_detections(network, material, arguments.out, imagenet)
            shortened = replace(stage, steps=max(1, round(arguments.pace * stage.steps)))
            _train(network, material, shortened, arguments.out, facts, seed=arguments.seed)
        pack.write(network.weights, arguments.out, facts)


def _split_at(name: str) -> tuple[Stages, Stages]:
    """The stages before the one of this name, and it with those that follow."""
    first = [stage.name for stage in STAGES].index(name)
    return STAGES[:first], STAGES[first:]


def _train(network: Network, material: Material, stage: Stage, out: Path, facts: dict[str, str], *, seed: int) -> None:
    """Run a stage; the weights are written to the file at intervals."""

    def keep(weights: dict[str, Tensor], step: int) -> None:
        pack.write(weights, out, {**facts, "step": str(step)})

    train(network, material, stage, seed=seed, keep=keep)
    if "match" in dict(stage.learning_rates):
        for name in ("itm_head.weight", "itm_head.bias"):
            network.weights[name] *= _MATCH_SHARE


def _learn_decoder(
    network: Network, out: Path, collections: Collections, own: list[list[Photo]], *, seed: int, pace: float
) -> None:
    """Encode the photos with exact masks, and train the mask decoder on the results."""
    pack.write(network.weights, out, {})
    model = embedded.load(str(out), device="cpu", dtype="float32")
    few, many = collections.coco, collections.voc
    file = _beside(out, "looked", "pt", model.revision, seed, _images(few), _images(many))
    seen = look(model, few, many, seed=seed, remembered=file)
    if own:
        things = [photo for photos in own for photo in photos]
        file = _beside(out, "looked at own things", "pt", model.revision, seed, _images(things))
        flat, _ = look(model, things, [], seed=seed, remembered=file)
        ids = [{photo.image.stem for photo in photos} for photos in own]
        sets = [found for some in ids if (found := [one for one in flat if one.photo in some])]
        learned = train_on_open_requests(model.mask_decoder.weights, sets, *seen, seed=seed, pace=pace)
    else:
        learned = train_mask_decoder(train_self_support(*seen, seed=seed, pace=pace), *seen, seed=seed, pace=pace)
    network.weights.update({PREFIX + name: tensor for name, tensor in learned.items()})


def _guessed(untrained: Network, material: Material, out: Path) -> Material:
    """The material, with the photos without masks labelled by the ImageNet classifier."""
    shown = material.collections
    file = _beside(out, "pseudo-labels", "npz", _images(shown.named))
    guessed = _remembered(file, lambda: pseudo_labels(untrained, shown.named))
    named = [photo for photo in shown.named if photo.image in guessed]
    print(f"{len(shown.coco)} COCO, {len(shown.voc)} VOC, {len(named)} named photos", flush=True)
    return replace(material, collections=replace(shown, named=named), guessed=guessed)


def _labelled_by(network: Network, material: Material, out: Path) -> Material:
    """The material, with the photos without masks labelled by the network itself."""
    pack.write(network.weights, out, {})
    model = embedded.load(str(out), device="cpu", dtype="float32")
    shown, first = material.collections.named, material.guessed
    sums = [crc32(first[photo.image].tobytes()) for photo in shown]
    file = _beside(out, "own-labels", "npz", model.revision, _images(shown), sums)
    guessed = _remembered(file, lambda: own_labels(model, shown, first, layers=_TEACHER_LAYERS))
    named = [photo for photo in shown if photo.image in guessed]
    print(f"{len(named)} photos labelled by the network itself", flush=True)
    return replace(material, collections=replace(material.collections, named=named), guessed=guessed)


def _with_detections(network: Network, material: Material, out: Path, imagenet: list[str]) -> Material:
    """The material, with what a detector sees in all photos but those of COCO, which are labelled whole."""
    pack.write(network.weights, out, {})
    model = embedded.load(str(out), device="cpu", dtype="float32")
    shown = material.collections
    groups = (shown.voc, shown.named, shown.own)
    images = [photo.image for group in groups for photo in group]
    seen = detections(images, remembered=_beside(out, "detections", "json", images))
    # What has no word, such as a category that is left out, is not taught either.
    words = set(material.vocabulary.index)
    found = {image: [one for one in some if words.issuperset(names_of(one.name))] for image, some in seen.items()}
    voc, named, own = (
        label_detected(model, group, material.guessed, found, imagenet=imagenet, layers=DEFAULT_LAYERS)
        for group in groups
    )
    return replace(
        material,
        collections=Collections(coco=shown.coco, voc=voc[0], named=named[0], own=own[0]),
        guessed=material.guessed | voc[1] | named[1] | own[1],
    )


def _beside(out: Path, what: str, kind: str, *inputs: object) -> Path:
    """Path of a cached intermediate result, named after its inputs: a run with others does not reuse it.

    Args:
        out: The file of the weights.
        what: What is cached.
        kind: Extension of the file.
        inputs: What the result depends on: weights, seed, photos. The excluded categories act through the photos alone.
    """
    return out.with_suffix(f".{what}.{sha256(repr(inputs).encode()).hexdigest()[:16]}.{kind}")


def _images(photos: Iterable[Photo]) -> list[str]:
    return [str(photo.image) for photo in photos]


def _remembered(file: Path, make: Callable[[], dict[Path, Labels]]) -> dict[Path, Labels]:
    """Label maps, cached in a file because making them takes minutes."""
    if not file.exists():
        with whole_file(file) as unfinished:
            np.savez_compressed(unfinished, **{str(photo): labels for photo, labels in make().items()})
    with np.load(file) as kept:
        return {Path(photo): kept[photo] for photo in kept}


def _every_fourth(data: Path) -> set[str]:
    classes = json.loads((data / "coco_mini_dev" / "index.json").read_text())["classes"]
    return set(classes[4::4])


@torch.no_grad()
def _standardise(network: Network, photos: list[Photo]) -> None:
    """Set the mean and standard deviation of the tower's features, measured on some photos."""
    rng = random.Random(0)
    features = []
    for photo in photos[:300]:
        sample = vary(load(photo), rng)
        _, fine, deep = network.tower(torch.from_numpy(sample.rgb.copy()).permute(2, 0, 1)[None].float() / 255)
        fine, deep = fine.flatten(2).transpose(1, 2), deep.flatten(2).transpose(1, 2)
        head = F.relu6(F.linear(deep, network.weights["head_w"], network.weights["head_b"]))
        features.append(torch.cat([head, fine], dim=-1)[0, ::7])
    flat = torch.cat(features)
    network.weights["mu"] = flat.mean(dim=0)
    network.weights["sd"] = flat.std(dim=0) + 1e-3


if __name__ == "__main__":
    main()
