"""What is typed on a command line, read."""

from __future__ import annotations

import re

from gateway.domain.periods import MONTH
from gateway.domain.units import UnitError, parse_duration_s
from gateway.errors import RequestError


def later_ms(text: str, now_ms: int, *, param: str) -> int:
    """An instant: a time, a date, or a duration from now (``30d``). Raises RequestError."""
    from gateway.billing.desk import instant_ms

    try:
        return now_ms + parse_duration_s(text) * 1000
    except UnitError:
        return instant_ms(text, param=param)


def pairs(texts: list[str], *, param: str, what: str = "WALLET=AMOUNT, once per wallet") -> dict[str, str]:
    """``NAME=VALUE``, each name once. Raises RequestError."""
    read: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value) or name in read:
            raise RequestError(f"{param}: expected {what}, found {text!r}", param=param)
        read[name] = value
    return read


def month_of(text: str | None) -> str | None:
    """``--month``; None = any. Raises RequestError."""
    if text is not None and re.fullmatch(MONTH, text) is None:
        raise RequestError(f"--month: expected a month such as 2026-11, found {text!r}", param="--month")
    return text


def span(from_: str | None, to: str | None) -> tuple[int | None, int | None]:
    """``--from`` and ``--to``, half-open; None = without end. Raises RequestError."""
    from gateway.billing.desk import instant_ms

    return (
        None if from_ is None else instant_ms(from_, param="--from"),
        None if to is None else instant_ms(to, param="--to"),
    )
