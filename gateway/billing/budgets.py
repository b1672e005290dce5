"""Budgets: ceilings of a team, a user or a key."""

from __future__ import annotations

from gateway.billing.accounts import MemberService
from gateway.billing.desk import Desk, amount, shown
from gateway.domain.accounts import Budget
from gateway.domain.periods import bounds, parse_period
from gateway.domain.units import Meter, UnitError
from gateway.errors import NotFound, RequestError

SCOPES = ("team", "user", "key")


class BudgetService:
    """Ceilings set, listed and lifted."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def set(
        self, scope: str, ref: str, *, meter: str, text: str, period: str, account_ref: str | None = None
    ) -> tuple[Meter, Budget]:
        """The ceiling of a team, user or key; the one that was there in this meter is replaced.

        ``ref`` is our id; with ``account_ref`` also the app's own name of the team or user. Raises NotFound,
        AccountNotFound, RequestError (scope, meter, amount, period), StoreUnavailable.
        """
        desk = self._desk
        if scope not in SCOPES:
            raise RequestError(f"A budget is of a team, a user or a key, not of {shown(scope)}.", param="scope")
        unit = desk.meter(meter)
        steps = amount(unit, text, param="amount")
        try:
            length = parse_period(period)
        except UnitError as error:
            raise RequestError(f"period: {error}", param="period") from error
        try:
            account_id, budget = await desk.store.members.set_budget(
                scope,
                await self._scope_id(scope, ref, account_ref),
                meter=unit.name,
                amount=steps,
                period=length,
                now_ms=desk.now_ms(),
                actor=desk.actor,
            )
        except NotFound as error:
            raise NotFound(f"There is no {scope} {shown(ref)} in any account.", param="id") from error
        await desk.deliver(account_id)
        return unit, budget

    async def list(self, account_ref: str) -> tuple[tuple[Budget, int], ...]:
        """Each with what is used of it in its running period, in steps. Raises AccountNotFound, StoreUnavailable."""
        desk = self._desk
        account = await desk.account(account_ref)
        snapshot = await desk.store.state.snapshot(account.id)
        uses = {(use.number, use.starts_at_ms): use.used for use in snapshot.budgets}
        now_ms = desk.now_ms()

        def used(budget: Budget) -> int:
            starts_at_ms, _ = bounds(budget.period, budget.anchor_at_ms, now_ms, budget.time_zone)
            return uses.get((budget.number, starts_at_ms), 0)

        return tuple((budget, used(budget)) for budget in await desk.store.members.budgets(account.id))

    async def remove(self, account_ref: str, number: int) -> None:
        """Raises AccountNotFound, NotFound, StoreUnavailable."""
        desk = self._desk
        account = await desk.account(account_ref)
        try:
            await desk.store.members.remove_budget(account.id, number, now_ms=desk.now_ms(), actor=desk.actor)
        except NotFound as error:
            raise NotFound(f"There is no budget {number} in this account.", param="number") from error
        await desk.deliver(account.id)

    async def _scope_id(self, scope: str, ref: str, account_ref: str | None) -> str:
        if account_ref is None or scope == "key":
            return ref
        account = await self._desk.account(account_ref)
        members = MemberService(self._desk)
        found = await (members.team(account.id, ref) if scope == "team" else members.user(account.id, ref))
        return found.id
