"""Following a server-sent event stream without decoding it.

Theory of operation
    A stream is events, each ended by a blank line. Of a hundred events one or two matter for metering, and they matter
    only at the end. So an event that arrives whole is passed on as it came and copied to a *tail* of a few kilobytes.
    When the tail is full, and when somebody asks for the outcome, it is *digested*: a search for a few needles finds
    the events worth parsing, one regular expression collects the visible text. Text is counted in tokens when there
    is much of it, or when an answer was cut. Most answers end with the provider's own numbers and are never counted.

Rules
1. The client gets whole events: the part of an event that came is held back until the rest is there. So our own error
   or end can be written at any time, and a cut answer never ends in half an event. An event larger than
   ``HELD_BYTES_MAX`` passes piece by piece.
2. Concatenated, what is given equals what was fed, but for events that a dialect hides. The same object comes back
   when nothing was held or hidden.
3. The same bytes give the same usage however they were cut.
4. Memory is bounded whatever comes: tail, text, held part and the window of a giant event all have their maximum.

Line ends are LF, CRLF or CR, as the specification allows, even within one stream.
Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream

Not here: what a dialect's events mean (the adapters).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar

import orjson

from gateway.domain.usage import Basis, Outcome
from gateway.providers.families import Family
from gateway.providers.tokens import count_text

TAIL_BYTES_MAX = 8_192
TEXT_BYTES_MAX = 16_384
HELD_BYTES_MAX = 16_384
EVENT_BYTES_MAX = 262_144  # a larger event is not parsed as a whole: its end is searched through a window
WINDOW_BYTES = 32_768
_HEAD_BYTES = 512
OPAQUE_BYTES_PER_TOKEN = 4  # of what is not decoded: text inside a giant event

WHOLE = (b"\n\n", b"\r\n\r\n")
_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"
_USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')


def events(data: bytes) -> Iterator[bytes]:
    """The events in ``data``, each with its blank line; what comes after the last blank line is the last item."""
    at = 0
    for end in _END.finditer(data):
        yield data[at : end.end()]
        at = end.end()
    if at < len(data):
        yield data[at:]


def event_data(event: bytes) -> tuple[bytes, bytes]:
    """(name, data) of one event; both may be empty. Several data lines are joined by a line feed."""
    name, data = b"", []
    for line in _LINE_END.split(event.removeprefix(_BOM)):
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.removeprefix(b" ")
    return name, b"\n".join(data)


def unescaped(inside: bytes | bytearray) -> str:
    """The text of the inside of a JSON string, or of several one after the other."""
    try:
        text = orjson.loads(b'"' + inside + b'"')
    except orjson.JSONDecodeError:  # half an escape at a cut
        return inside.decode("utf-8", "replace")
    assert isinstance(text, str)
    return text


class StreamScanner:
    """What all dialects share. A dialect says what is worth parsing and what it means.

    ``feed`` is the hot path: a whole event costs one search of its end and one copy.
    """

    NEEDLES: ClassVar[tuple[bytes, ...]] = ()  # an event without any of them is never parsed
    ENDS: ClassVar[tuple[bytes, ...]] = ()  # one of them is in the dialect's last event
    SERVED: ClassVar[tuple[bytes, ...]] = ()  # one of them is in any event that is part of an answer
    TEXT: ClassVar[re.Pattern[bytes]]  # group 1: a piece of visible output, as the inside of a JSON string

    __slots__ = (
        "_after_cr",
        "_apart",
        "_family",
        "_given",
        "_head",
        "_held",
        "_hid_last",
        "_is_giant",
        "_mid",
        "_opaque_bytes",
        "_tail",
        "_text",
        "_tokens",
        "done",
        "failed",
        "input_tokens",
        "served",
    )

    def __init__(self, input_tokens: int, family: Family, *, choices: int = 1) -> None:
        self.input_tokens = input_tokens  # the estimate from before the call
        self.served = False  # something of an answer was seen
        self.done = False  # the dialect's own end was seen
        self.failed = False  # the upstream ended the stream with an error event of its own
        self._family = family
        self._apart = choices > 1  # texts of several choices come interleaved: their pieces are counted one by one
        self._tail = bytearray()
        self._text = bytearray()  # visible output as it came, JSON escapes and all
        self._tokens = 0  # of text that was counted and dropped, in the family's encoding
        self._opaque_bytes = 0
        self._mid = False  # fed up to the middle of an event, or right behind a CR
        self._held = bytearray()  # the event that is not whole yet
        self._given = 0  # bytes of it that the client has already
        self._is_giant = False
        self._head = b""  # of a giant event
        self._after_cr = False
        self._hid_last = False  # the last event did not reach the client

    # --- in ------------------------------------------------------------------------------------------------------

    def feed(self, chunk: bytes) -> bytes:
        """Take what arrived, give what the client gets."""
        if self._mid or not chunk.endswith(WHOLE):
            return self._feed_parts(chunk)
        tail = self._tail
        tail += chunk
        if len(tail) > TAIL_BYTES_MAX:
            self._digest()
        return chunk

    def finish(self) -> bytes:
        """The upstream ended in order: an event without its blank line is the last one."""
        held, given = bytes(self._held), self._given
        if self._is_giant:
            self._read_giant(held)
            held, given = b"", 0
        self._held.clear()
        self._given = 0
        self._mid = self._is_giant = False
        return self._whole(held)[given:] if held else b""

    def _feed_parts(self, chunk: bytes) -> bytes:
        """A chunk that begins or ends within an event."""
        if self._after_cr and chunk[:1] == b"\n":  # the second half of a CRLF, whose event is through already
            self._after_cr = self._mid = False
            rest = chunk[1:]
            return (b"" if self._hid_last else b"\n") + (self.feed(rest) if rest else b"")
        self._after_cr = False
        held, fresh = self._held, max(0, len(self._held) - 3)
        held += chunk
        end = self._last_end(fresh)
        if end < 0:
            self._mid = bool(held)
            return self._part(chunk)
        if self._is_giant:
            return self._end_giant(chunk, fresh)
        whole, given = bytes(held[:end]), self._given
        del held[:end]
        self._given = 0
        self._after_cr = not held and whole.endswith(b"\r")
        self._mid = bool(held) or self._after_cr
        out = self._whole(whole)[given:]
        return out + self._part(b"") if held else out

    def _last_end(self, start: int) -> int:
        """Where the last whole event ends in what is held, searching from ``start``; -1 for none."""
        if b"\r" not in self._held:
            at = self._held.rfind(b"\n\n", start)
            return at + 2 if at >= 0 else -1
        end = -1
        for found in _END.finditer(self._held, start):
            end = found.end()
        return end

    def _part(self, chunk: bytes) -> bytes:
        """An event goes on: hold it back, or let it through when it is large."""
        held = self._held
        if self._given or self._is_giant or len(held) > HELD_BYTES_MAX:
            out = chunk if self._is_giant else bytes(held[self._given :])
            self._given = len(held)
        else:
            out = b""
        if len(held) > EVENT_BYTES_MAX or self._is_giant:
            self._shrink()
        return out

    def _shrink(self) -> None:
        """Keep of a giant event its head and a window before its end."""
        if not self._is_giant:
            self._is_giant = True
            self._head = bytes(self._held[:_HEAD_BYTES])
        excess = len(self._held) - WINDOW_BYTES
        if excess > WINDOW_BYTES:
            del self._held[:excess]
            if self._is_output(self._head):
                self._opaque_bytes += excess
        self._given = len(self._held)

    def _end_giant(self, chunk: bytes, fresh: int) -> bytes:
        """The first blank line ends the giant; what follows it is fed like anything else."""
        found = _END.search(self._held, fresh)
        assert found is not None  # the caller found one
        window, rest = bytes(self._held[: found.end()]), bytes(self._held[found.end() :])
        self._read_giant(window)
        self._held.clear()
        self._given = 0
        self._is_giant = False
        self._after_cr = not rest and window.endswith(b"\r")
        self._mid = self._after_cr
        passed = chunk[: len(chunk) - len(rest)]
        return passed + self.feed(rest) if rest else passed

    def _read_giant(self, window: bytes) -> None:
        """The event's own numbers stand near its end; nothing within a JSON string can look like them."""
        if self._is_output(self._head):
            self._opaque_bytes += len(window)
        self._on_giant(self._head, last_usage(window))
        self._head = b""

    def _whole(self, data: bytes) -> bytes:
        """Whole events: to the tail, and on to the client."""
        self._tail += data
        if len(self._tail) > TAIL_BYTES_MAX:
            self._digest()
        return data

    # --- digest --------------------------------------------------------------------------------------------------

    def _digest(self) -> None:
        """Read the tail and empty it. Every event is read once."""
        tail = bytes(self._tail)
        self._tail.clear()
        self._read(tail)

    def _read(self, data: bytes) -> None:
        if any(needle in data for needle in self.NEEDLES):
            for event in events(data):
                if any(needle in event for needle in self.NEEDLES):
                    self._read_event(event)
        if not self.served:
            self.served = any(needle in data for needle in self.SERVED)
        self._note(data)
        pieces = self.TEXT.findall(data)
        if pieces:
            self._see(pieces)

    def _read_event(self, event: bytes) -> None:
        name, data = event_data(event)
        try:
            content = orjson.loads(data)
        except orjson.JSONDecodeError:
            content = None
        if isinstance(content, dict):
            self._on_event(name, content)
        else:
            self._on_words(data)

    def _see(self, pieces: list[bytes]) -> None:
        """Collect visible output; count it when there is much, up to the last space, where a token ends."""
        if self._apart:
            self._tokens += sum(count_text(unescaped(piece), self._family.encoding) for piece in pieces if piece)
            return
        text = self._text
        for piece in pieces:
            text += piece
        if len(text) > TEXT_BYTES_MAX:
            cut = text.rfind(b" ")
            cut = cut if cut > 0 else len(text)
            self._tokens += count_text(unescaped(text[:cut]), self._family.encoding)
            del text[:cut]

    # --- out -----------------------------------------------------------------------------------------------------

    def output_tokens_seen(self) -> int:
        """Tokens of the output that could be seen so far, by our own count."""
        self._digest()
        counted = self._tokens
        if self._text:
            counted += count_text(unescaped(self._text), self._family.encoding)
        opaque_bytes = self._opaque_bytes
        if self._given and self._is_output(self._opening()):
            opaque_bytes += len(self._held)
        return self._family.scale(counted) + opaque_bytes // OPAQUE_BYTES_PER_TOKEN

    def _counted_basis(self, output_tokens: int) -> Basis:
        """Counted, unless nothing could be seen or a part was too large to be decoded."""
        return Basis.ESTIMATED if self._opaque_bytes or self._given or not output_tokens else Basis.COUNTED

    def _opening(self) -> bytes:
        """The first bytes of the event that is not whole yet."""
        return self._head if self._is_giant else bytes(self._held[:_HEAD_BYTES])

    def outcome(self) -> Outcome:
        """What is known now about the usage."""
        self._digest()
        if self._held and not self._is_giant:
            self._peek(bytes(self._held))
        if self._given and not self.served:  # the client has a part of the first event
            opening = self._opening()
            self.served = any(needle in opening for needle in self.SERVED)
        return self._outcome()

    def _peek(self, part: bytes) -> None:
        """An event that lacks only its blank line counts: the provider said what it said."""
        if any(needle in part for needle in self.NEEDLES):
            self._read_event(part)

    @property
    def complete(self) -> bool:
        """The dialect's own end was seen."""
        if not self.done and any(end in self._tail for end in self.ENDS):
            self._digest()
        return self.done

    def event_boundary(self) -> bool:
        """True when the client has whole events only: the place where our own error or end may be written."""
        return not self._given

    # --- what a dialect says -------------------------------------------------------------------------------------

    def _on_event(self, name: bytes, content: dict[str, Any]) -> None:
        """An event with a needle in it, parsed."""
        raise AssertionError("a dialect's own")

    def _on_words(self, data: bytes) -> None:
        """An event with a needle in it that is no JSON object, such as [DONE]."""

    def _on_giant(self, head: bytes, usage: dict[str, Any] | None) -> None:
        """A giant event ended: its first bytes, and the last usage object near its end."""

    def _note(self, data: bytes) -> None:
        """Whole events are about to be forgotten: remember what an event of our own will need."""

    def _is_output(self, head: bytes) -> bool:
        """Is it visible output that makes a giant event so large? Then its text begins in the head and goes on."""
        ends = [found.end() for found in self.TEXT.finditer(head)]
        return bool(ends) and ends[-1] == len(head)

    def _outcome(self) -> Outcome:
        raise AssertionError("a dialect's own")


def last_usage(window: bytes) -> dict[str, Any] | None:
    """The last usage object in a piece of JSON. Nothing within a string can look like one: its quotes are escaped."""
    starts = [found.end() for found in _USAGE.finditer(window)]
    return _object_at(window, starts[-1]) if starts else None


def _object_at(data: bytes, start: int) -> dict[str, Any] | None:
    """The JSON object that begins at ``start``, if it is whole. Usage objects are small."""
    depth = 0
    for found in re.finditer(rb'[{}]|"(?:[^"\\]|\\.)*"', data[start : start + 4_096]):
        token = found[0]
        if token == b"{":
            depth += 1
        elif token == b"}":
            depth -= 1
            if not depth:
                try:
                    value = orjson.loads(data[start : start + found.end()])
                except orjson.JSONDecodeError:
                    return None
                return value if isinstance(value, dict) else None
    return None
