"""What a batch of charges becomes, worked out on what the database holds of their accounts. No I/O.

The writer reads the ``Batch``, books each charge on it, and writes what it then says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from gateway.domain.alerts import LowMark
from gateway.domain.charges import (
    LAPSED,
    REVERSED,
    SETTLED,
    BudgetLine,
    ChargeChange,
    ChargeRow,
    Committed,
    GrantLine,
    Unreadable,
    encode,
    steps,
)
from gateway.domain.periods import billing_month
from gateway.domain.units import AMOUNT_MAX

_NEGATED: Final = (
    "input", "cache_read", "cache_write_5m", "cache_write_1h", "cache_write", "output", "reasoning",
    "held", "charged", "overrun", "waived",
)  # fmt: skip
_ID_MAX: Final = 36
_STATUS_MAX: Final = 999
_DAY_MS: Final = 86_400_000
TIME_MAX_MS: Final = 253_402_300_799_999  # the last one of the year 9999
_dumps: Final = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(slots=True)
class Grant:
    """A grant's row, with what the batch adds to it."""

    wallet: str
    amount: int
    used: int
    starts_at_ms: int
    expires_at_ms: int
    source: str
    added: int = 0
    charged_at_ms: int = 0  # end of the last call that the batch charged to it

    @property
    def left(self) -> int:
        return self.amount - self.used - self.added

    def is_open(self, at_ms: int) -> bool:
        return self.starts_at_ms <= at_ms and not 0 < self.expires_at_ms <= at_ms


@dataclass(slots=True)
class Account:
    """An account's row, locked, with what the batch adds to it."""

    id: str
    seq: int
    grants: dict[int, Grant] = field(default_factory=dict)
    budgets: set[int] = field(default_factory=set)
    seq_before: int = 0
    posted: list[tuple[str, int, int]] = field(default_factory=list)  # (wallet, grant, amount)
    budget_uses: dict[tuple[int, int], int] = field(default_factory=dict)
    left_before: dict[str, int] = field(default_factory=dict)  # of wallets that can be low, before the batch

    def __post_init__(self) -> None:
        self.seq_before = self.seq

    def left(self, wallet: str, at_ms: int) -> int:
        """What the wallet's open grants have left."""
        return sum(grant.left for grant in self.grants.values() if grant.wallet == wallet and grant.is_open(at_ms))

    def granted(self, wallet: str, at_ms: int) -> int:
        return sum(grant.amount for grant in self.grants.values() if grant.wallet == wallet and grant.is_open(at_ms))


@dataclass(frozen=True, slots=True)
class Known:
    """A row of ``usage`` that is there, or will be when the batch is written."""

    account_id: str
    state: str
    change: ChargeChange
    values: Mapping[str, Any]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Known:
        """From the columns of ``usage``."""
        lines = tuple(
            GrantLine(line[3] if len(line) > 3 else values["wallet"], line[0], line[1])
            for line in json.loads(values["lines"])
        )
        budgets = tuple(BudgetLine(*line) for line in json.loads(values["budgets"]))
        return cls(values["account_id"], values["state"], ChargeChange(values["seq"], lines, budgets), values)


@dataclass(frozen=True, slots=True)
class Low:
    """A wallet that has less than its mark since the charge ``seq``; amounts in steps."""

    account_id: str
    wallet: str
    seq: int
    left: int
    mark: int


