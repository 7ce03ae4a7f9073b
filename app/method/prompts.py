"""Words to prompts: which phrases are asked, and which prompts belong to which class (paper, section 4.1)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# The stuff words that stand for "none of the categories" (the authors' lists for PASCAL and COCO together).
BACKGROUND_WORDS = (
    "background", "sky", "wall", "tree", "wood", "grass", "road", "sea", "river", "fog", "mountain", "sand", "desk",
    "bed", "sink", "building", "cloud", "lamp", "door", "window", "wardrobe", "ceiling", "shelf", "curtain", "stair",
    "floor", "hill", "railway track", "fence",
)  # fmt: skip


@dataclass(frozen=True)
class PromptSet:
    """Prompts in the order they are asked, and the classes they make up.

    Attributes:
        words: One word or phrase per prompt.
        spans: Per class the half-open range of its prompts; class 0 is the background.
    """

    words: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]


def phrase(word: str) -> str:
    """The sentence that the text tower reads for a word."""
    return f"Image of {word}."


def prompt_set(background: Sequence[str], categories: Sequence[Sequence[str]]) -> PromptSet:
    """Lay out the prompts of the background and of every category, in order.

    Args:
        background: Background words, none of which may name a category in play (see `free_background`).
        categories: Per category its name and other words for it.

    Raises:
        ValueError: If the background or a category has no word.
    """
    groups = [tuple(background), *(tuple(words) for words in categories)]
    if not all(groups):
        raise ValueError(f"expected at least one word for the background and for each category, got {groups}")
    spans, start = [], 0
    for group in groups:
        spans.append((start, start + len(group)))
        start += len(group)
    return PromptSet(words=tuple(word for group in groups for word in group), spans=tuple(spans))


def free_background(background: Sequence[str], category_words: Iterable[str]) -> tuple[str, ...]:
    """The background words that name no category in play: `bed` leaves when somebody asks for beds.

    The background never becomes empty: without a word left the generic one stays, since the softmax needs an
    alternative.
    """
    taken = {word.casefold() for word in category_words}
    free = tuple(dict.fromkeys(word for word in background if word.casefold() not in taken))
    return free or ("background",)
