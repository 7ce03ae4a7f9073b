"""Answers of an earlier run that the service would give otherwise today, since categories were taught in between."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from app.client import RefusedError
from app.errors import NotFoundError

if TYPE_CHECKING:
    from app.client import Client

# Version of the adapter that makes a category's masks, by the category's name; None if its words do.
Versions = Mapping[str, int | None]


def versions_in_use(client: Client, names: Sequence[str]) -> Versions:
    """Versions of some categories, or of all that are taught if none is named; those not taught have None."""
    if not names:
        return {category["name"]: _version(category) for category in client.categories()}
    return {name: _version(_category(client, name)) for name in names}


def outdated(answers: Iterable[Mapping[str, Any]], versions: Versions) -> tuple[int, list[str]]:
    """Number of answers made with other versions, and the categories that are to blame.

    Args:
        answers: As the service gave them.
        versions: Those of all categories asked for. One that an answer lacks was taught after it.
    """
    found = [[name for name, version in versions.items() if _is_outdated(answer, name, version)] for answer in answers]
    return sum(map(bool, found)), [name for name in versions if any(name in names for names in found)]


def _is_outdated(answer: Mapping[str, Any], name: str, version: int | None) -> bool:
    for one in answer["categories"]:
        if one["name"].casefold() == name.casefold():
            return "adapter_problem" not in one and one.get("adapter_version") != version
    return True


def _category(client: Client, name: str) -> Mapping[str, Any]:
    try:
        return client.category(name)
    except RefusedError as error:
        if error.status != NotFoundError.status:
            raise
        return {"adapter": None}


def _version(category: Mapping[str, Any]) -> int | None:
    adapter = category["adapter"]
    return adapter["version"] if adapter and adapter.get("kept") != "words" else None
