"""Quota for one call: admit it on its bound, end it on its outcome.

Rules
1. ``admit`` answers with an open hold or raises; the upstream sees a call only in between.
2. Redis away, or too slow to answer: the call is refused (fail closed), and what a lost reply may have taken is
   released once the reserve's own deadline has passed.
3. ``end`` never raises for a dependency that is away: the charge is kept until SQL and Redis have it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from uuid_utils import uuid7

from gateway.domain import turns
from gateway.domain.accounts import Account, Caller
from gateway.domain.charges import encode
from gateway.domain.plans import Catalog, Plan
from gateway.errors import Overloaded, QuotaUnavailable, Refusal, StoreUnavailable, SubscriptionInactive
from gateway.metrics import Metrics
from gateway.quota.admission import Admission, Bill, Facts
from gateway.quota.clock import ServerClock
from gateway.quota.holds import Holds
from gateway.quota.notes import Notes
from gateway.quota.notices import Notices
from gateway.quota.refusals import Situation, objection, refusal
from gateway.quota.room import Room
from gateway.quota.scribe import Scribe
from gateway.quota.slots import Slot, probes, slots_of
from gateway.quota.translate import Shapes, Work, clamp_output, cost_in, depends_on_output, refused_at
from gateway.quota.turn import Turner, nonce
from gateway.quota.versions import Versions
from limits import model as engine_model
from limits.engine import Engine
from limits.errors import EngineUnavailable
from limits.values import dataclass

log = logging.getLogger(__name__)

ATTEMPTS_MAX = 16  # stale, turn, reauth, clamps: each at most a few times before we give up
RESERVE_DEADLINE_MS = 1_000
RELEASE_TRIES = 20
RELEASE_RETRY_S = 0.5


async def _nobody(_: int) -> None:
    """Nothing is kept."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One call that wants in. ``refresh`` asks the database who calls, after the cached answer proved old."""

    caller: Caller
    catalog: Catalog
    work: Work
    model: str | None  # as the caller named it; None: work without one
    facts: Facts
    choices: int
    output_floor: int  # a clamp must stay above it (thinking budget)
    lease_ms: int
    refresh: Callable[[Caller], Awaitable[Caller]]
    dry: bool = False  # only what would be decided: nothing is taken
    hold_id: str = ""  # "": a new one
    counted: Callable[[], Awaitable[Work]] | None = None  # the work with its input counted, where it is bounded roughly


