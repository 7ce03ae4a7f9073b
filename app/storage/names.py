"""Names of categories: validated once at the border, compared by the id under which they are stored."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from app.errors import InvalidInputError

from . import keys

MAX_NAME_LENGTH = 64
# The setting that limits the names of a request.
PER_REQUEST = "EXEMPLAR_MAX_CATEGORIES"
# Characters that one character of a name may be sent as: a letter and its accents, which are composed to one.
MAX_DECOMPOSED = 4
# Categories of Unicode, and letters and a sign, that show nothing by themselves.
_INVISIBLE_KINDS = frozenset({"Cf", "Mn", "Zs", "Zl", "Zp"})
_BLANKS = frozenset("\u115f\u1160\u2800\u3164\uffa0")
# Classes of the characters that turn the direction of the text that follows them.
_TURNING = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})


@dataclass(frozen=True)
class CategoryName:
    """Name of a category, or another word for it. Two spellings of a name have the same id and are equal.

    `parse` makes it from a caller's text; the constructor takes a text that was stored and is not validated again.

    Attributes:
        text: Name in composed form, without surrounding blanks.
        id: Id of the category, part of its keys.
    """

    text: str = field(compare=False)
    id: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", keys.category_id(self.text))

    @classmethod
    def parse(cls, text: str, *, field: str = "name") -> CategoryName:
        """Validate a caller's text.

        Raises:
            InvalidInputError: If the text is empty, too long, not UTF-8, a dot segment of a URL's path, or has a slash
                or a control character.
        """
        text = text.strip()
        if len(text) > MAX_DECOMPOSED * MAX_NAME_LENGTH:  # to compose it may take the square of its length
            raise InvalidInputError(_wrong_length(len(text)), field=field)
        try:
            cleaned = unicodedata.normalize("NFC", text).strip()
            cleaned.encode()
        except UnicodeEncodeError:
            raise InvalidInputError("A name is UTF-8: this one has half a surrogate pair.", field=field) from None
        if fault := _fault(cleaned):
            raise InvalidInputError(fault, field=field)
        return cls(cleaned)

    def check_new(self) -> None:
        """Refuse a name that people can't read as it is. A category that is stored under one can still be deleted.

        Raises:
            InvalidInputError: If it has no visible character, or one that turns the direction of the text.
        """
        if all(unicodedata.category(sign) in _INVISIBLE_KINDS or sign in _BLANKS for sign in self.text):
            raise InvalidInputError("A name has a visible character: this one has none.", field="name")
        if any(unicodedata.bidirectional(sign) in _TURNING for sign in self.text):
            raise InvalidInputError(
                "A name has no characters that turn the direction of the text: remove them.", field="name"
            )


def parse_names(
    texts: Sequence[str], *, field: str, limit: int, setting: str = PER_REQUEST
) -> tuple[CategoryName, ...]:
    """Names of a request in their order, each once as it is spelled first.

    Args:
        texts: As they were sent.
        field: Their field.
        limit: Largest number of names.
        setting: Name of the setting that is the limit.

    Raises:
        InvalidInputError: If one is not a name, or there are too many.
    """
    check_number(len(texts), of=field, field=field, limit=limit, setting=setting)  # before any is read
    return tuple(dict.fromkeys(CategoryName.parse(text, field=field) for text in texts))


def check_number(count: int, *, of: str, field: str, limit: int, setting: str = PER_REQUEST) -> None:
    """Refuse more names than one request may have.

    Args:
        count: Number of names.
        of: What they name, in the plural.
        field: The field that the error names.
        limit: Largest number of names.
        setting: Name of the setting that is the limit.

    Raises:
        InvalidInputError: If there are more.
    """
    if count > limit:
        raise InvalidInputError(f"{count} {of} are too many: at most {limit} in one request ({setting}).", field=field)


def other_words(words: Iterable[CategoryName], name: CategoryName) -> tuple[CategoryName, ...]:
    """Words for a category in their order, each once, without its name."""
    return tuple(dict.fromkeys(word for word in words if word != name))


def _fault(cleaned: str) -> str | None:
    """Reason for which a text is not a name, or None."""
    if not 1 <= len(cleaned) <= MAX_NAME_LENGTH:
        return _wrong_length(len(cleaned))
    if "/" in cleaned:
        return "A name has no slash: use a space or a hyphen."
    if cleaned in (".", ".."):
        return f"{cleaned!r} is not a name: clients remove it from the path of a URL. Use a word."
    if any(unicodedata.category(character) == "Cc" for character in cleaned):
        return "A name has no control characters: remove line breaks and tabs."
    if "\N{REPLACEMENT CHARACTER}" in cleaned:
        return "A name is UTF-8: this one has bytes that are not."
    return None


def _wrong_length(length: int) -> str:
    return f"A name has 1 to {MAX_NAME_LENGTH} characters: this one has {length}."
