"""A request body as JSON, judged strictly, and said precisely what is wrong with it.

Rules
1. What is accepted means the same to every JSON parser: valid UTF-8, no byte order mark, no NaN, no number that only
   some can hold, no nesting that could not be written again.
2. A message names the place or the kind, never what was written there.

Not here: what the fields mean.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from gateway.errors import BadRequest

DEPTH_MAX: Final = 200  # providers' own schemas stop far below; orjson writes up to 254


def loaded(body: bytes) -> Any:
    """The JSON value of a body. Raises BadRequest: empty_body, invalid_encoding, invalid_json, too_deep."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise why(body, error) from None
    if len(body) > 2 * DEPTH_MAX and is_deep(value):
        raise too_deep()
    return value


def why(body: bytes, error: orjson.JSONDecodeError) -> BadRequest:
    """The precise refusal for a body that orjson does not take. Slow paths are fine here."""
    if not body.strip():
        return BadRequest("empty_body", "The request body is empty. Send a JSON object.")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        return BadRequest("invalid_encoding", "The request body is not valid UTF-8.")
    if text.startswith("\ufeff") or "\0" in text[:4]:
        return BadRequest("invalid_encoding", "The request body must be UTF-8 without a byte order mark.")
    if "surrogate" in error.msg:
        return BadRequest(
            "invalid_encoding", f"A string holds half a surrogate pair: line {error.lineno} column {error.colno}."
        )
    if "depth limit" in error.msg:
        return too_deep()
    return BadRequest(
        "invalid_json", f"The request body is not valid JSON: {error.msg}: line {error.lineno} column {error.colno}."
    )


def too_deep() -> BadRequest:
    return BadRequest("too_deep", f"The request body is nested deeper than {DEPTH_MAX} levels.")


def kind(value: object) -> str:
    """What a JSON value is, in words."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case _:
            return "a list"


def is_deep(value: object) -> bool:
    """Level by level, containers only: the cost is the number of containers and their members."""
    level = [value] if type(value) is dict or type(value) is list else []
    for _ in range(DEPTH_MAX):
        if not level:
            return False
        below = []
        for container in level:
            for member in container.values() if type(container) is dict else container:
                if type(member) is dict or type(member) is list:
                    below.append(member)
        level = below
    return bool(level)
