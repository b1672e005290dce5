"""What simulated models received and served, entry by entry: the ground truth of metering tests.

Rules
1. An entry is written before its answer and updated the moment bytes are handed to the transport.
2. ``served`` is what a provider would bill at that moment: nothing before the first byte, then the whole input and the
   output produced so far. Error answers bill nothing.
3. No credential and no prompt is kept: digests, sizes and the values of harmless headers only.
4. Bounded: a ring of entries. ``totals`` go on counting what has fallen out of it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from itertools import takewhile
from typing import Any

from gateway.domain.usage import Usage

ENTRIES_MAX = 200_000


class End(StrEnum):
    """How an answer ended."""

    OPEN = "open"
    FINISHED = "finished"  # every byte was handed over
    REFUSED = "refused"  # an error status, whole
    REDIRECTED = "redirected"
    CUT_BY_CLIENT = "cut_by_client"  # the peer left
    RESET = "reset"  # steering: connection reset
    TRUNCATED = "truncated"  # steering: ended in order in the middle of a line
    ERROR_EVENT = "error_event"  # steering: an error event ended the stream
    STALLED = "stalled"  # steering: hung until the cap


NOTHING = Usage()


@dataclass(slots=True)
class Entry:
    """One request. Times are Unix milliseconds."""

    id: int
    received_at_ms: int
    method: str
    route: str
    query: str
    dialect: str = "unknown"
    model: str | None = None
    stream: bool = False
    headers: dict[str, str] = field(default_factory=dict)  # the allow-listed ones, values as received
    header_names: tuple[str, ...] = ()  # all, lower case, in order
    body_bytes: int = 0
    body_sha256: str = ""
    key_sha256: str | None = None
    key_header: str | None = None  # authorization | x-api-key
    gateway_request_id: str | None = None
    max_tokens: int | None = None  # as received
    max_tokens_field: str | None = None
    include_usage: bool | None = None
    tag: str | None = None  # from the steering
    in_flight: int = 0  # other answers open when this request arrived
    request_id: str = ""  # what we called it
    status: int = 0
    events_served: int = 0  # whole ones
    bytes_served: int = 0  # of the body, before compression and chunk framing
    planned: Usage = NOTHING  # had it been served to its end
    served: Usage = NOTHING
    end: End = End.OPEN
    first_byte_at_ms: int | None = None
    ended_at_ms: int | None = None
    served_sha256: str = ""  # of the body served, once it has ended
    _digest: Any = field(default_factory=sha256)

    def stop(self, end: End, *, now_ms: int) -> None:
        """The answer is over."""
        self.end = end
        self.ended_at_ms = now_ms
        self.served_sha256 = self._digest.hexdigest()
        self._digest = None

    def serve(self, data: bytes, usage: Usage, *, now_ms: int, events: int = 0) -> None:
        """``data`` is being handed to the transport; ``usage`` is what a provider would bill from now on."""
        if self.first_byte_at_ms is None:
            self.first_byte_at_ms = now_ms
        self.bytes_served += len(data)
        self.events_served += events
        self._digest.update(data)
        self.served = usage

    def facts(self) -> dict[str, Any]:
        """The entry as JSON values."""
        facts: dict[str, Any] = {name: getattr(self, name) for name in _PLAIN_FIELDS}
        facts["end"] = self.end.value
        facts["planned"] = usage_facts(self.planned)
        facts["served"] = usage_facts(self.served)
        return facts


_PLAIN_FIELDS = [name for name in Entry.__slots__ if name not in ("_digest", "planned", "served", "end")]


def usage_facts(usage: Usage) -> dict[str, int]:
    """Usage by kind, as JSON values."""
    return {name: getattr(usage, name) for name in Usage.__slots__}


@dataclass(slots=True)
class Totals:
    """Sums over every ended answer since the start or the last clear."""

    requests: int = 0
    open: int = 0
    open_most: int = 0
    ends: dict[str, int] = field(default_factory=dict)
    served: dict[str, int] = field(default_factory=dict)


class Journal:
    """The ring. One event loop writes and reads it."""

    def __init__(self, *, entries_max: int = ENTRIES_MAX) -> None:
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._entries_max = entries_max
        self._totals = Totals()
        self._last_id = 0
        self._waiters: set[asyncio.Future[None]] = set()

    def open(self, *, received_at_ms: int, method: str, route: str, query: str) -> Entry:
        """A request has arrived."""
        self._last_id += 1
        entry = Entry(self._last_id, received_at_ms, method, route, query, in_flight=self._totals.open)
        self._entries[entry.id] = entry
        if len(self._entries) > self._entries_max:
            self._entries.popitem(last=False)
        self._totals.requests += 1
        self._totals.open += 1
        self._totals.open_most = max(self._totals.open_most, self._totals.open)
        self._wake()
        return entry

    def close(self, entry: Entry, end: End, *, now_ms: int) -> None:
        """Its answer is over; only the first end counts."""
        if entry.end is not End.OPEN:
            return
        entry.stop(end, now_ms=now_ms)
        totals = self._totals
        totals.open -= 1
        totals.ends[end.value] = totals.ends.get(end.value, 0) + 1
        for kind, tokens in usage_facts(entry.served).items():
            totals.served[kind] = totals.served.get(kind, 0) + tokens
        self._wake()

    def select(self, *, since: int = 0, entry_id: int | None = None, tag: str | None = None) -> list[Entry]:
        """Entries with a larger id than ``since``, oldest first; or the one with this id; or those with this tag."""
        if entry_id is not None:
            entry = self._entries.get(entry_id)
            return [] if entry is None else [entry]
        newest_first = takewhile(lambda entry: entry.id > since, reversed(self._entries.values()))
        return [entry for entry in newest_first if tag is None or entry.tag == tag][::-1]

    def clear(self) -> None:
        """Forget ended entries and totals; open ones stay, ids go on."""
        still_open = [entry for entry in self._entries.values() if entry.end is End.OPEN]
        self._entries = OrderedDict((entry.id, entry) for entry in still_open)
        self._totals = Totals(requests=len(still_open), open=len(still_open), open_most=len(still_open))

    @property
    def totals(self) -> Totals:
        return self._totals

    @property
    def last_id(self) -> int:
        return self._last_id

    async def changed(self, *, timeout_s: float) -> bool:
        """Wait until an answer begins or ends. False when the time is over."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError:
            return False
        finally:
            self._waiters.discard(waiter)
        return True

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
