"""What a reserve, a settle and a confirm cost the server, and what an account and an open hold cost in memory.

    python -m bench.engine [URL] [--rounds N]

Without a URL it starts Debian's Redis 7.0 and the embedded Valkey, one after the other, each on a unix socket.
"Full" and "small" are the accounts of CONTRACT §7: 3 wallets of 6 grants, 4 scopes each with requests and tokens per
minute, a month's and a day's budget, concurrency on 2 of them; against 1 wallet, 1 grant, 1 scope. Times are medians of
``INFO commandstats``, the server's own, over rounds of 64 calls in flight; memory is ``MEMORY USAGE`` of every key.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import uuid
from dataclasses import dataclass

from limits import keys
from limits.client import Client, connect
from limits.engine import Engine
from limits.model import (
    BudgetDemand,
    BudgetLine,
    BudgetState,
    Charge,
    ChargeState,
    ConcurrencyDemand,
    Confirm,
    Delta,
    Demand,
    Grant,
    Hold,
    Reserve,
    Reserved,
    Scope,
    ScopeKind,
    Settled,
    Snapshot,
    Stale,
    WalletDemand,
    WalletState,
    WindowDemand,
    split,
)
from tests.support import servers

IN_FLIGHT = 64
AMOUNT = 4_000
MINUTE_MS, DAY_MS, MONTH_MS = 60_000, 86_400_000, 2_592_000_000
FIRST = {"reserve": 45.0, "settle": 35.0, "account": 3_072, "hold": 500}


@dataclass(frozen=True, slots=True)
class Shape:
    """An account to measure: its snapshot and the demand of each call."""

    name: str
    snapshot: Snapshot
    demand: Demand


def shape(name: str, *, wallets: int, grants: int, scopes: int, counted: int, now_ms: int) -> Shape:
    account = str(uuid.UUID(int=(wallets << 64) + grants))
    names = ("tokens", "credits", "usd")[:wallets]
    states = tuple(
        WalletState(
            wallet,
            tuple(
                Grant(place * grants + index, 10**14, index, now_ms - DAY_MS, now_ms + (index + 1) * MONTH_MS)
                for index in range(grants)
            ),
        )
        for place, wallet in enumerate(names)
    )
    kinds = (ScopeKind.ACCOUNT, ScopeKind.TEAM, ScopeKind.USER, ScopeKind.KEY)[-scopes:]
    bearers = [Scope(kind, str(uuid.UUID(int=index + 1))) for index, kind in enumerate(kinds)]
    day, month = now_ms - now_ms % DAY_MS, now_ms - now_ms % MONTH_MS
    budgets, windows = [], []
    for index, scope in enumerate(bearers):
        for number, starts, length in ((2 * index, month, MONTH_MS), (2 * index + 1, day, DAY_MS)):
            budgets.append(BudgetDemand(number, scope, "tokens", 10**14, AMOUNT, starts, starts + length, 100))
        windows.append(WindowDemand(scope, "requests", MINUTE_MS, 10**9, 1))
        windows.append(WindowDemand(scope, "tokens", MINUTE_MS, 10**12, AMOUNT))
    demand = Demand(
        wallets=tuple(WalletDemand(wallet, AMOUNT + place, 0, 100) for place, wallet in enumerate(names)),
        budgets=tuple(budgets),
        windows=tuple(windows),
        concurrency=tuple(ConcurrencyDemand(scope, 10**6) for scope in bearers[:counted]),
    )
    states_of_budgets = tuple(BudgetState(budget.number, budget.starts_at_ms, 5) for budget in budgets)
    return Shape(name, Snapshot(account, 1, 1, 0, now_ms, states, states_of_budgets), demand)


def charge_of(hold: Hold) -> Charge:
    lines = tuple(
        line
        for wallet in hold.demand.wallets
        for line in split([take for take in hold.takes if take.wallet == wallet.wallet], AMOUNT // 2)
    )
    budgets = tuple(BudgetLine(item.number, item.starts_at_ms, AMOUNT // 2) for item in hold.demand.budgets)
    return Charge(hold.account, hold.hold_id, ChargeState.SETTLED, lines, budgets, b"x" * 300)


class Meter:
    """One server under measurement."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.engine = Engine(client, reassert_wait_ms=0)
        self.seq = 1

    async def us_per_script(self) -> float:
        text = (await self.client.execute("INFO", "commandstats")).decode()
        line = next(line for line in text.splitlines() if line.startswith("cmdstat_evalsha:"))
        await self.client.execute("CONFIG", "RESETSTAT")
        return float(line.partition("usec_per_call=")[2].partition(",")[0])

    async def reserve(self, target: Shape, count: int, note: bytes = b"") -> list[Hold]:
        requests = [
            Reserve(target.snapshot.account, str(uuid.uuid4()), 1, target.demand, MINUTE_MS, warn_at=(800,), note=note)
            for _ in range(count)
        ]
        answers = await asyncio.gather(*(self.engine.reserve(request, ticket="t") for request in requests))
        return [answer.hold for answer in answers if isinstance(answer, Reserved)]

    async def settle(self, holds: list[Hold]) -> list[Charge]:
        charges = [charge_of(hold) for hold in holds]
        actuals = tuple(AMOUNT // 2 if window.name == "tokens" else None for window in holds[0].demand.windows)
        ended = await asyncio.gather(
            *(
                self.engine.settle(hold, charge, window_actuals=actuals)
                for hold, charge in zip(holds, charges, strict=True)
            )
        )
        assert all(isinstance(item, Settled) and item.known for item in ended)
        return charges

    async def confirm(self, charges: list[Charge]) -> None:
        waits = []
        for charge in charges:
            self.seq += 1
            delta = Delta(self.seq, charge.lines, charge.budgets)
            waits.append(self.engine.confirm(Confirm(charge.account, charge.hold_id, charge.state, (delta,))))
        await asyncio.gather(*waits)

    async def load(self, target: Shape) -> None:
        answer = await self.engine.reserve(
            Reserve(target.snapshot.account, str(uuid.uuid4()), 1, target.demand, MINUTE_MS), ticket="t"
        )
        assert isinstance(answer, Stale)
        assert await self.engine.load(target.snapshot, ticket=answer.ticket)
        self.seq = target.snapshot.seq

    async def times(self, target: Shape, rounds: int) -> dict[str, float]:
        """Medians, µs."""
        found: dict[str, list[float]] = {"reserve": [], "settle": [], "confirm": []}
        await self.load(target)
        for turn in range(rounds + 3):
            await self.client.execute("CONFIG", "RESETSTAT")
            holds = await self.reserve(target, IN_FLIGHT)
            spent = [await self.us_per_script()]
            charges = await self.settle(holds)
            spent.append(await self.us_per_script())
            await self.confirm(charges)
            spent.append(await self.us_per_script())
            if turn >= 3:  # the first rounds load scripts and grow tables
                for kind, value in zip(found, spent, strict=True):
                    found[kind].append(value)
        return {kind: statistics.median(values) for kind, values in found.items()} | {
            f"{kind}-min": min(values) for kind, values in found.items()
        }

    async def usage(self, target: Shape) -> int:
        """Bytes of the account and its partition's index."""
        partition = self.engine.partition(target.snapshot.account)
        total = 0
        for key in (keys.account_key(partition, target.snapshot.account), keys.leases_key(partition)):
            total += await self.client.execute("MEMORY", "USAGE", key, "SAMPLES", 0)
        return total

    async def memory(self, target: Shape, note: bytes) -> tuple[int, int]:
        """(account with its partition's index, one open hold more), bytes."""
        before = await self.usage(target)
        many = 1_000
        holds: list[Hold] = []
        for _ in range(many // IN_FLIGHT + 1):
            holds += await self.reserve(target, IN_FLIGHT, note)
        after = await self.usage(target)
        return before, (after - before) // len(holds)


async def measure(url: str, rounds: int) -> dict[str, dict[str, float]]:
    """Figures per shape."""
    client = connect(url, command_timeout_s=5)
    table: dict[str, dict[str, float]] = {}
    try:
        for name, sizes in (
            ("full", {"wallets": 3, "grants": 6, "scopes": 4, "counted": 2}),
            ("small", {"wallets": 1, "grants": 1, "scopes": 1, "counted": 0}),
        ):
            await client.execute("FLUSHALL")
            seconds, _ = await client.execute("TIME")
            target = shape(name, **sizes, now_ms=int(seconds) * 1000)
            meter = Meter(client)
            table[name] = await meter.times(target, rounds)
            account, hold = await meter.memory(target, b"")
            table[name] |= {"account": account, "hold": hold}
    finally:
        await client.close()
    return table


def show(name: str, table: dict[str, dict[str, float]]) -> None:
    for row, figures in table.items():
        cells = "  ".join(f"{kind} {value:8.1f}" for kind, value in figures.items())
        print(f"{name:8} {row:6} {cells}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    print("µs of server time per script; bytes")
    if options.url:
        show("server", asyncio.run(measure(options.url, options.rounds)))
        return
    for name, start in (("redis7", servers.redis7), ("valkey", servers.valkey)):
        with start() as server:
            show(name, asyncio.run(measure(server.url, options.rounds)))
    print("first:   " + "  ".join(f"{kind} <= {limit}" for kind, limit in FIRST.items()))


if __name__ == "__main__":
    main()