@dataclass(slots=True)
class _Progress:
    """How far an ask has come between its attempts."""

    caller: Caller
    work: Work
    clamped_to: int | None = None
    is_fresh: bool = False  # the database was asked who calls
    shadowed: Refusal | None = None
    owes: bool = False  # what shadow lets pass looks at its wallet, but one that owes refuses even that

    async def refresh(self, ask: Ask) -> None:
        self.caller = await ask.refresh(self.caller)
        self.is_fresh, self.shadowed = True, None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What ``admit`` would answer, for whom, and how every limit that the call falls under stands."""

    decided: Admission | Refusal
    caller: Caller
    plan: Plan
    work: Work
    slots: tuple[Slot, ...]


class Quota:
    """The one door between the gateway and the engine."""

    def __init__(
        self,
        engine: Engine,
        *,
        holds: Holds,
        scribe: Scribe,
        turner: Turner,
        versions: Versions,
        notices: Notices,
        metrics: Metrics,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        clock: ServerClock,
    ) -> None:
        self._engine = engine
        self.holds = holds
        self.scribe = scribe
        self.turner = turner
        self._versions = versions
        self.notices = notices
        self._metrics = metrics
        self._spawn = spawn
        self.clock = clock
        self._shapes = Shapes()
        self._notes = Notes()
        self.room = Room(engine)
        self.has_met = False  # the first meeting is over: from now on a change is news
        self.on_met: Callable[[int], Awaitable[None]] = _nobody  # told the time: Redis may have forgotten
        self._meeting: object | None = None
        self._meet_again = False

    async def warm_up(self, reassert_wait_ms: int) -> None:
        """Meet every partition before the first call: in a new Redis each begins with its re-assertion wait.

        Answers when no partition waits any more; at once when Redis is away, for then calls must be refused anyway.
        """
        try:
            states = await self._meet_all()
            await self.on_met(self.clock.now_ms())
        except EngineUnavailable:
            states = []
        self.holds.on_other_record = self.meet
        self.has_met = True
        if states:
            born_ms = max(created_at_ms(state.record) for state in states)
            await asyncio.sleep(max(0, born_ms + reassert_wait_ms - states[0].server_ms) / 1000)

    def meet(self) -> None:
        """Redis is back, or has forgotten: meet every partition now, or its re-assertion wait would begin with its next
        call, whenever that comes."""
        self._meet_again = True
        if self._meeting is None:
            self._meeting = self._spawn(self._meet())

    async def _meet(self) -> None:
        try:
            while self._meet_again:
                self._meet_again = False
                await self._meet_all()
                await self.on_met(self.clock.now_ms())
        except EngineUnavailable:
            log.debug("Redis went away while it was met again")  # its next return is told, too
        finally:
            self._meeting = None

    async def _meet_all(self) -> list[engine_model.PartitionState]:
        """A beat for each partition, all in one write. Raises EngineUnavailable."""
        partitions = range(self._engine.partitions)
        states = await asyncio.gather(*(self._engine.renew(partition, ()) for partition in partitions))
        for partition, state in enumerate(states):
            self.holds.saw_record(partition, state.record)
        self.clock.saw(states[-1].server_ms)
        return states

    def reloaded(self, before: Catalog, after: Catalog) -> None:
        """Another config is in use: accounts move on to its plans."""
        self._versions.reloaded(before, after)

    async def admit(self, ask: Ask) -> Admission:
        """Take the hold; of a dry ask only say what it would be. A plan in shadow refuses nothing: what it would have
        refused is admitted on an empty hold.

        Raises a Refusal, QuotaUnavailable, Overloaded, PriceMissing, or what ``refresh`` raises."""
        if self.scribe.full:
            raise Overloaded(retry_after_s=5)
        progress = _Progress(ask.caller, ask.work)
        try:
            for _ in range(ATTEMPTS_MAX):
                plan, account = plan_of(progress.caller, ask.catalog), account_of(progress.caller)
                excluded = objection(ask.catalog, plan, account.subscription, ask.work.feature.name, ask.model)
                if excluded is not None and progress.shadowed is None:
                    await self._object(ask, progress, plan, excluded)
                    continue
                if account.subscription.plan_version != plan.version and await self._versions.follow(account.id, plan):
                    await progress.refresh(ask)
                    continue
                request, partition = self._request(ask, progress, plan, account), self._engine.partition(account.id)
                if partition in self.holds.stale:
                    await self.holds.reassert(partition)
                try:
                    reply = await self._engine.reserve(request, ticket=nonce())
                except EngineUnavailable as error:
                    if error.sent and not ask.dry:  # it may have been taken: cleaned up behind the call's back
                        self._spawn(self._release_later(account.id, request.hold_id))
                    raise
                if isinstance(reply, engine_model.Reserved):
                    self.clock.saw(reply.server_ms)
                    self.holds.saw_record(partition, reply.record)
                    return self._admitted(ask, progress, plan, reply)
                await self._learn(ask, progress, plan, reply)
        except (EngineUnavailable, StoreUnavailable) as error:
            raise QuotaUnavailable(retry_after_s=2) from error
        raise QuotaUnavailable(retry_after_s=1)

    async def judge(self, ask: Ask) -> Judgement:
        """What ``admit`` would do with this call, and why: nothing is taken. Raises as ``admit``, but for refusals."""
        try:
            decided: Admission | Refusal = await self.admit(replace(ask, dry=True))
        except Refusal as refused:
            decided = refused
        caller, work = (decided.caller, decided.work) if isinstance(decided, Admission) else (ask.caller, ask.work)
        try:
            caller, slots = await self._slots(ask, caller, work)
        except (EngineUnavailable, StoreUnavailable) as error:
            raise QuotaUnavailable(retry_after_s=2) from error
        return Judgement(decided, caller, plan_of(caller, ask.catalog), work, slots)

    async def _slots(self, ask: Ask, caller: Caller, work: Work) -> tuple[Caller, tuple[Slot, ...]]:
        """Every slot of the call's demand as it stands, and the caller as it is now."""
        for _ in range(ATTEMPTS_MAX):
            account, now_ms = caller.account, self.clock.now_ms()
            assert account is not None, "plan_of found its plan"
            demand = self._shapes.of(caller, plan_of(caller, ask.catalog), ask.catalog).demand(work, now_ms)
            replies = await asyncio.gather(
                *(
                    self._engine.reserve(
                        engine_model.Reserve(account.id, str(uuid7()), account.rev, each, ask.lease_ms, dry=True),
                        ticket=nonce(),
                    )
                    for each in probes(demand)
                )
            )
            refused = [reply for reply in replies if isinstance(reply, engine_model.Refused)]
            if len(refused) == len(replies):
                resets_at_ms = partial(turns.resets_at_ms, ask.catalog, account.subscription)
                return caller, slots_of(demand, refused, resets_at_ms)
            match next(reply for reply in replies if not isinstance(reply, engine_model.Refused)):
                case engine_model.Stale(ticket):
                    await self.turner.load(account.id, ticket)
                case engine_model.Turn(_, server_ms):
                    await self.turner.turn(account.id, server_ms)
                case engine_model.Reauth(rev) if rev < account.rev:
                    await self.turner.catch_up(account.id)
                case engine_model.Reauth():
                    caller = await ask.refresh(caller)
                case _:
                    break
        raise QuotaUnavailable(retry_after_s=1)

    def _request(self, ask: Ask, progress: _Progress, plan: Plan, account: Account) -> engine_model.Reserve:
        """What the engine is asked for; what shadow lets pass holds nothing. Raises PriceMissing."""
        caller, work = progress.caller, progress.work
        now_ms = self.clock.now_ms()
        hold_id = ask.hold_id or str(uuid7())
        if progress.shadowed is None:
            demand = self._shapes.of(caller, plan, ask.catalog).demand(work, now_ms)
        else:
            demand = nothing_of(work, owes=progress.owes)
        return engine_model.Reserve(
            account=account.id,
            hold_id=hold_id,
            rev=account.rev,
            demand=demand,
            lease_ms=ask.lease_ms,
            deadline_ms=now_ms + RESERVE_DEADLINE_MS,
            warn_at=ask.catalog.warn_at_permille,
            note=self._notes.of(caller, plan, work, ask.facts, hold_id, now_ms, progress.shadowed),
            dry=ask.dry,
        )

    def _admitted(self, ask: Ask, progress: _Progress, plan: Plan, reserved: engine_model.Reserved) -> Admission:
        """From now on the hold lives; what shadow let pass is counted apart from refusals."""
        hold, caller, shadowed = reserved.hold, progress.caller, progress.shadowed
        if not ask.dry:
            self.holds.add(hold)
            if reserved.crossed:
                self._warn(ask, account_of(caller), reserved.crossed)
            if shadowed is not None:
                scope = shadowed.detail.scope if shadowed.detail is not None and shadowed.detail.scope else "account"
                self._metrics.shadow_denials.add((shadowed.code, scope, plan.name), 1)
        return Admission(
            hold, caller, ask.catalog, plan, progress.work, ask.facts, reserved, progress.clamped_to, shadowed
        )

    async def _object(self, ask: Ask, progress: _Progress, plan: Plan, excluded: Refusal) -> None:
        """The plan excludes the call, as far as is known here. Raises the Refusal if it does."""
        account = account_of(progress.caller)
        if not progress.is_fresh and await self._changed(account):
            await progress.refresh(ask)
        elif plan.shadow:
            progress.shadowed = excluded
        else:
            raise self._refused(ask, account, _situation(ask, plan, account), excluded)

    async def _learn(self, ask: Ask, progress: _Progress, plan: Plan, reply: engine_model.ReserveReply) -> None:
        """Not reserved: put right what was in its way. Raises a Refusal, QuotaUnavailable, Overloaded when nothing
        can be done about it."""
        account = account_of(progress.caller)
        match reply:
            case engine_model.Refused():
                if reply.crossed and not ask.dry:
                    self._warn(ask, account, reply.crossed)
                await self._yield_to(ask, progress, plan, reply)
            case engine_model.Stale(ticket):
                await self.turner.load(account.id, ticket)
            case engine_model.Turn(_, server_ms):
                await self.turner.turn(account.id, server_ms)
            case engine_model.Reauth(rev) if rev < account.rev:  # a change that Redis has not been told yet
                await self.turner.catch_up(account.id)
            case engine_model.Reauth():
                await progress.refresh(ask)
                progress.work, progress.clamped_to = ask.work, None
            case engine_model.Late(server_ms):
                self.clock.saw(server_ms)
            case engine_model.Warming(_, _, record):
                self.holds.saw_record(self._engine.partition(account.id), record)
                raise QuotaUnavailable(retry_after_s=1)
            case engine_model.Overloaded():
                raise Overloaded(retry_after_s=5)

    async def _yield_to(self, ask: Ask, progress: _Progress, plan: Plan, refused: engine_model.Refused) -> None:
        """Ask for less, or for nothing in shadow. Raises the Refusal when there is no less."""
        account, situation = account_of(progress.caller), _situation(ask, plan, account_of(progress.caller))
        if 0 < refused.resets_at_ms <= refused.server_ms:
            self.clock.saw(refused.server_ms)  # our clock was behind: the budget's period that we asked about is over
        elif progress.work.input_expected is not None and ask.counted is not None:
            progress.work = await ask.counted()
        elif plan.shadow:
            progress.owes = progress.shadowed is not None
            progress.shadowed = progress.shadowed or refusal(situation, refused)
        else:
            lowered = _lower(progress.work, refused, plan, ask)
            if isinstance(lowered, engine_model.Refused):
                raise self._refused(ask, account, situation, refusal(situation, lowered))
            progress.work, progress.clamped_to = lowered, lowered.output_tokens // ask.choices

    def _warn(self, ask: Ask, account: Account, crossed: Sequence[tuple[str, int]]) -> None:
        for wallet, permille in crossed:
            self.notices.threshold(account, ask.catalog, wallet, permille)

    async def moved_on(self, account: Account) -> bool:
        """Whether the account has changed since it was read. Raises QuotaUnavailable."""
        try:
            return await self._changed(account)
        except EngineUnavailable as error:
            raise QuotaUnavailable from error

    async def _changed(self, account: Account) -> bool:
        """Whether the account moved on since its caller was cached: then the reserve will say ``reauth``."""
        view = await self._engine.peek(account.id, ticket=nonce(), wallets=())
        return isinstance(view, engine_model.Stale) or view.rev != account.rev

    def _refused(self, ask: Ask, account: Account, situation: Situation, error: Refusal) -> Refusal:
        """Whoever has to know of a refused call is told; asking alone refuses nothing."""
        if not ask.dry:
            self.notices.refused(account.id, situation, error)
        return error

    async def _release_later(self, account_id: str, hold_id: str) -> None:
        """After the deadline the reserve can no longer happen: then a release of its id is the last word."""
        await asyncio.sleep(RESERVE_DEADLINE_MS / 1000)
        await self._free(account_id, hold_id)

    def discard(self, account_id: str, hold_id: str) -> None:
        """Free a hold whose reserve was answered, but whose caller was not, behind the caller's back: at once, for the
        caller may come again with the same id."""
        self._spawn(self._free(account_id, hold_id))

    async def _free(self, account_id: str, hold_id: str) -> None:
        await self._until_answered(lambda: self._engine.release_id(account_id, hold_id))

    async def end(self, admission: Admission, bill: Bill) -> None:
        """Settle or release. The charge is in memory before anything is awaited."""
        hold = admission.hold
        has_begun = self.holds.remove(hold)
        if bill.released:
            released = await self._until_answered(lambda: self._engine.release(hold))
            if not released and has_begun:  # its lapse will charge: the database must know better
                self.scribe.add(bill.row)
            return
        row = bill.row
        self.scribe.add(row)
        charge = engine_model.Charge(
            row.account_id, row.hold_id, engine_model.ChargeState.SETTLED, row.lines, row.budgets, encode(row)
        )
        try:
            settled = await self._engine.settle(hold, charge, window_actuals=bill.window_actuals)
        except EngineUnavailable:
            return  # the scribe's confirm frees the hold once SQL has the charge
        self.clock.saw(settled.server_ms)
        if not settled.known:
            self.holds.saw_record(self._engine.partition(hold.account), settled.record)

    async def _until_answered(self, send: Callable[[], Awaitable[object]]) -> bool:
        """Bounded by about the lease's length: past that the hold lapses by itself. Whether Redis answered."""
        for _ in range(RELEASE_TRIES):
            try:
                await send()
                return True
            except EngineUnavailable:
                await asyncio.sleep(RELEASE_RETRY_S)
        return False


