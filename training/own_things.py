"""Photos of `own_things`: what people really teach, with polygons by their authors.

Half of the categories is fitted, by the mask decoder and by presence; the other half is measured. Other objects in
these photos are not labelled.
"""

import json
from collections.abc import Set
from pathlib import Path

from .photos import Photo, Region

# Names that photos of other sets may well show, labelled or not.
COMMON = frozenset({"person", "car", "dog", "cat", "plate", "vehicle", "pedestrian", "sidewalk", "lane", "apple", "cow",
                    "bear", "elephant", "face mask", "helmet", "rice", "slice of bread", "button"})  # fmt: skip


def measured(name: str) -> bool:
    """True for the half of people's own categories that is measured on and never fitted."""
    return sum(name.encode()) % 2 == 1


def own_photos(data: Path, *, without: Set[str] = frozenset()) -> dict[str, list[Photo]]:
    """Photos to fit on, by set: those that show no measured category. The set's other categories are their rivals.

    Args:
        data: Folder of the collections.
        without: Names that are excluded from training: photos that show them are left out.
    """
    sets = {}
    for folder in sorted((data / "own_things").iterdir()):
        index = json.loads((folder / "index.json").read_text())
        names = index["classes"]
        shown = {image["id"]: {value: names[value] for value in image["classes"]} for image in index["images"]}
        fitted = {
            photo: labels
            for photo, labels in shown.items()
            if not any(measured(name) or name in without for name in labels.values())
        }
        rivals = tuple(sorted({name for labels in fitted.values() for name in labels.values()}))
        if fitted:
            sets[folder.name] = [
                Photo(
                    image=folder / "images" / f"{photo}.jpg",
                    labels=folder / "masks" / f"{photo}.png",
                    regions={value: Region((name,), frozenset({name})) for value, name in labels.items()},
                    uncertain=COMMON - set(rivals),
                    rivals=rivals,
                )
                for photo, labels in fitted.items()
            ]
    return sets
