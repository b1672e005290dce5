"""The engine's vocabulary: what goes into a script and what comes out.

Rules
1. Amounts are integers in their meter's smallest step, 0 <= amount <= AMOUNT_MAX; times are Unix milliseconds
   on the Redis server's clock; 0 means "never" for an expiry and "none" for a deadline or a turn.
2. Grants and budgets are known by small numbers, dense per account and given by the caller's database
   (fit an unsigned 32-bit integer). An older grant has a smaller number.
3. Everything here is frozen: a reply describes what was, it is never edited.

Not here: HTTP, models, plans, SQL, and how any of this is laid out in Redis (``keys`` and ``lua/`` know that).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from enum import StrEnum
from typing import Protocol

from limits.values import dataclass

AMOUNT_MAX = 2**53 - 1


class ScopeKind(StrEnum):
    """Whose limit it is, widest first."""

    ACCOUNT = "account"
    TEAM = "team"
    USER = "user"
    KEY = "key"


@dataclass(frozen=True, slots=True)
class Scope:
    """One bearer of limits and budgets inside an account."""

    kind: ScopeKind
    id: str


# --- what the database says (load) -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grant:
    """An amount put into a wallet. ``counted`` is the database's sum of charges on it, up to the snapshot's seq."""

    number: int
    amount: int
    priority: int  # smaller burns first
    starts_at_ms: int
    expires_at_ms: int
    counted: int = 0


@dataclass(frozen=True, slots=True)
class WalletState:
    wallet: str
    grants: tuple[Grant, ...]


@dataclass(frozen=True, slots=True)
class BudgetState:
    """A budget's use in one period, up to the snapshot's seq."""

    number: int
    starts_at_ms: int
    counted: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that ``load`` puts into Redis for an account: one consistent read of the database."""

    account: str
    seq: int  # last seq that the sums include
    rev: int
    turn_at_ms: int  # when the current period needs its successor; 0 = never
    period_at_ms: int  # start of the current period: warnings are once per period
    wallets: tuple[WalletState, ...]
    budgets: tuple[BudgetState, ...]


# --- what a call asks for (reserve) ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WalletDemand:
    """``abandon`` is what a lapse of the hold charges provisionally; ``minimum`` what must be available:
    the reserve is refused when available < max(amount, minimum)."""

    wallet: str
    amount: int
    minimum: int = 0
    abandon: int = 0


@dataclass(frozen=True, slots=True)
class BudgetDemand:
    number: int
    scope: Scope
    meter: str
    limit: int
    amount: int
    starts_at_ms: int
    ends_at_ms: int
    abandon: int = 0


@dataclass(frozen=True, slots=True)
class WindowDemand:
    """A fixed window aligned to its first use: ``name`` is ``requests``, ``tokens`` or ``uses``."""

    scope: Scope
    name: str
    length_ms: int
    limit: int
    amount: int


@dataclass(frozen=True, slots=True)
class ConcurrencyDemand:
    """At most ``limit`` live holds in this scope, this one included."""

    scope: Scope
    limit: int


@dataclass(frozen=True, slots=True)
class Demand:
    """The vector of one call; all slots are taken or none."""

    wallets: tuple[WalletDemand, ...] = ()
    budgets: tuple[BudgetDemand, ...] = ()
    windows: tuple[WindowDemand, ...] = ()
    concurrency: tuple[ConcurrencyDemand, ...] = ()
    packed: object = field(default=None, init=False, compare=False, repr=False)  # ``codec``'s memory of its own work

    @property
    def form(self) -> Demand:
        """The same slots, for whoever does not ask for their amounts (which may be blanks there, see ``forms``)."""
        return self


@dataclass(frozen=True, slots=True)
class Reserve:
    account: str
    hold_id: str  # UUID text
    rev: int
    demand: Demand
    lease_ms: int
    deadline_ms: int = 0
    warn_at: tuple[int, ...] = ()  # permille of the wallet's capacity, ascending
    note: bytes = b""  # opaque; travels to the outbox if the hold lapses (the caller's usage row)
    idempotency: bytes = b""  # reserved argument slot
    dry: bool = False  # only say what would be answered: nothing is taken, no warning is given


