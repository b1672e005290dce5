"""What somebody is told of without asking: kinds, the rules that raise them, and how they read. Pure.

Rules
1. An alert is raised at most once per account and key; the key says what it is about and in which period.
2. A trial is about to end when at most a day and at most a seventh of it are left.
3. A wallet is low when a charge takes it from at or above its mark to below it; that can happen again only after
   something has brought it above.
4. Use is rapid when an account (a user of it, where the call names one) made more than ``uses`` charged calls within
   ``per``: told once per UTC day. Plan limits refuse; this only tells.
5. A spike is a seventh of ``over`` in which an account used more than ``factor`` times what it used on average in the
   seven sevenths before it. Who has no such past, or made fewer than ``SPIKE_CALLS_MIN`` calls, is not judged.

Not here: who notices, who is told, and how it gets there (``quota``, ``billing.alerts``).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import field
from fractions import Fraction
from typing import Any, Final

from gateway.domain.accounts import Subscription
from limits.values import dataclass

THRESHOLD: Final = "threshold"
LOW_BALANCE: Final = "low_balance"
TRIAL_ENDING: Final = "trial_ending"
TRIAL_EXPIRED: Final = "trial_expired"
REFUSED: Final = "refused"
PAYMENT_FAILED: Final = "payment_failed"
RAPID_USE: Final = "rapid_use"
SPIKE: Final = "spike"
KINDS: Final = (
    THRESHOLD, LOW_BALANCE, TRIAL_ENDING, TRIAL_EXPIRED, REFUSED, PAYMENT_FAILED, RAPID_USE, SPIKE,
)  # fmt: skip

WEBHOOK: Final = "webhook"
EMAIL: Final = "email"

DAY_MS: Final = 86_400_000
TRIAL_ENDING_PARTS: Final = 7
SPIKE_SLICES: Final = 7
SPIKE_CALLS_MIN: Final = 10
SIGNING_KEY_BYTES_MIN: Final = 16


@dataclass(frozen=True, slots=True)
class LowMark:
    """Below which a wallet is low: an amount in steps, or a share of its open grants."""

    amount: int = 0
    permille: int = 0

    def of(self, granted: int) -> int:
        """In steps, for a wallet whose open grants add up to ``granted``."""
        return granted * self.permille // 1000 if self.permille else self.amount


@dataclass(frozen=True, slots=True)
class RapidUse:
    uses: int
    per_s: int


@dataclass(frozen=True, slots=True)
class Spike:
    factor: Fraction
    over_s: int

    @property
    def slice_ms(self) -> int:
        return max(1, self.over_s * 1000 // SPIKE_SLICES)


@dataclass(frozen=True, slots=True)
class AlertRules:
    """What of ``alerts`` in the config says when to tell; thresholds are the catalog's ``warn_at_permille``."""

    low_balance: Mapping[str, LowMark] = field(default_factory=dict)  # by wallet
    rapid_use: RapidUse | None = None
    spike: Spike | None = None
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where alerts are posted to, and what signs them."""

    url: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Mail:
    """The server that takes e-mails (``smtp://`` or ``smtps://``, credentials in the URL), and who writes them."""

    smtp: str = field(repr=False)
    sender: str


@dataclass(frozen=True, slots=True)
class Channels:
    """Where alerts are delivered to; None = not there."""

    webhook: Webhook | None = None
    mail: Mail | None = None


def period_of(subscription: Subscription, now_ms: int) -> str:
    """What names the running period in a key. A period that was granted ahead runs before its turn is noticed."""
    start_ms, end_ms = subscription.period_starts_at_ms, subscription.period_ends_at_ms
    return f"{subscription.plan}:{end_ms if 0 < end_ms <= now_ms else start_ms}"


def trial_key(subscription: Subscription) -> str:
    """What names a trial in a key; one that was prolonged ends another time."""
    return f"{subscription.id}:{subscription.trial_ends_at_ms}"


def is_spike(spike: Spike, *, recent: int, calls: int, past: int) -> bool:
    """Whether ``recent`` (one slice, of ``calls`` calls) is out of line with ``past`` (all seven slices before it)."""
    return calls >= SPIKE_CALLS_MIN and past > 0 and recent * SPIKE_SLICES > spike.factor * past


def signing_key(secret: str) -> bytes:
    """The bytes that sign webhooks: what follows ``whsec_`` in base64, else the text itself. Raises ValueError.

    Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    """
    if not secret.startswith("whsec_"):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error


@dataclass(frozen=True, slots=True)
class Words:
    """How an alert reads: a subject and a few sentences."""

    title: str
    text: str


def words_of(kind: str, detail: Mapping[str, Any]) -> Words:
    """An alert for people. A fact that its detail lacks is left out."""
    told = _Told(detail)
    match kind:
        case "threshold":
            return Words(
                told("{percent}% of your {unit} are used"),
                told("You have used {percent}% of your {unit} on the {plan} plan.", " They renew at {resets_at}."),
            )
        case "low_balance":
            return Words(
                told("Your {unit} are running low"), told("{available} {unit} are left.", " The mark is {mark} {unit}.")
            )
        case "trial_ending":
            return Words("Your trial is ending", told("Your {plan} ends at {ends_at}.", " Plans: {plans}."))
        case "trial_expired":
            return Words("Your trial has ended", told("{message}"))
        case "refused":
            return Words(told("{title}") if detail.get("title") else "A request was refused", told("{message}"))
        case "payment_failed":
            return Words("A payment failed", told("A payment failed.", " It was for {plan}."))
        case "rapid_use":
            return Words(
                "Rapid use", told("More than {uses} uses within {per_seconds} seconds.", " By the user {user}.")
            )
        case "spike":
            return Words(
                told("Unusual use of {unit}"),
                told("{used} {unit} were used since {since}, where {usual} are usual."),
            )
        case _:
            return Words(kind, "")


class _Told:
    """Sentences filled with an alert's detail; of those after the first, the ones that lack a fact are left out."""

    def __init__(self, detail: Mapping[str, Any]) -> None:
        self._facts = {name: _text(value) for name, value in detail.items() if value not in (None, "", [])}

    def __call__(self, first: str, *others: str) -> str:
        known = [sentence for sentence in others if all(name in self._facts for name in _FIELD.findall(sentence))]
        return _FIELD.sub(lambda field: self._facts.get(field[1], "-"), first + "".join(known))


def _text(value: Any) -> str:
    return ", ".join(str(each) for each in value) if isinstance(value, list | tuple) else str(value)


_FIELD: Final = re.compile(r"\{(\w+)\}")
