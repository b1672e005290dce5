"""What a batch of charges becomes, worked out on what the database holds of their accounts. No I/O.

The writer reads the ``Batch``, books each charge on it, and writes what it then says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from gateway.domain.ledger import Entry, charge_entries
from gateway.domain.units import AMOUNT_MAX
from gateway.store.usage_rows import Booked, Known, line_text, row_of, row_of_reversal, storable_text

_ID_MAX: Final = 36
_STATUS_MAX: Final = 999
TIME_MAX_MS: Final = 253_402_300_799_999  # the last one of the year 9999


@dataclass(slots=True)
class Grant:
    """A grant's row, with what the batch charges to it and gives back."""

    wallet: str
    amount: int
    used: int
    starts_at_ms: int
    expires_at_ms: int
    source: str
    charged: int = 0
    given_back: int = 0
    charged_at_ms: int = 0  # end of the last call that the batch charged to it

    @property
    def added(self) -> int:
        return self.charged - self.given_back


@dataclass(slots=True)
class Account:
    """An account's row, locked, with what the batch adds to it."""

    id: str
    seq: int
    grants: dict[int, Grant] = field(default_factory=dict)
    budgets: set[int] = field(default_factory=set)
    seq_before: int = 0
    budget_uses: dict[tuple[int, int], int] = field(default_factory=dict)
    left_before: dict[str, int] = field(default_factory=dict)  # of wallets that can be low, before the batch

    def __post_init__(self) -> None:
        self.seq_before = self.seq

    def left(self, wallet: str, at_ms: int) -> int:
        """What the wallet's open grants have left."""
        left = 0
        for grant in self.grants.values():
            if grant.wallet == wallet and grant.starts_at_ms <= at_ms and not 0 < grant.expires_at_ms <= at_ms:
                left += grant.amount - grant.used - grant.charged + grant.given_back
        return left

    def granted(self, wallet: str, at_ms: int) -> int:
        found = 0
        for grant in self.grants.values():
            if grant.wallet == wallet and grant.starts_at_ms <= at_ms and not 0 < grant.expires_at_ms <= at_ms:
                found += grant.amount
        return found

    def posted(self) -> list[Entry]:
        """What the batch moved between the grants' books and those around them."""
        lines = [
            (grant.wallet, number, amount)
            for number, grant in self.grants.items()
            for amount in (grant.charged, -grant.given_back)
        ]
        return charge_entries(lines, seq_first=self.seq_before + 1, seq_last=self.seq)


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
        self.usage: list[tuple[Any, ...]] = []
        self.charged: dict[tuple[str, str, str, str], int] = {}  # wallet, plan, grant's source, basis → steps
        self.rejects: list[dict[str, Any]] = []

    def knows(self, rows: Iterable[Sequence[Any]]) -> None:
        """Rows of ``usage`` of the batch's holds."""
        for row in rows:
            known = Known.of(row)
            self.known.setdefault(known.values()["hold_id"], []).append(known)

    def has_grants(self, rows: Iterable[ChargeRow]) -> bool:
        """Whether all grants that these charges name, now or before, are here."""
        named = {(row.account_id, line.number) for row in rows for line in row.lines}
        for rows_of_hold in self.known.values():
            named.update((each.account_id, line.number) for each in rows_of_hold for line in each.change.lines)
        return all(
            number in self.accounts[account_id].grants for account_id, number in named if account_id in self.accounts
        )

    def book(self, row: ChargeRow, now_ms: int) -> list[Known]:
        """Take the steps that this charge asks for. Answers all rows of its hold, with those that the batch will still
        add; none, if it was rejected."""
        known = self.known.setdefault(row.hold_id, [])
        todo = steps([each.state for each in known] if known else (), row.state)
        why = _unbookable(self, row, known) if todo else None
        if why is not None:
            self._reject(row, why, now_ms)
            return []
        for step in todo:
            account = self.accounts[row.account_id]
            if step == REVERSED:
                lapse = next(each for each in known if each.state == LAPSED)
                known.append(self._reverse(account, lapse, row, now_ms))
            else:
                known.append(self._charge(account, row, now_ms))
        return known

    def _charge(self, account: Account, row: ChargeRow, now_ms: int) -> Known:
        change = ChargeChange(account.seq + 1, row.lines, row.budgets)
        booked = self._post(account, change, (row.wallet, row.plan, str(row.basis), row.ended_at_ms), now_ms)
        values = row_of(row, booked)
        self.usage.append(values)
        return Known(row.account_id, row.state, change, values)

    def _reverse(self, account: Account, lapse: Known, row: ChargeRow, now_ms: int) -> Known:
        taken = lapse.change
        lines = tuple(GrantLine(line.wallet, line.number, -line.amount) for line in taken.lines)
        budgets = tuple(BudgetLine(line.number, line.starts_at_ms, -line.amount) for line in taken.budgets)
        change = ChargeChange(account.seq + 1, lines, budgets)
        of = lapse.values()
        booked = self._post(account, change, (of["wallet"], of["plan"], of["basis"], row.ended_at_ms), now_ms)
        values = row_of_reversal(lapse, booked, row.ended_at_ms)
        self.usage.append(values)
        return Known(row.account_id, REVERSED, change, values)

    def _post(self, account: Account, change: ChargeChange, of: tuple[str, str, str, int], now_ms: int) -> Booked:
        """Give the change its seq and move the balances. ``of``: its wallet, plan, basis, and when its call ended."""
        wallet, plan, basis, at_ms = of
        account.seq = change.seq
        if wallet in self._marks and wallet not in account.left_before:
            account.left_before[wallet] = account.left(wallet, now_ms)
        lines = []
        for line in change.lines:
            grant, amount = account.grants[line.number], line.amount
            if amount < 0:
                grant.given_back -= amount
            else:
                grant.charged += amount
            if grant.charged_at_ms < at_ms:
                grant.charged_at_ms = at_ms
            labels = (grant.wallet, plan, grant.source, basis)
            self.charged[labels] = self.charged.get(labels, 0) + amount
            left = grant.amount - grant.used - grant.charged + grant.given_back
            lines.append(line_text(line.number, amount, left, None if grant.wallet == wallet else grant.wallet))
        budgets = []
        for item in change.budgets:
            number, starts_at_ms, amount = item.number, item.starts_at_ms, item.amount
            period = (number, starts_at_ms)
            account.budget_uses[period] = account.budget_uses.get(period, 0) + amount
            budgets.append(f"[{number},{starts_at_ms},{amount}]")
        left = account.left(wallet, at_ms)
        return change.seq, now_ms, left, f"[{','.join(lines)}]", f"[{','.join(budgets)}]"

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
        known = self.known.get(charge.hold_id, ())
        if not known:
            self._keep_aside(charge, now_ms)
        return answer_of(charge, known)

    def _keep_aside(self, charge: Unreadable, now_ms: int) -> None:
        self.rejects.append(
            {
                "hold_id": storable_text(charge.hold_id),
                "account_id": storable_text(charge.account_id),
                "state": storable_text(charge.state),
                "why": storable_text(charge.why),
                "row": charge.row.hex(),
                "created_at_ms": now_ms,
            }
        )


