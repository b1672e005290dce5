"""What a simulated model answers: decided once per request, before its first byte, in no dialect's words.

Rules
1. Everything follows from the ask and the steering; the seed is the conversation's text and the model.
2. Output never passes the ask's own bound, unless the steering says ``overrun``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple
from zlib import crc32

import orjson

from gateway.domain.usage import Usage
from gateway.simulator.counting import Family, Texts, count_text, family, visible_within
from gateway.simulator.steering import Steering
from gateway.simulator.words import Passage, cycle

_OUTPUT_LEAST = 24  # without steering an answer is so long ...
_OUTPUT_SPREAD = 72  # ... plus less than this
_CHUNK_TOKENS = 4
_TOOL_ARGUMENTS_TOKENS_MAX = 120
_TOOL_DEFAULT = "get_weather"
_TEXTS = Texts()


@dataclass(slots=True)
class Ask:
    """One parsed request, whatever its dialect."""

    model: str
    stream: bool = False
    texts: Sequence[str] = ()
    messages: int = 0
    media_tokens: int = 0
    bound: int | None = None  # output tokens per choice
    bound_field: str | None = None
    choices: int = 1
    thinking: bool = False
    tools: tuple[str, ...] = ()
    tool_forced: bool = False
    include_usage: bool | None = None
    cached_apart: bool = False  # the dialect's own input count leaves cached tokens out (Anthropic)
    echo: dict[str, object] | None = None  # request fields that the answer repeats


class Event(NamedTuple):
    """One event of a stream, and what has been produced once it is out."""

    data: bytes
    output: int  # tokens of all choices so far
    content: bool  # it carries produced tokens (steering waits before it)


@dataclass(frozen=True, slots=True)
class Answer:
    """The whole answer of one request."""

    ask: Ask
    serial: int  # ids are made of it
    created_s: int
    family: Family
    usage: Usage  # of all choices together
    output: int  # reported tokens per choice
    reasoning: int  # of these, thinking
    thought: Passage | None
    text: Passage | None
    arguments: str | None  # of the tool call, JSON
    tool: str
    stop: str  # end_turn | max_tokens | tool_use
    usage_mode: str | None  # missing | zero | partial
    chunk: int | None
    events: int | None

    @property
    def visible_output(self) -> int:
        """Reported tokens per choice, without thinking and the tool call."""
        return self.output - self.reasoning - self.arguments_output

    @property
    def arguments_output(self) -> int:
        if self.arguments is None:
            return 0
        return self.family.scale(_TEXTS.count(self.arguments, self.family.encoding))

    def text_pieces(self) -> Iterator[tuple[str, int]]:
        """The text as the stream cuts it: (piece, reported tokens so far)."""
        assert self.text is not None
        return self._pieces(self.text, self.visible_output, self.events)

    def thought_pieces(self) -> Iterator[tuple[str, int]]:
        """The thinking as the stream cuts it: (piece, reported tokens so far)."""
        assert self.thought is not None
        return self._pieces(self.thought, self.reasoning, None)

    def _pieces(self, passage: Passage, output: int, events: int | None) -> Iterator[tuple[str, int]]:
        if events is None:
            chunk = self.chunk or _CHUNK_TOKENS
            ends = [*range(chunk, output, chunk), output]
        else:
            ends = [output * index // events for index in range(1, events + 1)]
        counted_ends = [visible_within(self.family, end) for end in ends[:-1]] + [passage.tokens]
        for piece, reached in passage.pieces(counted_ends):
            yield piece, output if reached == passage.tokens else self.family.scale(reached)

    def argument_pieces(self) -> Iterator[tuple[str, int]]:
        """The tool call's arguments in a few pieces, cut between words: (piece, reported tokens so far)."""
        arguments = self.arguments or ""
        begin = 0
        while begin < len(arguments):
            end = arguments.find(" ", begin + 16)
            end = len(arguments) if end < 0 else end
            yield arguments[begin:end], self.family.scale(count_text(arguments[:end], self.family.encoding))
            begin = end


