"""A simulated world for the charge protocol: workers, a reaper and a database around an engine, and everything that can
go wrong between any two steps.

Each actor is a generator that yields where another may run; the world picks who goes next, and what becomes of each
call: done, reply lost, dropped, or run late and out of order. Redis rolls back or is flushed, workers crash, SQL is
away, fails, or commits without saying so. A run ends by healing and draining; ``verdict`` then says which promise was
broken.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from limits.errors import EngineUnavailable
from limits.model import (
    AccountView,
    BudgetDemand,
    BudgetLine,
    Charge,
    ChargeState,
    Confirm,
    Demand,
    Hold,
    Reserve,
    Reserved,
    Scope,
    ScopeKind,
    Stale,
    WalletDemand,
    split,
)
from tests.support.ledger_model import Ledger

Actor = Generator[None, None, None]
ACCOUNTS = ("acme", "zeta")
BASE_MS = 2_200_000_000_000
DEADLINE_MS = 1_000
LEASE_MS = 20_000  # short: leases of live calls end too
LONG_LEASE_MS = 300_000  # only dead workers' leases end
DAY_MS = 86_400_000
STEPS_MAX = 400
BUDGET = BudgetDemand(1, Scope(ScopeKind.TEAM, "red"), "tokens", 10**6, 0, BASE_MS - DAY_MS, BASE_MS + DAY_MS)


class Redis(Protocol):
    """An engine, called synchronously, whose data can be lost."""

    now_ms: int

    def call(self, verb: str, *args: Any, **kwargs: Any) -> Any: ...

    def save(self) -> object: ...

    def restore(self, saved: object) -> None: ...

    def flush(self) -> None: ...


class SqlUnavailable(Exception):
    """The commit failed, or nobody knows."""


@dataclass(slots=True)
class Call:
    """What really happened to one call."""

    account: str
    amount: int
    actual: int = 0
    forwarded: bool = False
    served: bool = False
    released: bool = False
    told: bool = False  # some renew told Redis of its first byte
    worker: Worker | None = None


@dataclass(slots=True, eq=False)
class Worker:
    alive: bool = True
    holds: dict[str, Hold] = field(default_factory=dict)
    charges: dict[str, Charge] = field(default_factory=dict)  # settled, not yet in SQL
    confirms: list[Confirm] = field(default_factory=list)
    record: str | None = None
    reassert: bool = False
    paused_until_ms: int = 0  # stopped, as by SIGSTOP: it neither works nor dies


class World:
    """One run."""

    def __init__(self, redis: Redis, seed: int, *, data_loss: bool = True, faults: float = 0.15) -> None:
        self.dice = random.Random(seed)
        self.redis, self.ledger = redis, Ledger()
        self.data_loss, self.faults = data_loss, faults
        self.lease_ms = LEASE_MS if data_loss else LONG_LEASE_MS
        self.calls: dict[str, Call] = {}
        self.in_redis: dict[str, int] = {}  # charges that Redis has, and when it got them (in writes)
        self.history: list[tuple[object, dict[str, int]]] = []
        self.late: list[Callable[[], object]] = []
        self.sql_up, self.healing, self.revoked = True, False, False
        self.late_comers = False  # workers that were stopped go on
        self.pushes: list[str] = []
        self.made = 0
        self.broken: list[str] = []
        for account in ACCOUNTS:
            for index in range(self.dice.randint(1, 3)):
                expires = BASE_MS + 30_000 if index == 2 else 0
                self.ledger.grant(account, "tokens", self.dice.choice((30, 60, 100)), expires_at_ms=expires)
        self.workers = [Worker() for _ in range(self.dice.randint(2, 3))]
        self.actors: list[tuple[Worker | None, Actor]] = [(None, self.reaper()), (None, self.pusher())]
        for worker in self.workers:
            self.employ(worker)

    def employ(self, worker: Worker) -> None:
        self.actors += [(worker, self.beats(worker)), (worker, self.writer(worker))]

    def nonce(self) -> str:
        self.made += 1
        return f"t{self.made}"

    # --- the wire ------------------------------------------------------------------------------------------------

    def send(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        """Run a verb, perhaps with a fault. Raises EngineUnavailable."""
        luck = 1.0 if self.healing else self.dice.random()
        if luck < self.faults / 3:
            raise EngineUnavailable("dropped", sent=True)
        if luck < self.faults * 2 / 3:
            self.late.append(lambda: self.execute(verb, *args, **kwargs))
            raise EngineUnavailable("late", sent=True)
        answer = self.execute(verb, *args, **kwargs)
        if luck < self.faults:
            raise EngineUnavailable("reply lost", sent=True)
        return answer

    def execute(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        answer = self.redis.call(verb, *args, **kwargs)
        if verb == "settle":
            self.in_redis[args[1].hold_id] = len(self.history)
        if verb == "renew":
            for hold in args[1]:
                self.calls[hold.hold_id].told |= hold.first_byte
        if self.data_loss:
            self.history = [*self.history[-6:], (self.redis.save(), dict(self.in_redis))]
        return answer

    def commit(self, charge: Charge) -> Confirm:
        """SQL's part. Raises SqlUnavailable: not done, or done and nobody heard."""
        if not self.sql_up:
            raise SqlUnavailable
        luck = 1.0 if self.healing else self.dice.random()
        if luck < self.faults / 2:
            raise SqlUnavailable
        confirm = self.ledger.commit(charge)
        if luck < self.faults:
            raise SqlUnavailable
        return confirm

    # --- actors --------------------------------------------------------------------------------------------------

    def call(self, worker: Worker) -> Actor:
        """One request: reserve, forward, settle or release."""
        account, amount = self.dice.choice(ACCOUNTS), self.dice.randint(1, 40)
        hold_id = str(uuid.UUID(int=self.dice.getrandbits(128)))
        call = self.calls[hold_id] = Call(account, amount, worker=worker)
        abandon = min(amount, 5)
        demand = Demand(
            (WalletDemand("tokens", amount, 0, abandon),), (replace(BUDGET, amount=amount, abandon=abandon),)
        )
        hold = yield from self.admit(worker, account, hold_id, demand)
        if hold is None:
            return
        self.check_bound(account)
        yield
        if self.dice.random() < 0.2:
            worker.holds.pop(hold_id)
            call.released = True
            yield from self.until_answered("release", hold)
            return
        call.forwarded = True
        yield
        worker.holds[hold_id] = replace(hold, first_byte=True)
        for _ in range(self.dice.randint(0, 6)):
            yield
        call.actual = self.dice.randint(0, amount + 5)
        call.served = True
        lines = split(hold.takes, call.actual)
        budgets = (BudgetLine(1, BUDGET.starts_at_ms, call.actual),) if call.actual else ()
        charge = Charge(account, hold_id, ChargeState.SETTLED, lines, budgets, b"row")
        worker.charges[hold_id] = charge
        worker.holds.pop(hold_id)
        try:
            settled = self.send("settle", hold, charge)
            if not settled.known:
                self.saw(worker, settled.record)
        except EngineUnavailable:
            return  # the writer's confirm will do

    def admit(self, worker: Worker, account: str, hold_id: str, demand: Demand) -> Generator[None, None, Hold | None]:
        """The hold, or None when it is refused or given up."""
        for _ in range(10):
            while worker.reassert:
                yield
            deadline_ms = self.redis.now_ms + DEADLINE_MS
            rev = self.ledger.book(account).rev
            request = Reserve(account, hold_id, rev, demand, self.lease_ms, deadline_ms, (), b"note")
            try:
                answer = self.send("reserve", request, ticket=self.nonce())
            except EngineUnavailable:
                while self.redis.now_ms <= deadline_ms:
                    yield
                yield from self.until_answered("release_id", account, hold_id)
                return None
            if isinstance(answer, Reserved):
                worker.holds[hold_id] = answer.hold
                self.saw(worker, answer.record)
                return answer.hold
            if isinstance(answer, Stale):
                yield from self.load(account, answer.ticket)
            yield
        return None

    def load(self, account: str, ticket: str) -> Actor:
        if not self.sql_up:
            return
        snapshot = self.ledger.snapshot(account, self.redis.now_ms)
        for _ in range(self.dice.randint(0, 4)):
            yield
        try:
            self.send("load", snapshot, ticket=ticket)
        except EngineUnavailable:
            return

    def until_answered(self, verb: str, *args: Any) -> Actor:
        while True:
            try:
                self.send(verb, *args)
                return
            except EngineUnavailable:
                yield

    def saw(self, worker: Worker, record: str) -> None:
        if worker.record not in (None, record):
            worker.reassert = True
        worker.record = record

    def beats(self, worker: Worker) -> Actor:
        """Tell first bytes, renew, and re-assert after a new record."""
        while True:
            yield
            asserting = worker.reassert
            try:
                state = self.send("renew", 0, list(worker.holds.values()))
            except EngineUnavailable:
                continue
            if asserting and worker.record == state.record:
                worker.reassert = False
            self.saw(worker, state.record)

    def writer(self, worker: Worker) -> Actor:
        """Commit what the worker keeps, whether or not Redis has it; confirm until answered."""
        while True:
            yield
            for hold_id, charge in list(worker.charges.items()):
                try:
                    worker.confirms.append(self.commit(charge))
                    del worker.charges[hold_id]
                except SqlUnavailable:
                    pass
                yield
            yield from self.confirm_all(worker.confirms)

    def confirm_all(self, confirms: list[Confirm]) -> Actor:
        while confirms:
            try:
                self.send("confirm", confirms[0])
                confirms.pop(0)
            except EngineUnavailable:
                pass
            yield

    def reaper(self) -> Actor:
        """Takes over what lies in the outbox, lapses dead leases, sends last seqs. While SQL is up."""
        while True:
            yield
            if not self.sql_up:
                continue
            confirms: list[Confirm] = []
            try:
                self.send("sweep", 0, count=5)
                for entry in self.send("outbox", 0, older_than_ms=5_000, count=5):
                    confirms.append(self.commit(entry.charge))
                    yield
                yield from self.confirm_all(confirms)
                account = self.dice.choice(ACCOUNTS)
                seq = self.ledger.book(account).seq
                for _ in range(self.dice.randint(0, 3)):
                    yield
                self.send("sync_seq", account, seq)
            except (EngineUnavailable, SqlUnavailable):
                continue

    def pusher(self) -> Actor:
        """Delivers what SQL changed: stale under a new ticket, the row deleted, then a load."""
        while True:
            yield
            if not self.pushes or not self.sql_up:
                continue
            account, ticket = self.pushes[0], self.nonce()
            try:
                self.send("mark_stale", account, ticket=ticket)
            except EngineUnavailable:
                continue
            self.pushes.pop(0)
            yield from self.load(account, ticket)

    # --- what may happen -----------------------------------------------------------------------------------------

    def happen(self) -> None:
        """One turn of fate."""
        luck = self.dice.random()
        if luck < 0.25:
            self.redis.now_ms += self.dice.choice((10, 300, 1_100, 6_000))
        elif luck < 0.40 and len(self.calls) < 12:
            worker = self.dice.choice([worker for worker in self.workers if worker.alive])
            self.actors.append((worker, self.call(worker)))
        elif luck < 0.45 and self.late:
            self.late.pop(self.dice.randrange(len(self.late)))()
        elif luck < 0.47:
            self.sql_up = not self.sql_up
        elif luck < 0.49:
            self.change_grants()
        elif luck < 0.505:
            self.crash(self.dice.choice(self.workers))
        elif luck < 0.512 and self.data_loss:
            self.lose_data()
        elif luck < 0.55 and self.data_loss:
            self.pause()

    def change_grants(self) -> None:
        """A purchase or a revocation: SQL and its push row in one transaction."""
        account = self.dice.choice(ACCOUNTS)
        if self.dice.random() < 0.6:
            self.ledger.grant(account, "tokens", 20)
        else:
            self.ledger.book(account).revoked.add(1)
            self.revoked = True
        self.ledger.book(account).rev += 1
        self.pushes.append(account)

    def crash(self, worker: Worker) -> None:
        if worker.alive:
            worker.alive = False
            self.actors = [(owner, actor) for owner, actor in self.actors if owner is not worker]
            fresh = Worker()
            self.workers[self.workers.index(worker)] = fresh
            self.employ(fresh)

    def pause(self) -> None:
        """Stop a worker past its leases, if possible one in the midst of an answer."""
        midst = [
            worker
            for worker in self.workers
            if any(hold.first_byte and self.calls[hold_id].told for hold_id, hold in worker.holds.items())
        ]
        self.dice.choice(midst or self.workers).paused_until_ms = self.redis.now_ms + 2 * self.lease_ms

    def lose_data(self) -> None:
        if self.dice.random() < 0.5 or not self.history:
            self.redis.flush()
            self.in_redis = {}
        else:
            saved, self.in_redis = self.history[self.dice.randrange(len(self.history))]
            self.in_redis = dict(self.in_redis)
            self.redis.restore(saved)
        self.history = []

    def check_bound(self, account: str) -> None:
        """Law 1, where nothing was lost: what is spent and held is within what was granted, but for overruns."""
        if self.data_loss or self.revoked:
            return
        granted = sum(grant.amount for _, grant in self.ledger.book(account).grants.values())
        used = overrun = 0
        for hold_id, call in self.calls.items():
            if call.account == account and call.served:
                used += call.actual
                overrun += max(0, call.actual - call.amount)
            elif call.account == account and call.worker is not None and hold_id in call.worker.holds:
                used += call.amount
        if used > granted + overrun:
            self.broken.append(f"overspend of {account}: {used} of {granted} (+{overrun})")

    # --- a run ---------------------------------------------------------------------------------------------------

    def run(self) -> list[str]:
        """The broken promises, [] if all is well."""
        self.redis.now_ms = BASE_MS
        for _ in range(STEPS_MAX):
            self.happen()
            busy = [index for index, (_, actor) in enumerate(self.actors) if actor.__name__ == "call"]
            others = range(len(self.actors))
            self.step(self.dice.choice(busy if busy and self.dice.random() < 0.4 else others))
        self.heal()
        return [*self.broken, *self.verdict()]

    def step(self, index: int) -> None:
        worker, actor = self.actors[index]
        if worker is not None and self.redis.now_ms < worker.paused_until_ms and not self.late_comers:
            return
        try:
            next(actor)
        except StopIteration:
            self.actors.remove((worker, actor))

    def heal(self) -> None:
        """No more faults; who is late arrives; time passes until everything had its turn."""
        self.healing, self.sql_up = True, True
        for late in self.late:
            late()
        for turn in range(120):
            self.late_comers = turn > 40  # some calls end long after they were given up
            self.redis.now_ms += 1_000 if self.data_loss else 5_000  # beats stay within a third of the amnesty
            for index in reversed(range(len(self.actors))):
                self.step(index)
            if turn > 30:
                for account in ACCOUNTS:
                    self.redis.call("sync_seq", account, self.ledger.book(account).seq)

    def verdict(self) -> list[str]:
        """Bills against the truth, and Redis against SQL."""
        wrong: list[str] = []
        for hold_id, call in self.calls.items():
            charge = self.ledger.book(call.account).charges.get(hold_id)
            billed = sum(line.amount for line in charge.lines) if charge else 0
            dead = call.worker is not None and not call.worker.alive
            if call.served and (charge is None or charge.state is not ChargeState.SETTLED):
                if not (dead and hold_id not in self.in_redis):
                    wrong.append(f"{hold_id}: served for {call.actual}, never billed")
            elif call.served and billed != call.actual:
                wrong.append(f"{hold_id}: served for {call.actual}, billed {billed}")
            elif not call.served and billed and not (dead and call.told):
                wrong.append(f"{hold_id}: never served, billed {billed}")
        for account in ACCOUNTS:
            wrong += self.compare(account)
        if self.redis.call("outbox", 0, older_than_ms=0, count=10):
            wrong.append("the outbox is not empty")
        return wrong

    def compare(self, account: str) -> list[str]:
        """Redis rebuilt from SQL equals Redis as it is: difference 0."""
        answer = self.redis.call("peek", account, ticket="end", wallets=("tokens",))
        if isinstance(answer, Stale):
            self.redis.call("load", self.ledger.snapshot(account, self.redis.now_ms), ticket=answer.ticket)
            answer = self.redis.call("peek", account, ticket="end", wallets=("tokens",))
        assert isinstance(answer, AccountView), "a healed account can be loaded"
        wrong = []
        sums, budgets = self.ledger.counted(account)
        for _, grants in answer.wallets:
            for grant in grants:
                if grant.pending or grant.held:
                    wrong.append(f"{account}: grant {grant.number} at rest has {grant}")
                if grant.amount and grant.counted != sums[grant.number]:
                    wrong.append(f"{account}: grant {grant.number} counts {grant.counted}, SQL {sums[grant.number]}")
        for number, starts, counted, pending, held in answer.budgets:
            expected = budgets[(number, starts)]
            if pending or held or counted != expected:
                wrong.append(f"{account}: budget {number} has {(counted, pending, held)}, SQL {expected}")
        if answer.holds_open or answer.seq != self.ledger.book(account).seq:
            wrong.append(f"{account}: {answer.holds_open} holds, seq {answer.seq} of {self.ledger.book(account).seq}")
        return wrong
