"""An engine on a real server, a ledger beside it and a clock that stands still: what the law tests are written with."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from limits import keys
from limits.client import Client
from limits.engine import Engine
from limits.model import (
    AccountView,
    BudgetDemand,
    BudgetLine,
    Charge,
    ChargeState,
    ConcurrencyDemand,
    Confirm,
    Demand,
    GrantView,
    Hold,
    OutboxEntry,
    Reserve,
    Reserved,
    ReserveReply,
    Scope,
    ScopeKind,
    Stale,
    WalletDemand,
    WalletView,
    WindowDemand,
    split,
)
from tests.support.ledger_model import Ledger

NOW_MS = 2_200_000_000_000  # later than any real clock, so that entry ids follow the test's clock
MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
LEASE_MS = 60_000
ACCOUNT = "acme"
HERE = Scope(ScopeKind.ACCOUNT, ACCOUNT)
TEAM = Scope(ScopeKind.TEAM, "red")
USER = Scope(ScopeKind.USER, "0192f0c4-3f6e-7c1a-9f00-1234567890ab")
KEY = Scope(ScopeKind.KEY, "0192f0c4-3f6e-7c1a-9f00-abcdefabcdef")


def wallet(amount: int, *, name: str = "tokens", minimum: int = 0, abandon: int = 0) -> Demand:
    return Demand((WalletDemand(name, amount, minimum, abandon),))


def budget(
    amount: int, limit: int, *, number: int = 1, scope: Scope = KEY, starts_ms: int = NOW_MS, abandon: int = 0
) -> Demand:
    """A month's budget."""
    ends_ms = starts_ms + 30 * DAY_MS
    return Demand((), (BudgetDemand(number, scope, "tokens", limit, amount, starts_ms, ends_ms, abandon),))


def window(
    amount: int, limit: int, *, name: str = "requests", scope: Scope = KEY, length_ms: int = MINUTE_MS
) -> Demand:
    return Demand(windows=(WindowDemand(scope, name, length_ms, limit, amount),))


def concurrency(limit: int, *, scope: Scope = KEY) -> Demand:
    return Demand(concurrency=(ConcurrencyDemand(scope, limit),))


def together(*parts: Demand) -> Demand:
    """All slots of several demands."""
    return Demand(
        tuple(item for part in parts for item in part.wallets),
        tuple(item for part in parts for item in part.budgets),
        tuple(item for part in parts for item in part.windows),
        tuple(item for part in parts for item in part.concurrency),
    )


