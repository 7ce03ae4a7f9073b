"""Words to prompts: phrases that are asked, and the prompts of each class (paper, section 4.1)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .adapter import Adapter

# The stuff words that stand for "none of the categories" (the authors' lists for PASCAL and COCO together).
BACKGROUND_WORDS = (
    "background", "sky", "wall", "tree", "wood", "grass", "road", "sea", "river", "fog", "mountain", "sand", "desk",
    "bed", "sink", "building", "cloud", "lamp", "door", "window", "wardrobe", "ceiling", "shelf", "curtain", "stair",
    "floor", "hill", "railway track", "fence",
)  # fmt: skip


@dataclass(frozen=True)
class Query:
    """A class to look for: its words and, if it was taught, its adapter."""

    words: tuple[str, ...]
    adapter: Adapter | None = None


@dataclass(frozen=True)
class Prompts:
    """The prompts of one request, class by class, in the order in which they are asked.

    Attributes:
        queries: The background first.

    Raises:
        ValueError: If a class has no word.
    """

    queries: tuple[Query, ...]

    def __post_init__(self) -> None:
        if not self.queries or not all(query.words for query in self.queries):
            raise ValueError(f"expected at least one word for every class, got {[q.words for q in self.queries]}")

    @staticmethod
    def of(
        categories: Sequence[Query], background: Sequence[str] = BACKGROUND_WORDS, *, taken: Iterable[str] = ()
    ) -> "Prompts":
        """The prompts of categories and of the background words that name none of them.

        Args:
            categories: Taught and merely named ones.
            background: Words for "none of them".
            taken: Words of further categories, which leave the background too.
        """
        words = [word for query in categories for word in query.words]
        return Prompts((Query(free_background(background, [*words, *taken])), *categories))

    @property
    def words(self) -> tuple[str, ...]:
        """One word or phrase per prompt."""
        return tuple(word for query in self.queries for word in query.words)

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Per class the half-open range of its prompts."""
        spans, start = [], 0
        for query in self.queries:
            spans.append((start, start + len(query.words)))
            start += len(query.words)
        return tuple(spans)


def phrase(word: str) -> str:
    """The sentence that the text tower reads for a word."""
    return f"Image of {word}."


def free_background(background: Sequence[str], category_words: Iterable[str]) -> tuple[str, ...]:
    """The background words that name no category in play: `bed` leaves when somebody asks for a bed or a Bed.

    The background never becomes empty: without a word left the generic one stays, since the softmax needs an
    alternative.
    """
    taken = {word.casefold() for word in category_words}
    free = {word.casefold(): word for word in background if word.casefold() not in taken}
    return tuple(free.values()) or ("background",)
