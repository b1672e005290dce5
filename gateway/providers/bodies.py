"""Judging a client's JSON body: strict, and fast when nothing is wrong.

Rules
1. What is accepted means the same to every JSON parser behind us: valid UTF-8, no byte order mark, no NaN, no number
   that only some can hold, no key twice among those that metering depends on.
2. One parse on the happy path. Duplicates and depth are found by scans that cost about what the parse does.
3. A message names the place or the field, never what was written there.

Not here: what a dialect's fields mean (the adapters).
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from gateway import json_bodies
from gateway.errors import BadRequest
from gateway.json_bodies import DEPTH_MAX

CHOICES_MAX = 128  # Source: OpenAI API reference, chat completions, n
TOKENS_MAX = 2**31 - 1
_MODEL_CHARACTERS_MAX = 256

# A client must not choose hosts, credentials or headers of the upstream call.
_NOT_ALLOWED = frozenset({"api_base", "base_url", "api_key", "extra_headers"})
# Metering reads these; two parsers may take different ones of two equal keys.
_SINGLE = frozenset(
    {"model", "stream", "stream_options", "n", "best_of", "max_tokens", "max_completion_tokens", "max_output_tokens"}
)
# Each of these keys, at any depth; or, as an empty match, a key that may be one of them, spelled with an escape. Within
# a string nothing looks so: its quotes are escaped.
_SINGLE_KEYS = re.compile(rb'"(?:(%b)"\s*:|[a-z_]{0,21}+\\u00[4-7])' % "|".join(sorted(_SINGLE)).encode())

Fields = dict[str, Any]


def parse_object(body: bytes) -> Fields:
    """The JSON object of a body. Raises BadRequest: empty_body, invalid_encoding, invalid_json, too_deep,
    duplicate_key, field_not_allowed, invalid_max_tokens, invalid_request."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _why(body, error) from None
    if len(body) > 2 * DEPTH_MAX and json_bodies.is_deep(fields):
        raise json_bodies.too_deep()
    if type(fields) is not dict:
        raise BadRequest("invalid_request", f"The request body must be a JSON object, not {json_bodies.kind(fields)}.")
    _refuse_duplicates(body)
    if not _NOT_ALLOWED.isdisjoint(fields):
        name = next(name for name in fields if name in _NOT_ALLOWED)
        raise BadRequest("field_not_allowed", f"The field '{name}' is not allowed here.", param=name)
    return fields


# --- fields that several dialects share --------------------------------------------------------------------------


def model_of(fields: Fields) -> str:
    """The model's name. Raises BadRequest."""
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("invalid_request", "The field 'model' must be a non-empty string.", param="model")
    if len(model) > _MODEL_CHARACTERS_MAX or not model.isprintable() or ".." in model:
        raise BadRequest("invalid_request", "The field 'model' is not a model's name.", param="model")
    return model


def opened(body: bytes) -> tuple[Fields, str]:
    """(Fields, model's name): how every ``parse`` begins. Raises BadRequest as ``parse_object`` and ``model_of``."""
    fields = parse_object(body)
    return fields, model_of(fields)


def flag_of(fields: Fields, name: str) -> bool:
    """A boolean that may be absent or null. Raises BadRequest."""
    value = fields.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise BadRequest("invalid_request", f"The field '{name}' must be true or false.", param=name)
    return value


def object_of(fields: Fields, name: str) -> Fields:
    """An object that may be absent or null: then it is empty. Raises BadRequest."""
    value = fields.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest("invalid_request", f"The field '{name}' must be an object.", param=name)
    return value


def list_of(fields: Fields, name: str) -> list[Any]:
    """A list that may be absent or null: then it is empty. Raises BadRequest."""
    value = fields.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadRequest("invalid_request", f"The field '{name}' must be a list.", param=name)
    return value


def tokens_of(fields: Fields, name: str, *, least: int) -> int | None:
    """A bound in tokens; None when absent or null. Raises BadRequest invalid_max_tokens."""
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is not int or not least <= value <= TOKENS_MAX:
        raise BadRequest("invalid_max_tokens", f"The field '{name}' must be an integer from {least}.", param=name)
    return value


def choices_of(fields: Fields, *names: str) -> int:
    """How many outputs are asked for, by the largest of these fields; 1 when all are absent or null. Raises
    BadRequest."""
    choices = 1
    for name in names:
        value = fields.get(name)
        if value is None:
            continue
        if type(value) is not int or not 1 <= value <= CHOICES_MAX:
            raise BadRequest(
                "invalid_request", f"The field '{name}' must be an integer from 1 to {CHOICES_MAX}.", param=name
            )
        choices = max(choices, value)
    return choices


def messages_of(fields: Fields) -> list[Fields]:
    """The conversation: a non-empty list of objects. Raises BadRequest."""
    messages = fields.get("messages")
    if type(messages) is not list or not messages:
        raise BadRequest("invalid_request", "The field 'messages' must be a non-empty list.", param="messages")
    for message in messages:
        if type(message) is not dict:
            index = messages.index(message)
            raise BadRequest("invalid_request", f"messages[{index}] must be an object.", param="messages")
    return messages


def kind_of(value: object) -> str | None:
    """The ``type`` of a block, part or item; None for what has none."""
    kind = value.get("type") if type(value) is dict else None
    return kind if type(kind) is str else None


def as_text(value: object) -> str:
    """Any JSON value as the text that a provider would make of it, about. ``DEPTH_MAX`` is below orjson's own limit."""
    return orjson.dumps(value).decode()


# --- what went wrong ---------------------------------------------------------------------------------------------


def _why(body: bytes, error: orjson.JSONDecodeError) -> BadRequest:
    """The precise refusal for a body that orjson does not take."""
    name = _unbounded_tokens(body) if "infinity" in error.msg else None
    if name is not None:
        return BadRequest("invalid_max_tokens", f"The field '{name}' must be an integer.", param=name)
    return json_bodies.why(body, error)


def _unbounded_tokens(body: bytes) -> str | None:
    """The token bound whose number is out of every range (1e999), if that is what is wrong."""
    try:
        fields = json.loads(body, parse_int=float)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    return next((name for name in fields if name.startswith("max_") and fields[name] == float("inf")), None)


def _refuse_duplicates(body: bytes) -> None:
    """No top-level key of ``_SINGLE`` twice, however it is spelled. Raises BadRequest duplicate_key."""
    keys = _SINGLE_KEYS.findall(body)
    if len(keys) == len(set(keys)) and b"" not in keys:
        return
    # Objects as lists of pairs: nothing is lost, and building lists costs no Python code per object.
    pairs = json.loads(body, object_pairs_hook=list)
    seen = set()
    for name, _ in pairs:
        if name in _SINGLE and name in seen:
            raise BadRequest("duplicate_key", f"The field '{name}' is there twice.", param=name)
        seen.add(name)
