"""The kinds of values in a config: text in, checked values out, and how an editor may check them.

Rules
1. Every refusal says what was expected; what was found is added where the line is known.
2. Numbers arrive as text and leave as ``int`` or ``Decimal``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BeforeValidator, WithJsonSchema

from gateway.config.model import Address
from gateway.config.reading import Number
from gateway.domain.periods import Period, parse_period
from gateway.domain.units import UnitError, exact, parse_duration_s

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)
_PATTERN: Final = re.compile(r"[A-Za-z0-9*?][A-Za-z0-9_.:/@*?\[\]!-]{0,127}", re.ASCII)
_HOST_PORT: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+):[0-9]{1,5}", re.ASCII)
_MAIL: Final = re.compile(r"[^\s@<>\x00-\x1f\x7f\"(),:;\[\]\\]{1,64}@[A-Za-z0-9._-]{1,190}")
_SIZE: Final = re.compile(r"([0-9]{1,9})(B|KB|MB|GB)", re.ASCII)
_SIZE_UNITS: Final = {"B": 1, "KB": 1024, "MB": 1024**2, "GB": 1024**3}
_REFERENCE: Final = {"type": "string", "pattern": r"^\$\{"}


class Expected(ValueError):
    """A value is not what it should be. ``expected`` completes the sentence "expected …"."""

    def __init__(self, expected: str) -> None:
        super().__init__(f"expected {expected}")
        self.expected = expected


def _kind(parse: Callable[[Any], Any]) -> BeforeValidator:
    """A validator out of a parser that raises Expected or UnitError."""
    return BeforeValidator(parse)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Expected("a text")
    return str(value)


def _any_text(value: Any) -> str:
    """Like ``_text``, but an unset reference may leave it empty."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Expected("a text")
    return str(value)


def _name(value: Any) -> str:
    if not isinstance(value, str) or _NAME.fullmatch(value) is None:
        raise Expected("a name of letters, digits, '_', '.' or '-'")
    return str(value)


def _pattern(value: Any) -> str:
    if not isinstance(value, str) or _PATTERN.fullmatch(value) is None:
        raise Expected("a model name or pattern such as 'claude-*'")
    return str(value)


def _secret(value: Any) -> str:
    text = _any_text(value).strip()
    if not text.isascii() or not all(" " < char < "\x7f" for char in text):
        raise Expected("a secret of visible ASCII characters without spaces")
    return text


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):  # from the environment
        return bool(value == "true")
    raise Expected("true or false")