def nothing_of(work: Work, *, owes: bool) -> engine_model.Demand:
    """The demand of what shadow lets pass: to see its wallet, and to take nothing."""
    return engine_model.Demand() if owes else engine_model.Demand((engine_model.WalletDemand(work.feature.wallet, 0),))


def created_at_ms(record: str) -> int:
    """When a partition's record was made, on the server's clock: what follows the incarnation in it."""
    return int(record.rpartition(":")[2])


def account_of(caller: Caller) -> Account:
    """Whom the call is for: only a service key has no account, and it names one for each call."""
    assert caller.account is not None, "a call is an account's"
    return caller.account


def _situation(ask: Ask, plan: Plan, account: Account) -> Situation:
    return Situation(ask.catalog, plan, account.subscription, ask.work.feature)


def plan_of(caller: Caller, catalog: Catalog) -> Plan:
    """Raises SubscriptionInactive when the config no longer knows the account's plan."""
    assert caller.account is not None
    plan = catalog.plans.get(caller.account.subscription.plan)
    if plan is None:
        raise SubscriptionInactive
    return plan


def _lower(work: Work, refused: engine_model.Refused, plan: Plan, ask: Ask) -> Work | engine_model.Refused:
    """Work with the largest output bound that still fits, or the refusal to give, measured at the floor."""
    if plan.clamp is None or work.output_tokens == 0 or not depends_on_output(refused):
        return refused
    floor = max(plan.clamp, ask.output_floor + 1 if ask.output_floor else 0)
    floor = min(floor, work.output_tokens // ask.choices)
    bound = clamp_output(work, refused, ask.choices)
    if bound < floor:
        return refused_at(refused, cost_in(work.with_output(floor * ask.choices), refused))
    return work.with_output(bound * ask.choices)