@dataclass(slots=True)
class Lab:
    """One account unless a test names another."""

    client: Client
    options: dict[str, Any] = field(default_factory=dict)
    engine: Engine = field(init=False)
    ledger: Ledger = field(default_factory=Ledger)
    now_ms: int = NOW_MS
    made: int = 0

    def __post_init__(self) -> None:
        options = {"reassert_wait_ms": 0, "amnesty_ms": 0, **self.options}
        self.engine = Engine(self.client, partitions=1, clock_ms=self.now_ms, **options)

    def advance(self, by_ms: int) -> None:
        self.now_ms += by_ms
        self.engine.set_clock(still_ms=self.now_ms)

    def nonce(self) -> str:
        self.made += 1
        return f"ticket-{self.made}"

    def grant(self, amount: int, **options: Any) -> int:
        """In SQL only, as yet."""
        return self.ledger.grant(ACCOUNT, options.pop("wallet", "tokens"), amount, **options)

    async def load(self, ticket: str | None = None) -> bool:
        """A snapshot of now, under a ticket or as a push."""
        ticket = ticket or await self.engine.mark_stale(ACCOUNT, ticket=self.nonce())
        return await self.engine.load(self.ledger.snapshot(ACCOUNT, self.now_ms), ticket=ticket)

    async def ready(self, *amounts: int) -> None:
        """An account with these grants, loaded."""
        for amount in amounts:
            self.grant(amount)
        assert await self.load()

    def request(self, demand: Demand, **options: Any) -> Reserve:
        given = {"hold_id": str(uuid.uuid4()), "rev": self.ledger.book(ACCOUNT).rev, "lease_ms": LEASE_MS, **options}
        return Reserve(ACCOUNT, demand=demand, **given)

    async def ask(self, demand: Demand, **options: Any) -> ReserveReply:
        return await self.engine.reserve(self.request(demand, **options), ticket=self.nonce())

    async def reserved(self, demand: Demand, **options: Any) -> Reserved:
        answer = await self.ask(demand, **options)
        assert isinstance(answer, Reserved), answer
        return answer

    async def hold(self, demand: Demand, **options: Any) -> Hold:
        return (await self.reserved(demand, **options)).hold

    def charge(self, hold: Hold, actual: int, state: ChargeState = ChargeState.SETTLED) -> Charge:
        """The actual amount on the hold's wallet and each of its budgets."""
        lines = split(hold.takes, actual) if hold.takes else ()
        budgets = tuple(BudgetLine(item.number, item.starts_at_ms, actual) for item in hold.demand.budgets)
        return Charge(hold.account, hold.hold_id, state, lines, budgets, b"row")

    async def settle(self, hold: Hold, actual: int, **options: Any) -> Charge:
        charge = self.charge(hold, actual)
        await self.engine.settle(hold, charge, **options)
        return charge

    async def commit(self, charge: Charge) -> Confirm:
        """SQL and its confirmation."""
        confirm = self.ledger.commit(charge)
        await self.engine.confirm(confirm)
        return confirm

    async def reap(self, *, older_than_ms: int = 0) -> list[OutboxEntry]:
        """What the reaper does with the outbox."""
        entries = await self.engine.outbox(0, older_than_ms=older_than_ms, count=100)
        for entry in entries:
            await self.commit(entry.charge)
        return entries

    async def told(self, hold: Hold) -> Hold:
        """The hold, its first byte told."""
        hold = replace(hold, first_byte=True)
        await self.engine.renew(0, [hold])
        return hold

    async def view(self, *wallets: str) -> AccountView:
        answer = await self.engine.peek(ACCOUNT, ticket=self.nonce(), wallets=wallets or ("tokens",))
        assert isinstance(answer, AccountView), answer
        return answer

    async def wallet(self, name: str = "tokens") -> WalletView:
        return (await self.view(name)).wallets[0][0]

    async def grants(self, name: str = "tokens") -> dict[int, GrantView]:
        return {grant.number: grant for grant in (await self.view(name)).wallets[0][1]}

    async def is_stale(self) -> bool:
        return isinstance(await self.engine.peek(ACCOUNT, ticket=self.nonce(), wallets=()), Stale)

    def billed(self, hold: Hold) -> int | None:
        """What SQL charged for a hold; None: nothing at all."""
        charge = self.ledger.book(ACCOUNT).charges.get(hold.hold_id)
        return sum(line.amount for line in charge.lines) if charge is not None else None

    async def drift(self) -> dict[int, int]:
        """Grants whose counted differs from SQL's sum at the watermark."""
        view = await self.view()
        sums, _ = self.ledger.counted(ACCOUNT, up_to_seq=view.seq)
        found = {grant.number: grant.counted - sums[grant.number] for grant in view.wallets[0][1] if grant.amount}
        return {number: difference for number, difference in found.items() if difference}

    async def save(self) -> Callable[[], Any]:
        """Remember Redis as it is; the answer rolls it back, with a new replication id as after a restart."""
        names = (keys.account_key(0, ACCOUNT), keys.outbox_key(0), keys.leases_key(0))
        saved = [(name, await self.client.execute("DUMP", name)) for name in names]

        async def restore() -> None:
            await self.client.execute("FLUSHALL")
            for name, value in saved:
                if value is not None:
                    await self.client.execute("RESTORE", name, 0, value)
            await self.promote()

        return restore

    async def promote(self) -> None:
        """A new incarnation over the same data, as after a restart or a failover."""
        await self.client.execute("REPLICAOF", "127.0.0.1", "1")
        await self.client.execute("REPLICAOF", "NO", "ONE")
