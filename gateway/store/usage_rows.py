"""Rows of ``usage`` as tuples: what a charge says and what its booking adds; read back, what is known of a hold.

A tuple has all of ``COLUMNS`` in their order, which is the table's: it goes into the database as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

from gateway.domain.charges import REVERSED, BudgetLine, ChargeChange, ChargeRow, GrantLine
from limits.values import dataclass

ALWAYS: Final = (
    "account_id", "seq", "hold_id", "state", "created_at_ms", "at_ms", "committed_at_ms", "route", "model", "upstream",
    "plan", "feature", "wallet", "card_version", "basis", "input", "cache_read", "output", "held", "charged",
    "balance_after", "lines", "budgets", "status", "end", "key_id", "team_id", "user_id",
)  # fmt: skip
SELDOM: Final = {  # what most charges say nothing of, with the table's defaults: such rows go in without them
    "cache_write_5m": 0, "cache_write_1h": 0, "cache_write": 0, "reasoning": 0, "overrun": 0, "waived": 0,
    "shadow": None, "job": None, "job_type": None, "metadata": "{}",
}  # fmt: skip
COLUMNS: Final = (*ALWAYS, *SELDOM)
_DEFAULTS: Final = tuple(SELDOM.values())
_NEGATED: Final = (
    "input", "cache_read", "cache_write_5m", "cache_write_1h", "cache_write", "output", "reasoning",
    "held", "charged", "overrun", "waived",
)  # fmt: skip
_dumps: Final = json.JSONEncoder(separators=(",", ":")).encode


# What booking a change adds to its row: its seq, the time, what its wallet's open grants have left, and the texts of
# its lines and budgets.
Booked = tuple[int, int, int, str, str]


@dataclass(frozen=True, slots=True)
class Known:
    """A row of ``usage`` that is there, or will be when the batch is written."""

    account_id: str
    state: str
    change: ChargeChange
    row: Sequence[Any]  # as COLUMNS

    @classmethod
    def of(cls, row: Sequence[Any]) -> Known:
        values = dict(zip(COLUMNS, row, strict=True))
        lines = tuple(
            GrantLine(line[3] if len(line) > 3 else values["wallet"], line[0], line[1])
            for line in json.loads(values["lines"])
        )
        budgets = tuple(BudgetLine(*line) for line in json.loads(values["budgets"]))
        return cls(values["account_id"], values["state"], ChargeChange(values["seq"], lines, budgets), row)

    def values(self) -> dict[str, Any]:
        return dict(zip(COLUMNS, self.row, strict=True))


def row_of(charge: ChargeRow, booked: Booked) -> tuple[Any, ...]:
    """The row of a charge."""
    seq, committed_at_ms, balance_after, lines, budgets = booked
    used = charge.usage
    *texts, end = _storable_all(
        charge.route, charge.model, charge.upstream, charge.plan, charge.feature, charge.wallet, charge.card_version,
        charge.end,
    )  # fmt: skip
    return (
        charge.account_id, seq, charge.hold_id, charge.state, charge.created_at_ms, charge.ended_at_ms,
        committed_at_ms, *texts, str(charge.basis), used.input, used.cache_read, used.output, charge.held,
        charge.charged, balance_after, lines, budgets, charge.status, end, charge.key_id, charge.team_id,
        charge.user_id, used.cache_write_5m, used.cache_write_1h, used.cache_write, used.reasoning, charge.overrun,
        charge.waived, charge.shadow, storable_text(charge.job), storable_text(charge.job_type),
        _dumps(charge.metadata) if charge.metadata else "{}",
    )  # fmt: skip


def parted(rows: Iterable[tuple[Any, ...]]) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """The rows that say nothing of what is SELDOM, without it, and the others."""
    count = len(ALWAYS)
    usual, others = [], []
    for row in rows:
        if row[count:] == _DEFAULTS:
            usual.append(row[:count])
        else:
            others.append(row)
    return usual, others


def row_of_reversal(lapse: Known, booked: Booked, ended_at_ms: int) -> tuple[Any, ...]:
    """The lapse's row once more with all its amounts negated, at the time of the settle."""
    seq, committed_at_ms, balance_after, lines, budgets = booked
    values = lapse.values()
    values.update({name: -values[name] for name in _NEGATED})
    values.update(
        seq=seq, state=REVERSED, at_ms=ended_at_ms, committed_at_ms=committed_at_ms, balance_after=balance_after,
        lines=lines, budgets=budgets,
    )  # fmt: skip
    return tuple(values.values())


def line_text(number: int, amount: int, left: int, other_wallet: str | None) -> str:
    """One of a row's lines. ``other_wallet``: the line's, if it is not the row's."""
    wallet = "" if other_wallet is None else f",{_dumps(other_wallet)}"
    return f"[{number},{amount},{left}{wallet}]"


def storable_text(text: str | None) -> str | None:
    """A text without what PostgreSQL refuses: whatever somebody wrote must not hold up the bill."""
    if text is None or (text.isascii() and "\0" not in text):
        return text
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


@lru_cache(maxsize=4096)
def _storable_all(*texts: str | None) -> tuple[str | None, ...]:
    """Texts that many charges share."""
    return tuple(storable_text(text) for text in texts)
