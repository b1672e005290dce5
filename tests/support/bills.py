"""What was charged, read from SQL and from Redis, beside what the models' journal says was served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from limits.model import AccountView, GrantView
from tests.support.gateways import Local

STEPS = 1000  # of the tests' meter: tokens with 3 decimals


def tokens_served(entry: dict[str, Any]) -> int:
    """What a provider would bill for a journal's entry, in model tokens."""
    served = entry["served"]
    kinds = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "cache_write", "output")
    return sum(int(served.get(kind, 0)) for kind in kinds)


@dataclass(frozen=True, slots=True)
class Balance:
    """An account's wallet as Redis has it; amounts in steps."""

    granted: int
    counted: int
    pending: int
    held: int
    holds_open: int

    @property
    def posted(self) -> int:
        return self.counted + self.pending


async def balance(gateway: Local, account_id: str, wallet: str = "tokens") -> Balance:
    """Redis' side of an account."""
    engine = gateway.worker.gateway.quota._engine
    view = await engine.peek(account_id, ticket="test", wallets=(wallet,))
    assert isinstance(view, AccountView), "the account is loaded"
    grants: list[GrantView] = [grant for _, states in view.wallets for grant in states]
    return Balance(
        granted=sum(grant.amount for grant in grants),
        counted=sum(grant.counted for grant in grants),
        pending=sum(grant.pending for grant in grants),
        held=sum(grant.held for grant in grants),
        holds_open=view.holds_open,
    )


async def usage_rows(gateway: Local, account_id: str) -> list[dict[str, Any]]:
    """The account's usage rows in SQL, in the order of their seq."""
    async with gateway.worker.store.database.read() as connection:
        found = await connection.execute(
            text("SELECT * FROM usage WHERE account_id = :account ORDER BY seq"), {"account": account_id}
        )
        return [dict(row._mapping) for row in found]


async def used_in_sql(gateway: Local, account_id: str, wallet: str = "tokens") -> int:
    """Sum of the grants' used amounts in SQL, in steps."""
    async with gateway.worker.store.database.read() as connection:
        found = await connection.execute(
            text("SELECT COALESCE(SUM(used), 0) FROM grants WHERE account_id = :account AND wallet = :wallet"),
            {"account": account_id, "wallet": wallet},
        )
        return int(found.scalar_one())


async def assert_settled_to(gateway: Local, account_id: str, steps: int, wallet: str = "tokens") -> None:
    """At rest: no hold, nothing pending, and Redis = SQL = ``steps``."""
    await gateway.settled()
    found = await balance(gateway, account_id, wallet)
    assert (found.held, found.holds_open, found.pending) == (0, 0, 0)
    assert found.counted == steps
    assert await used_in_sql(gateway, account_id, wallet) == steps