def _whole(minimum: int, maximum: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        text = value if isinstance(value, str) else ""
        if re.fullmatch(r"-?[0-9]{1,18}", text, re.ASCII) and minimum <= int(text) <= maximum:
            return int(text)
        raise Expected(f"a whole number from {minimum} to {maximum}")

    return parse


def _decimal(value: Any) -> Decimal:
    """An exact number, 0 or more."""
    try:
        if isinstance(value, str) and exact(str(value)) >= 0:
            return Decimal(value)
    except UnitError:
        pass
    raise Expected("a number, 0 or more")


def _amount(value: Any) -> Decimal | str:
    if value in ("unlimited", "custom"):
        return str(value)
    try:
        return _decimal(value)
    except Expected:
        raise Expected("an amount, 0 or more, or unlimited, or custom") from None


def _price(value: Any) -> Decimal | str:
    if value == "custom":
        return "custom"
    try:
        return _decimal(value)
    except Expected:
        raise Expected("a price, 0 or more, or custom") from None


def _share(value: Any) -> Decimal:
    """A part of a whole, as 0.9 or 90%."""
    text = value if isinstance(value, str) else ""
    try:
        share = _decimal(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except Expected:
        share = Decimal(0)
    if not 0 < share <= 1 or share * 1000 % 1:
        raise Expected("a share such as 0.9 or 90%, in steps of 0.1%")
    return share


def _low_balance(value: Any) -> Decimal | str:
    """An amount, or a share written with %."""
    if isinstance(value, str) and value.endswith("%"):
        _share(value)
        return str(value)
    try:
        return _decimal(value)
    except Expected:
        raise Expected("an amount such as 100 or a share such as 20%") from None


def _percentage(value: Any) -> Decimal:
    if not isinstance(value, str) or not value.endswith("%"):
        raise Expected("a percentage such as 20%")
    return _share(value)


def _period(value: Any) -> Period:
    return parse_period(_plain(value))


def _duration(value: Any) -> int:
    return parse_duration_s(_plain(value))


def _size(value: Any) -> int:
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    size = int(match[1]) * _SIZE_UNITS[match[2]] if match else 0
    if not 1024 <= size <= 1024**3:
        raise Expected("a size from 1KB to 1GB, such as 32MB")
    return size


def address(value: Any) -> Address:
    """HOST:PORT, with an IPv6 host in brackets; port 0 is any free one. Raises Expected."""
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not host or not colon or re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) is None or int(port) > 65_535:
        raise Expected("an address as HOST:PORT, such as 127.0.0.1:8080")
    if re.fullmatch(r"[0-9A-Za-z.:%_-]+", host, re.ASCII) is None:
        raise Expected("an address as HOST:PORT, such as 127.0.0.1:8080")
    return Address(host, int(port))


def _web_url(value: Any) -> str:
    """An http or https URL of a host: no credentials, query or fragment; without its trailing slash."""
    text = value if isinstance(value, str) else ""
    try:
        parts = urlsplit(text)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise Expected("a URL such as https://api.example.com/v1") from None
    if not fits or "@" in parts.netloc or parts.query or parts.fragment or not text.isprintable() or " " in text:
        raise Expected("a URL such as https://api.example.com/v1, without credentials or a query")
    return text.rstrip("/")


def _optional_url(value: Any) -> str:
    """Empty, or a URL for a client to follow: a query is its own affair."""
    text = _any_text(value)
    if text:
        _web_url(text.partition("?")[0])
    return text


def _smtp_url(value: Any) -> str:
    """Empty, or smtp(s)://USER:PASSWORD@HOST:PORT."""
    text = _any_text(value)
    if not text:
        return text
    try:
        parts = urlsplit(text)
        fits = parts.scheme in ("smtp", "smtps") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits or parts.path.strip("/") or parts.query or parts.fragment or not text.isprintable() or " " in text:
        raise Expected("smtp://USER:PASSWORD@HOST:587 or smtps://USER:PASSWORD@HOST")
    return text


def _mail_address(value: Any) -> str:
    text = _text(value).strip()
    if _MAIL.fullmatch(text) is None:
        raise Expected("an e-mail address such as billing@example.com")
    return text


def _factor(value: Any) -> Decimal:
    try:
        factor = _decimal(value)
    except Expected:
        factor = Decimal(0)
    if factor < 1:
        raise Expected("a factor of at least 1")
    return factor


def _redis_url(value: Any) -> str:
    text = value if isinstance(value, str) else ""
    scheme, _, rest = text.partition("://")
    hosts = rest.partition("/")[0].rpartition("@")[2]
    fits = {
        "embedded": rest == "",
        "redis": hosts != "",
        "rediss": hosts != "",
        "unix": rest.startswith("/"),
        "redis+cluster": all(_HOST_PORT.fullmatch(host) for host in hosts.split(",")),
    }
    if not fits.get(scheme) or not text.isprintable() or " " in text:
        raise Expected("embedded, redis://HOST:PORT, rediss://HOST:PORT or redis+cluster://HOST:PORT,HOST:PORT")
    return text


def _database_url(value: Any) -> str:
    text = value if isinstance(value, str) else ""
    fits = text == "embedded" or text.startswith(("sqlite:///", "postgresql://"))
    if not fits or text.endswith("://") or not text.isprintable() or " " in text:
        raise Expected("embedded, sqlite:///FILE or postgresql://USER@HOST/DATABASE")
    return text


def _zone(value: Any) -> str:
    try:
        return str(ZoneInfo(_text(value)).key)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise Expected("an IANA time zone such as Europe/Berlin") from None


def _currency(value: Any) -> str:
    if not isinstance(value, str) or re.fullmatch(r"[a-z]{3}", value, re.ASCII) is None:
        raise Expected("a currency such as usd or eur")
    return str(value)


def _workers(value: Any) -> int:
    try:
        return 0 if value == "auto" else _whole(1, 256)(value)
    except Expected:
        raise Expected("auto or a whole number from 1 to 256") from None


def _clamp(value: Any) -> int | None:
    try:
        return None if value is False or value is None else _whole(1, 10_000_000)(value)
    except Expected:
        raise Expected("false or a floor of at least 1 output token") from None


def _entitlement(value: Any) -> Any:
    """Anything plain; whole numbers as numbers, other numbers as they are written."""
    match value:
        case Number():
            return int(value) if re.fullmatch(r"-?[0-9]{1,15}", value, re.ASCII) else str(value)
        case dict():
            return {key: _entitlement(inner) for key, inner in value.items()}
        case list():
            return [_entitlement(inner) for inner in value]
        case _:
            return value


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, str) else value


