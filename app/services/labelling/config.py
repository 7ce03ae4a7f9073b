"""Label configs of Label Studio: which controls mark regions of which photo, under which labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from app.errors import InvalidInputError
from app.storage.names import CategoryName

# Tags of the controls that mark an area, and the type of their regions.
_KINDS = {tag: tag.lower() for tag in ("BrushLabels", "PolygonLabels", "RectangleLabels", "BitmaskLabels")}

_FIELD = "label_config"


@dataclass(frozen=True)
class Label:
    """A label of a control.

    Attributes:
        name: The category that it stands for.
        text: How regions name it: its alias, if it has one.
    """

    name: CategoryName
    text: str


@dataclass(frozen=True)
class Control:
    """A control that marks regions of a photo.

    Attributes:
        name: Its name, the `from_name` of its regions.
        photo: Name of the photo that it marks, the `to_name` of its regions.
        kind: Type of its regions.
        data: The field of a task's data that has the photo's address.
        labels: Its labels, in order, at least one.
    """

    name: str
    photo: str
    kind: str
    data: str
    labels: tuple[Label, ...]

    def address(self, data: Mapping[str, Any]) -> str | None:
        """The address of the photo in a task's data, or None. Dots in the field's name lead into objects."""
        value: Any = data.get(self.data)
        if value is None:
            value = data
            for part in self.data.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
        return value if isinstance(value, str) and value else None


def controls_of(config: str) -> tuple[Control, ...]:
    """The controls of a config that mark areas of a photo; all others are left out.

    So is a control without labels of its own. Label Studio takes its labels from each task's data, so that there are
    none to predict, and no version of the predictions that could follow them.

    Raises:
        InvalidInputError: If the config is no XML, a label can't be a category, or controls mark areas, but none of
            them has labels of its own, or one stands inside another.
    """
    # No config has a document type, and without one no entity can be defined, which could grow without bounds.
    if "<!" in config.replace("<!--", ""):
        raise InvalidInputError("The label config has a document type, which is not read.", field=_FIELD)
    try:
        root = ElementTree.fromstring(config)
    except (ElementTree.ParseError, ValueError) as error:
        raise InvalidInputError(f"The label config is not XML that can be read: {error}.", field=_FIELD) from error
    photos = {
        tag.get("name", ""): tag.get("value", "").removeprefix("$") for tag in root.iter("Image") if tag.get("value")
    }
    controls = [
        Control(tag.get("name", ""), photo, _KINDS[tag.tag], photos[photo], _labels(tag))
        for tag in root.iter()
        if tag.tag in _KINDS and (photo := tag.get("toName", "")) in photos
    ]
    labelled = tuple(control for control in controls if control.labels)
    if controls and not labelled:
        raise InvalidInputError(
            f"The control {controls[0].name[:80]!r} of the label config has no labels of its own, and no other that "
            'marks areas has: add <Label value="…"/> to it for each category. Labels from the data of tasks are not '
            "read.",
            field=_FIELD,
        )
    return labelled


def categories_of(controls: tuple[Control, ...]) -> tuple[CategoryName, ...]:
    """The categories of some controls, each once."""
    return tuple(dict.fromkeys(label.name for control in controls for label in control.labels))


def _labels(control: ElementTree.Element) -> tuple[Label, ...]:
    found = []
    for tag in control.iter():
        # All of them would have the labels of the innermost one: a small config would become millions of labels.
        if tag.tag in _KINDS and tag is not control:
            raise InvalidInputError(
                f"The control {tag.get('name', '')[:80]!r} of the label config stands inside another control: put it "
                "beside that.",
                field=_FIELD,
            )
        if tag.tag != "Label":
            continue
        value = tag.get("value", "")
        try:
            found.append(Label(CategoryName.parse(value, field=_FIELD), tag.get("alias") or value))
        except InvalidInputError as error:
            raise InvalidInputError(
                f"The label {value[:80]!r} can't be a category. {error.detail}", field=_FIELD
            ) from error
    return tuple(found)