@dataclass(frozen=True, slots=True)
class Take:
    """What a hold took from one grant."""

    wallet: str
    number: int
    amount: int


@dataclass(frozen=True, slots=True)
class WalletView:
    """A wallet after a reserve, extend or peek: available = sum over open grants of amount - posted - held."""

    wallet: str
    available: int
    capacity: int  # sum of the open grants' amounts
    resets_at_ms: int  # earliest expiry among open grants, 0 = never


@dataclass(frozen=True, slots=True)
class Hold:
    """An open hold as its worker knows it: enough to renew it into an empty Redis, to extend it and to settle it."""

    account: str
    hold_id: str
    version: int  # grows with every extend; an older renew cannot shrink a newer hold
    created_at_ms: int
    lease_ms: int
    takes: tuple[Take, ...]
    demand: Demand  # as reserved and extended: budgets, windows and concurrency scopes with their starts
    window_starts_ms: tuple[int, ...]  # of demand.windows, in order
    note: bytes
    first_byte: bool = False


# --- replies -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reserved:
    hold: Hold
    wallets: tuple[WalletView, ...]
    crossed: tuple[tuple[str, int], ...]  # (wallet, permille) thresholds crossed for the first time in this period
    windows: tuple[tuple[int, int], ...]  # (remaining, resets_at_ms) of demand.windows, in order
    server_ms: int
    record: str  # the partition's record: (replid, creation time)


class Verdict(StrEnum):
    """Why a slot said no."""

    TOO_LARGE = "too_large"  # demand > capacity: this call can never fit
    LASTING = "lasting"  # demand > capacity - posted: waiting a minute does not help
    HELD = "held"  # enough is left, but other calls hold it
    RATE = "rate"  # a window is full for now
    CONCURRENCY = "concurrency"


@dataclass(frozen=True, slots=True)
class Refused:
    """The deciding slot: a lasting reason beats a passing one, then the narrowest scope."""

    verdict: Verdict
    slot: str  # wallet | budget | requests | tokens | uses | concurrency
    scope: Scope | None
    meter: str  # wallet or budget meter; "" otherwise
    limit: int
    used: int  # posted
    held: int
    needed: int
    available: int
    resets_at_ms: int
    server_ms: int
    crossed: tuple[tuple[str, int], ...] = ()  # thresholds first seen crossed at this refusal, as in Reserved


@dataclass(frozen=True, slots=True)
class Stale:
    """The account is absent or of another incarnation: load a snapshot under this ticket."""

    ticket: str


@dataclass(frozen=True, slots=True)
class Turn:
    """The account's period is over: the database must decide what follows."""

    at_ms: int
    server_ms: int


@dataclass(frozen=True, slots=True)
class Reauth:
    """The caller was cached at another ``rev``."""

    rev: int


@dataclass(frozen=True, slots=True)
class Late:
    """The deadline had passed on the server's clock: nothing was done."""

    server_ms: int


@dataclass(frozen=True, slots=True)
class Warming:
    """The partition's record is younger than the re-assertion wait: workers are still re-asserting their holds."""

    until_ms: int
    server_ms: int
    record: str


@dataclass(frozen=True, slots=True)
class Overloaded:
    """The partition's outbox is over its cap or too old."""

    entries: int


@dataclass(frozen=True, slots=True)
class Gone:
    """No such open hold."""


ReserveReply = Reserved | Refused | Stale | Turn | Reauth | Late | Warming | Overloaded
ExtendReply = Reserved | Refused | Stale | Gone | Warming


# --- how a hold ends ---------------------------------------------------------------------------------------------


class ChargeState(StrEnum):
    LAPSED = "lapsed"
    SETTLED = "settled"