def decide(ask: Ask, steering: Steering, *, serial: int, created_s: int) -> Answer:
    """The answer to ``ask``; ``created_s`` in Unix seconds."""
    of = family(ask.model)
    seed = _seed(ask)
    wanted = _wanted(of, seed, steering)
    output = wanted if ask.bound is None or steering.overrun else min(wanted, ask.bound)
    thinks = ask.thinking or steering.thinking or bool(steering.reasoning)
    reasoning = min(output, output // 3 if steering.reasoning is None else steering.reasoning) if thinks else 0
    calls = steering.tool or steering.stop == "tool_use" or ask.tool_forced
    arguments = _arguments(of, seed, output - reasoning) if calls else None
    stop = steering.stop or ("max_tokens" if output < wanted else "tool_use" if arguments else "end_turn")
    rest = output - reasoning
    if arguments is not None:
        rest -= of.scale(count_text(arguments, of.encoding))
    text = cycle(of.encoding)
    return Answer(
        ask=ask,
        serial=serial,
        created_s=created_s,
        family=of,
        usage=replace(_input_usage(ask, of, steering), output=output * ask.choices, reasoning=reasoning * ask.choices),
        output=output,
        reasoning=reasoning,
        thought=text.passage(seed // 7 + 1, visible_within(of, reasoning)) if reasoning else None,
        text=text.passage(seed, visible_within(of, rest)) if rest > 0 or arguments is None else None,
        arguments=arguments,
        tool=ask.tools[0] if ask.tools else _TOOL_DEFAULT,
        stop=stop,
        usage_mode=steering.usage,
        chunk=steering.chunk,
        events=steering.events,
    )


def _wanted(of: Family, seed: int, steering: Steering) -> int:
    """Output tokens that the model would produce without a bound."""
    if steering.output is not None:
        return steering.output
    visible = _OUTPUT_LEAST + seed % _OUTPUT_SPREAD
    if steering.events is not None:
        visible = steering.events * (steering.chunk or _CHUNK_TOKENS)
    # A length that some text of this family really has.
    return of.scale(visible_within(of, visible)) + (steering.reasoning or 0)


def _seed(ask: Ask) -> int:
    """A number of the conversation's newest text and the model; not of fields that a gateway may rewrite."""
    newest = ask.texts[-1] if ask.texts else ""
    return crc32(newest.encode("utf-8", "replace")) ^ len(ask.texts) * 2654435761 & 0xFFFFFFFF


def _input_usage(ask: Ask, of: Family, steering: Steering) -> Usage:
    """Input by kind. Where the steering gives ``input``, it is what the dialect's own field will say."""
    caches = steering.cached + steering.cache_write + steering.cache_write_1h
    if steering.input is None:
        total = _TEXTS.input_tokens(ask.texts, of, messages=ask.messages, media_tokens=ask.media_tokens)
        uncached = max(0, total - caches)
    else:
        uncached = steering.input if ask.cached_apart else max(0, steering.input - caches)
    if not ask.cached_apart:
        # OpenAI names no lifetime of five minutes or an hour.
        return Usage(
            input=uncached,
            cache_read=steering.cached,
            cache_write=steering.cache_write + steering.cache_write_1h,
        )
    return Usage(
        input=uncached,
        cache_read=steering.cached,
        cache_write_5m=steering.cache_write,
        cache_write_1h=steering.cache_write_1h,
    )


def _arguments(of: Family, seed: int, output: int) -> str | None:
    """Arguments of a tool call within ``output`` reported tokens; None where not even the shortest fits."""
    room = min(output, _TOOL_ARGUMENTS_TOKENS_MAX)
    passage = cycle(of.encoding).passage(seed // 3, max(0, visible_within(of, room) - 8))
    words = passage.text.replace(".\n\n", ". ").strip().split(" ")
    while words:
        arguments = orjson.dumps({"location": " ".join(words)}).decode()
        if of.scale(count_text(arguments, of.encoding)) <= room:
            return arguments
        words.pop()
    shortest = "{}"
    return shortest if of.scale(count_text(shortest, of.encoding)) <= room else None