def answer_of(charge: ChargeRow | Unreadable, known: Sequence[Known]) -> Committed:
    """What is known of a charge's hold, when the whole batch is booked; of a rejected one nothing."""
    if len(known) == 1:
        return Committed(charge.account_id, charge.hold_id, known[0].state, (known[0].change,))
    if not known:
        return Committed(charge.account_id, charge.hold_id, charge.state, ())
    state = SETTLED if any(each.state == SETTLED for each in known) else LAPSED
    return Committed(charge.account_id, charge.hold_id, state, tuple(each.change for each in known))


def _unbookable(batch: Batch, row: ChargeRow, known: Sequence[Known]) -> str | None:
    """Why this charge has no place in the database; None when it has."""
    account = batch.accounts.get(row.account_id)
    if account is None:
        return "no such account"
    if row.state not in (LAPSED, SETTLED):
        return "no such state"
    for each in known:
        if each.account_id != row.account_id:
            return "the hold is another account's"
    if not (_is_id(row.hold_id) and _are_ids(row.key_id, row.team_id, row.user_id)):
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
    if not (0 <= row.created_at_ms <= TIME_MAX_MS and 0 <= row.ended_at_ms <= TIME_MAX_MS):
        return "not a time"
    return None if 0 <= row.status <= _STATUS_MAX else "not a status"


def _is_id(text: str) -> bool:
    return len(text) <= _ID_MAX and text.isascii() and "\0" not in text


@lru_cache(maxsize=16_384)
def _are_ids(*texts: str | None) -> bool:
    """Of ids that many charges share; None is none."""
    return all(text is None or _is_id(text) for text in texts)
