"""The journal of simulated models, by itself: a ring that keeps its sums."""

from __future__ import annotations

import asyncio

from gateway.domain.usage import Usage
from gateway.simulator.journal import End, Entry, Journal


def opened(journal: Journal, *, tag: str | None = None) -> Entry:
    entry = journal.open(received_at_ms=1, method="POST", route="/v1/messages", query="")
    entry.tag = tag
    return entry


def test_the_ring_drops_the_oldest_entries_and_keeps_counting_them() -> None:
    journal = Journal(entries_max=3)
    for tokens in range(1, 6):
        entry = opened(journal)
        entry.serve(b"abc", Usage(input=10, output=tokens), now_ms=2, events=1)
        journal.close(entry, End.FINISHED, now_ms=3)
    assert [entry.id for entry in journal.select()] == [3, 4, 5]
    assert journal.select(entry_id=2) == []
    assert (journal.totals.served["output"], journal.totals.served["input"]) == (15, 50)
    assert journal.totals.ends == {"finished": 5}


def test_entries_are_found_by_id_by_what_came_before_and_by_tag() -> None:
    journal = Journal()
    for tag in ("a", "b", "a", None):
        opened(journal, tag=tag)
    assert [entry.id for entry in journal.select(since=2)] == [3, 4]
    assert [entry.id for entry in journal.select(entry_id=2)] == [2]
    assert [entry.id for entry in journal.select(tag="a")] == [1, 3]
    assert [entry.id for entry in journal.select(tag="a", since=1)] == [3]


def test_only_the_first_end_of_an_answer_counts() -> None:
    journal = Journal()
    entry = opened(journal)
    journal.close(entry, End.RESET, now_ms=5)
    journal.close(entry, End.FINISHED, now_ms=6)
    assert (entry.end, entry.ended_at_ms, journal.totals.open) == (End.RESET, 5, 0)


def test_clearing_keeps_open_answers_and_goes_on_with_the_ids() -> None:
    journal = Journal()
    journal.close(opened(journal), End.FINISHED, now_ms=1)
    still_open = opened(journal)
    journal.clear()
    assert journal.select() == [still_open]
    assert (journal.totals.requests, journal.totals.open) == (1, 1)
    assert opened(journal).id == 3
    journal.close(still_open, End.FINISHED, now_ms=2)
    assert journal.totals.open == 1


def test_the_most_answers_open_at_once_are_remembered() -> None:
    journal = Journal()
    first, second = opened(journal), opened(journal)
    journal.close(first, End.FINISHED, now_ms=1)
    third = opened(journal)
    assert (first.in_flight, second.in_flight, third.in_flight) == (0, 1, 1)
    assert journal.totals.open_most == 2


async def test_a_waiter_wakes_when_an_answer_ends_and_gives_up_in_time() -> None:
    journal = Journal()
    entry = opened(journal)
    waiting = asyncio.create_task(journal.changed(timeout_s=5))
    await asyncio.sleep(0)
    journal.close(entry, End.FINISHED, now_ms=1)
    assert await waiting
    assert not await journal.changed(timeout_s=0.001)