class Batch:
    """The accounts of a batch, what is known of its holds, and what is to be written."""

    def __init__(self, accounts: dict[str, Account], marks: Mapping[str, LowMark] | None = None) -> None:
        self.accounts = accounts
        self._marks = marks or {}
        self.known: dict[str, list[Known]] = {}
        self.usage: list[dict[str, Any]] = []
        self.charged: dict[tuple[str, str, str, str], int] = {}  # wallet, plan, grant's source, basis → steps
        self.rejects: list[dict[str, Any]] = []

    def has_grants(self, rows: Iterable[ChargeRow]) -> bool:
        """Whether all grants that these charges name are here."""
        for row in rows:
            account = self.accounts.get(row.account_id)
            if account is not None and any(line.number not in account.grants for line in row.lines):
                return False
        return all(
            line.number in self.accounts[known.account_id].grants
            for rows_of_hold in self.known.values()
            for known in rows_of_hold
            if known.account_id in self.accounts
            for line in known.change.lines
        )

    def book(self, row: ChargeRow, now_ms: int) -> Callable[[], Committed]:
        """Take the steps that this charge asks for. The answer is complete when the whole batch is booked."""
        known = self.known.setdefault(row.hold_id, [])
        todo = steps([each.state for each in known], row.state)
        why = _unbookable(self, row, known) if todo else None
        if why is not None:
            self._reject(row, why, now_ms)
            return lambda: Committed(row.account_id, row.hold_id, row.state, ())
        for step in todo:
            if step == REVERSED:
                lapse = next(each for each in known if each.state == LAPSED)
                known.append(self._reverse(lapse, row, now_ms))
            else:
                known.append(self._charge(row, now_ms))
        return lambda: _answer(row.account_id, row.hold_id, known)

    def _charge(self, row: ChargeRow, now_ms: int) -> Known:
        account = self.accounts[row.account_id]
        values = usage_values(row)
        return self._add(account, values, row.lines, row.budgets, now_ms)

    def _reverse(self, lapse: Known, row: ChargeRow, now_ms: int) -> Known:
        """The lapse's row once more with all its amounts negated, at the time of the settle."""
        values = dict(lapse.values)
        values.update({name: -values[name] for name in _NEGATED})
        values.update(state=REVERSED, at_ms=row.ended_at_ms, month=_month(row.ended_at_ms // _DAY_MS))
        lines = tuple(GrantLine(line.wallet, line.number, -line.amount) for line in lapse.change.lines)
        budgets = tuple(BudgetLine(line.number, line.starts_at_ms, -line.amount) for line in lapse.change.budgets)
        return self._add(self.accounts[row.account_id], values, lines, budgets, now_ms)

    def _add(
        self,
        account: Account,
        values: dict[str, Any],
        lines: Sequence[GrantLine],
        budgets: Sequence[BudgetLine],
        now_ms: int,
    ) -> Known:
        """Give the change its seq, move the balances, and keep its row."""
        account.seq += 1
        wallet, at_ms = values["wallet"], values["at_ms"]
        if wallet in self._marks and wallet not in account.left_before:
            account.left_before[wallet] = account.left(wallet, now_ms)
        texts = []
        for line in lines:
            grant = account.grants[line.number]
            grant.added += line.amount
            grant.charged_at_ms = max(grant.charged_at_ms, values["at_ms"])
            account.posted.append((grant.wallet, line.number, line.amount))
            labels = (grant.wallet, values["plan"], grant.source, values["basis"])
            self.charged[labels] = self.charged.get(labels, 0) + line.amount
            other = "" if grant.wallet == values["wallet"] else f",{_dumps(grant.wallet)}"
            texts.append(f"[{line.number},{line.amount},{grant.left}{other}]")
        for budget in budgets:
            key = (budget.number, budget.starts_at_ms)
            account.budget_uses[key] = account.budget_uses.get(key, 0) + budget.amount
        values.update(
            seq=account.seq,
            committed_at_ms=now_ms,
            balance_after=account.left(wallet, at_ms),
            lines=f"[{','.join(texts)}]",
            budgets=f"[{','.join([f'[{line.number},{line.starts_at_ms},{line.amount}]' for line in budgets])}]",
        )
        self.usage.append(values)
        change = ChargeChange(account.seq, tuple(lines), tuple(budgets))
        return Known(account.id, values["state"], change, values)

    def became_low(self, now_ms: int) -> list[Low]:
        """The wallets that this batch takes from at or above their mark to below it."""
        found = []
        for account in self.accounts.values():
            for wallet, before in account.left_before.items():
                mark = self._marks[wallet].of(account.granted(wallet, now_ms))
                left = account.left(wallet, now_ms)
                if left < mark <= before:
                    found.append(Low(account.id, wallet, account.seq, left, mark))
        return found

    def _reject(self, row: ChargeRow, why: str, now_ms: int) -> None:
        self._keep_aside(Unreadable(row.hold_id, row.account_id, row.state, why, encode(row)), now_ms)

    def set_aside(self, charge: Unreadable, now_ms: int) -> Committed:
        """A charge that cannot be read; if it was booked before, that is its answer."""
        known = self.known.get(charge.hold_id)
        if known:
            return _answer(charge.account_id, charge.hold_id, known)
        self._keep_aside(charge, now_ms)
        return Committed(charge.account_id, charge.hold_id, charge.state, ())

    def _keep_aside(self, charge: Unreadable, now_ms: int) -> None:
        self.rejects.append(
            {
                "hold_id": _storable(charge.hold_id),
                "account_id": _storable(charge.account_id),
                "state": _storable(charge.state),
                "why": _storable(charge.why),
                "row": charge.row.hex(),
                "created_at_ms": now_ms,
            }
        )


def _answer(account_id: str, hold_id: str, known: Sequence[Known]) -> Committed:
    state = SETTLED if any(each.state == SETTLED for each in known) else LAPSED
    return Committed(account_id, hold_id, state, tuple(each.change for each in known))


def _unbookable(batch: Batch, row: ChargeRow, known: Sequence[Known]) -> str | None:
    """Why this charge has no place in the database; None when it has."""
    account = batch.accounts.get(row.account_id)
    if account is None:
        return "no such account"
    if row.state not in (LAPSED, SETTLED):
        return "no such state"
    if any(each.account_id != row.account_id for each in known):
        return "the hold is another account's"
    for value in (row.hold_id, row.key_id, row.team_id, row.user_id):
        if value is not None and (len(value) > _ID_MAX or not value.isascii() or "\0" in value):
            return "not an id"
    for line in row.lines:
        grant = account.grants.get(line.number)
        if grant is None or grant.wallet != line.wallet:
            return f"no grant {line.number} in wallet {line.wallet}"
        if not 0 <= line.amount <= AMOUNT_MAX:
            return "not an amount"
    for budget in row.budgets:
        if budget.number not in account.budgets:
            return f"no budget {budget.number}"
        if not 0 <= budget.amount <= AMOUNT_MAX:
            return "not an amount"
    used = row.usage
    amounts = (
        row.held, row.charged, row.overrun, row.waived, used.input, used.cache_read, used.cache_write_5m,
        used.cache_write_1h, used.cache_write, used.output, used.reasoning,
    )  # fmt: skip
    if min(amounts) < 0 or max(amounts) > AMOUNT_MAX:
        return "not an amount"
    for at_ms in (row.created_at_ms, row.ended_at_ms):
        if not 0 <= at_ms <= TIME_MAX_MS:
            return "not a time"
    return None if 0 <= row.status <= _STATUS_MAX else "not a status"


def usage_values(row: ChargeRow) -> dict[str, Any]:
    """The columns of ``usage`` that the charge itself says."""
    used = row.usage
    return {
        "account_id": row.account_id,
        "hold_id": row.hold_id,
        "state": row.state,
        "created_at_ms": row.created_at_ms,
        "at_ms": row.ended_at_ms,
        "month": _month(row.ended_at_ms // _DAY_MS),
        "route": _storable(row.route),
        "model": _storable(row.model),
        "upstream": _storable(row.upstream),
        "plan": _storable(row.plan),
        "feature": _storable(row.feature),
        "wallet": _storable(row.wallet),
        "card_version": _storable(row.card_version),
        "basis": row.basis.value,
        "input": used.input,
        "cache_read": used.cache_read,
        "cache_write_5m": used.cache_write_5m,
        "cache_write_1h": used.cache_write_1h,
        "cache_write": used.cache_write,
        "output": used.output,
        "reasoning": used.reasoning,
        "held": row.held,
        "charged": row.charged,
        "overrun": row.overrun,
        "status": row.status,
        "end": _storable(row.end),
        "key_id": row.key_id,
        "team_id": row.team_id,
        "user_id": row.user_id,
        "job": _storable(row.job),
        "job_type": _storable(row.job_type),
        "metadata": _dumps(row.metadata) if row.metadata else "{}",
        "shadow": row.shadow,
        "waived": row.waived,
    }


@lru_cache(maxsize=64)
def _month(day: int) -> str:
    """The billing month of a day since 1970: asked for each charge, and nearly always the same."""
    return billing_month(day * _DAY_MS)


def _storable(text: str | None) -> str | None:
    """A text without what PostgreSQL refuses: whatever somebody wrote must not hold up the bill."""
    if text is None or (text.isascii() and "\0" not in text):
        return text
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
