"""The journal: what must be listed, what must not, and what may be either."""

from __future__ import annotations

import pytest

from tests.chaos.journal import LATE_S, Action, Entry, Journal, Outcome

PHOTO, OTHER = "a" * 64, "b" * 64


class Past(Journal):
    """A journal of operations at given times."""

    def add(
        self,
        action: Action,
        photo: str,
        began: float,
        ended: float,
        outcome: Outcome = "acknowledged",
        *,
        doubtful: bool = False,
    ) -> Entry:
        entry = self.begin(action, "cat", photo)
        entry.began, entry.ended, entry.outcome, entry.doubtful = began, ended, outcome, doubtful
        return entry

    def words(self, *listed: str, **times: float) -> list[str]:
        return [fault.split(" ", 2)[2] for fault in self.faults("cat", listed, **times)]


@pytest.fixture
def past() -> Past:
    return Past()


def test_what_was_acknowledged_is_listed_once(past: Past) -> None:
    past.add("append", PHOTO, 1, 2)
    assert past.words(PHOTO) == []
    assert past.words() == ["(append) was acknowledged, but is not listed"]
    assert past.words(PHOTO, PHOTO) == ["is listed twice"]
    assert past.words(PHOTO, OTHER) == ["is listed, but nobody taught it"]


def test_what_was_refused_is_not_listed(past: Past) -> None:
    refused = past.add("absent", PHOTO, 1, 2, "refused")
    assert past.words() == []
    assert len(past.words(PHOTO)) == 1
    refused.doubtful = True
    assert past.words(PHOTO) == past.words() == []


@pytest.mark.parametrize("action", ["delete example", "delete category", "replace"])
def test_what_was_removed_later_is_not_listed(past: Past, action: Action) -> None:
    past.add("append", PHOTO, 1, 2)
    past.add(action, PHOTO if action == "delete example" else OTHER, 3, 4)
    also = [OTHER] if action == "replace" else []
    assert past.words(*also) == []
    assert past.words(PHOTO, *also) == [f"is listed, after {action}"]


@pytest.mark.parametrize("times", [(1.5, 3), (0, 1.5), (0, 9)])
def test_operations_at_the_same_time_have_no_order(past: Past, times: tuple[float, float]) -> None:
    past.add("append", PHOTO, 1, 2)
    past.add("delete category", "", *times)
    assert past.words(PHOTO) == past.words() == []


def test_a_removal_before_it_does_not_count(past: Past) -> None:
    past.add("delete category", "", 1, 2)
    past.add("append", PHOTO, 3, 4)
    assert len(past.words()) == 1


def test_what_had_a_try_without_an_answer_may_happen_late(past: Past) -> None:
    removal = past.add("delete category", "", 1, 2, doubtful=True)
    taught = past.add("append", PHOTO, 3, 4)
    assert past.words(PHOTO) == past.words() == []
    taught.began, taught.ended = 3 + LATE_S, 4 + LATE_S
    assert len(past.words()) == 1
    removal.outcome = "unknown"
    assert len(past.words()) == 1


def test_a_list_is_judged_by_what_was_known_when_it_was_asked_for(past: Past) -> None:
    past.add("append", PHOTO, 1, 3)
    past.add("delete example", PHOTO, 5, 7)
    assert past.words(asked=2, answered=2.5) == past.words(PHOTO, asked=2, answered=2.5) == []
    assert len(past.words(asked=4, answered=4.5)) == 1
    assert past.words(asked=6, answered=6.5) == past.words(PHOTO, asked=6, answered=6.5) == []
    assert len(past.words(PHOTO, asked=8, answered=8.5)) == 1


def test_what_the_store_may_have_lost_is_taken_back(past: Past) -> None:
    past.add("append", PHOTO, 1, 2)
    past.add("append", OTHER, 3, 4)
    assert past.doubt(3.5, 6) == 1
    assert past.words(PHOTO) == past.words(PHOTO, OTHER) == []
    assert len(past.words(OTHER)) == 1