def _json(*kinds: dict[str, Any]) -> WithJsonSchema:
    """What an editor accepts: one of these, or a reference to the environment."""
    return WithJsonSchema({"anyOf": [*kinds, _REFERENCE]})


_JSON_TEXT: Final = {"type": "string"}
_JSON_NUMBER: Final = {"type": "number", "minimum": 0}
_JSON_SHARE: Final = {"type": "string", "pattern": r"^[0-9.]+%$"}
_JSON_DURATION: Final = {"type": "string", "pattern": "^[0-9]+[smhdw]$"}

Text = Annotated[str, _kind(_text), WithJsonSchema({"type": ["string", "number"]})]
AnyText = Annotated[str, _kind(_any_text), WithJsonSchema({"type": ["string", "null"]})]
Name = Annotated[str, _kind(_name), WithJsonSchema({"type": "string", "pattern": f"^{_NAME.pattern}$"})]
Pattern = Annotated[str, _kind(_pattern), WithJsonSchema(_JSON_TEXT)]
Secret = Annotated[str, _kind(_secret), WithJsonSchema({"type": "string", "pattern": r"^(\$\{[^{}]*\})?$"})]
Flag = Annotated[bool, _kind(_flag), _json({"type": "boolean"})]
Decimals = Annotated[int, _kind(_whole(0, 9)), _json({"type": "integer", "minimum": 0, "maximum": 9})]
Count = Annotated[int, _kind(_whole(1, 10**12)), _json({"type": "integer", "minimum": 1})]
Several = Annotated[int, _kind(_whole(2, 10**9)), _json({"type": "integer", "minimum": 2})]
Tokens = Annotated[int, _kind(_whole(1, 10_000_000)), _json({"type": "integer", "minimum": 1})]
Quantity = Annotated[Decimal, _kind(_decimal), _json(_JSON_NUMBER)]
Amount = Annotated[
    Decimal | Literal["unlimited", "custom"], _kind(_amount), _json(_JSON_NUMBER, {"enum": ["unlimited", "custom"]})
]
Price = Annotated[Decimal | Literal["custom"], _kind(_price), _json(_JSON_NUMBER, {"const": "custom"})]
Share = Annotated[Decimal, _kind(_share), _json({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, _JSON_SHARE)]
LowBalance = Annotated[Decimal | str, _kind(_low_balance), _json(_JSON_NUMBER, _JSON_SHARE)]
Percentage = Annotated[Decimal, _kind(_percentage), _json(_JSON_SHARE)]
PeriodValue = Annotated[Period, _kind(_period), _json({"enum": ["month", "year", "once"]}, _JSON_DURATION)]
Duration = Annotated[int, _kind(_duration), _json(_JSON_DURATION)]
Size = Annotated[int, _kind(_size), _json({"type": "string", "pattern": "^[0-9]+(B|KB|MB|GB)$"})]
Listen = Annotated[Address, _kind(address), _json({"type": "string", "pattern": ":[0-9]+$"})]
WebUrl = Annotated[str, _kind(_web_url), _json({"type": "string", "pattern": "^https?://"})]
OptionalUrl = Annotated[str, _kind(_optional_url), WithJsonSchema({"type": ["string", "null"]})]
SmtpUrl = Annotated[str, _kind(_smtp_url), WithJsonSchema({"type": ["string", "null"]})]
MailAddress = Annotated[str, _kind(_mail_address), WithJsonSchema(_JSON_TEXT)]
Factor = Annotated[Decimal, _kind(_factor), _json({"type": "number", "minimum": 1})]
RedisUrl = Annotated[str, _kind(_redis_url), WithJsonSchema(_JSON_TEXT)]
DatabaseUrl = Annotated[str, _kind(_database_url), WithJsonSchema(_JSON_TEXT)]
Zone = Annotated[str, _kind(_zone), WithJsonSchema(_JSON_TEXT)]
Currency = Annotated[str, _kind(_currency), WithJsonSchema({"type": "string", "pattern": "^[a-z]{3}$"})]
Workers = Annotated[int, _kind(_workers), _json({"const": "auto"}, {"type": "integer", "minimum": 1})]
Clamp = Annotated[int | None, _kind(_clamp), _json({"const": False}, {"type": "integer", "minimum": 1})]
Entitlement = Annotated[Any, _kind(_entitlement), WithJsonSchema({})]