class OfGrant(Protocol):
    """What something puts on one grant: a ``Take``, or the caller's own line of a bill."""

    @property
    def wallet(self) -> str: ...
    @property
    def number(self) -> int: ...
    @property
    def amount(self) -> int: ...


class OfBudget(Protocol):
    """What something puts on one budget's period: a ``BudgetLine``, or the caller's own."""

    @property
    def number(self) -> int: ...
    @property
    def starts_at_ms(self) -> int: ...
    @property
    def amount(self) -> int: ...


class OfChange(Protocol):
    """What a change of a hold's charge puts on them: a ``Delta``, or the caller's own."""

    @property
    def seq(self) -> int: ...
    @property
    def lines(self) -> tuple[OfGrant, ...]: ...
    @property
    def budgets(self) -> tuple[OfBudget, ...]: ...


@dataclass(frozen=True, slots=True)
class BudgetLine:
    number: int
    starts_at_ms: int
    amount: int


@dataclass(frozen=True, slots=True)
class Charge:
    """The whole charge of one hold: what it costs each grant and each budget period, and the caller's opaque row.

    ``window_actuals`` holds, per window of the hold, the amount that the call really used (None = as reserved)."""

    account: str
    hold_id: str
    state: ChargeState
    lines: tuple[OfGrant, ...]
    budgets: tuple[OfBudget, ...]
    payload: bytes  # opaque to the engine; whoever finds it in the outbox can commit it


@dataclass(frozen=True, slots=True)
class Settled:
    record: str  # the partition's, "" when Redis knew the hold: then it has forgotten nothing
    server_ms: int
    known: bool  # Redis knew the hold


@dataclass(frozen=True, slots=True)
class Delta:
    """One change of a hold's charge, as the database ordered it."""

    seq: int
    lines: tuple[OfGrant, ...]  # amounts may be negative
    budgets: tuple[OfBudget, ...]


@dataclass(frozen=True, slots=True)
class Confirm:
    account: str
    hold_id: str
    state: ChargeState
    deltas: tuple[OfChange, ...]


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """A charge on its way to the database, as found in a partition's outbox."""

    entry_id: str
    charge: Charge
    age_ms: int


@dataclass(frozen=True, slots=True)
class PartitionState:
    """The answer to a renew or a beat."""

    record: str
    server_ms: int
    outbox_entries: int


@dataclass(frozen=True, slots=True)
class OpenHold:
    """A hold as Redis keeps it: what it took of which grants, by their numbers."""

    hold_id: str
    created_at_ms: int
    first_byte: bool
    takes: tuple[tuple[int, int], ...]  # (grant number, amount)


@dataclass(frozen=True, slots=True)
class GrantView:
    number: int
    amount: int
    counted: int
    pending: int
    held: int
    expires_at_ms: int
    starts_at_ms: int
    priority: int


@dataclass(frozen=True, slots=True)
class AccountView:
    """``peek``: what Redis holds of an account, or Stale when it must be loaded first."""

    rev: int
    seq: int  # watermark
    turn_at_ms: int
    wallets: tuple[tuple[WalletView, tuple[GrantView, ...]], ...]
    budgets: tuple[tuple[int, int, int, int, int], ...]  # (number, starts_at_ms, counted, pending, held)
    holds_open: int
    server_ms: int


def split(takes: Sequence[Take], amount: int) -> tuple[Take, ...]:
    """Spread a charge over what the hold took from one wallet, in its order; what exceeds it falls on the last take.

    ``takes`` must be of one wallet and not empty unless ``amount`` is 0. Returns only lines with amount > 0.
    """
    assert takes or not amount, "a charge needs a grant to fall on"
    lines: list[Take] = []
    left = amount
    for take in takes[:-1]:
        part = min(left, take.amount)
        if part:
            lines.append(Take(take.wallet, take.number, part))
        left -= part
    if left:
        lines.append(Take(takes[-1].wallet, takes[-1].number, left))
    return tuple(lines)
