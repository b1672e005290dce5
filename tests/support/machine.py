"""The engine against its oracle, call by call: Hypothesis chooses the calls, a model of the ledger plays the database.

``machine_for(twin)`` is a state machine class for one server; ``Twin`` owns the engine, its event loop and the oracle.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import fields, is_dataclass, replace
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from limits.client import Client, connect
from limits.engine import Engine
from limits.errors import ScriptRejected
from limits.model import (
    AccountView,
    BudgetDemand,
    BudgetLine,
    Charge,
    ChargeState,
    ConcurrencyDemand,
    Confirm,
    Demand,
    Hold,
    Reserve,
    Reserved,
    Scope,
    ScopeKind,
    Stale,
    Take,
    Turn,
    WalletDemand,
    WindowDemand,
    split,
)
from limits.oracle import Oracle
from tests.support.clients import PATIENT
from tests.support.ledger_model import Ledger

BASE_MS = 2_200_000_000_000  # later than any real clock, so that entry ids follow the test's clock
DAY_MS = 86_400_000
LEASE_MS = 60_000
ACCOUNTS = ("acme", "b\u00fcro {p9}")
WALLETS = ("tokens", "credits")
TEAM, USER = Scope(ScopeKind.TEAM, "red"), Scope(ScopeKind.USER, "018f2d3c-7b1a-7def-8abc-0123456789ab")
PARTITIONS = 1


class Twin:
    """An engine on a real server and an oracle, fed the same calls at the same standing time."""

    def __init__(self, url: str, *, can_restart: bool, flush: Callable[[], object], **options: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.client: Client = connect(url, timing=PATIENT)
        self.can_restart = can_restart
        self._flush = flush
        self._options = {"partitions": PARTITIONS, "reassert_wait_ms": 0, "amnesty_ms": 30_000, **options}

    def start(self) -> None:
        """An empty server, an empty oracle, the same clock."""
        self._flush()
        self.engine = Engine(self.client, clock_ms=BASE_MS, **self._options)
        self.oracle = Oracle(now_ms=BASE_MS, stamp=self.stamp(), **self._options)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def stamp(self) -> str:
        text = self.run(self.client.execute("INFO", "replication", key=b"{p000}")).decode()
        return str(text.partition("master_replid:")[2][:16])

    def advance(self, by_ms: int) -> None:
        self.oracle.now_ms = max(BASE_MS - DAY_MS, self.oracle.now_ms + by_ms)
        self.engine.set_clock(still_ms=self.oracle.now_ms)

    def flush(self) -> None:
        self._flush()
        self.oracle.flush()

    def new_incarnation(self) -> None:
        """What a promotion does: the data stays, the replication id is new."""
        self.run(self.client.execute("REPLICAOF", "127.0.0.1", "1"))
        self.run(self.client.execute("REPLICAOF", "NO", "ONE"))
        self.oracle.restart(self.stamp())

    def both(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        """Run a verb on both; their answers must be the same."""
        real = self._answer(getattr(self.engine, verb)(*args, **kwargs))
        said = self._answer(getattr(self.oracle, verb)(*args, **kwargs))
        assert plain(real) == plain(said), f"{verb}: the engine says\n{real}\nthe oracle says\n{said}"
        return real

    def _answer(self, work: Coroutine[Any, Any, Any]) -> Any:
        try:
            return self.run(work)
        except ScriptRejected:
            return ScriptRejected

    def close(self) -> None:
        self.run(self.client.close())
        self.loop.close()


def plain(answer: Any) -> Any:
    """An answer without what has no order."""
    if isinstance(answer, AccountView):
        wallets = tuple((view, frozenset(grants)) for view, grants in answer.wallets)
        return replace(answer, wallets=wallets, budgets=frozenset(answer.budgets))  # type: ignore[arg-type]
    if isinstance(answer, Charge):  # its lines are kept wallet by wallet
        return replace(answer, lines=tuple(sorted(answer.lines, key=lambda line: line.wallet)))
    if is_dataclass(answer):
        return (type(answer), *(plain(getattr(answer, item.name)) for item in fields(answer) if item.compare))
    if isinstance(answer, tuple | list):
        return tuple(plain(item) for item in answer)
    return answer


AMOUNTS = st.one_of(st.integers(0, 60), st.sampled_from((0, 1, 100, 2**52)))
ACCOUNT = st.sampled_from(ACCOUNTS)
SCOPES = st.sampled_from((Scope(ScopeKind.ACCOUNT, ""), TEAM, USER))
STEPS = st.sampled_from((1, 999, 5_000, 20_000, 59_999, 60_000, 61_000, 200_000, DAY_MS, -5_000, -DAY_MS // 2))


@st.composite
def demands(draw: st.DrawFn, now_ms: int) -> Demand:
    """A small vector; budgets number 1 to 3 and 9 live in two fields, by the day."""
    day_ms = now_ms - now_ms % DAY_MS
    wallets = draw(st.lists(st.sampled_from(WALLETS), unique=True, max_size=2))
    numbers = draw(st.lists(st.sampled_from((1, 2, 3, 9)), unique=True, max_size=3))
    windows = draw(
        st.lists(
            st.tuples(SCOPES, st.sampled_from((("requests", 60_000), ("tokens", 60_000), ("uses", 3_600_000)))),
            unique=True,
            max_size=3,
        )
    )
    return Demand(
        wallets=tuple(
            WalletDemand(name, draw(AMOUNTS), draw(st.sampled_from((0, 0, 30))), draw(st.integers(0, 70)))
            for name in wallets
        ),
        budgets=tuple(
            BudgetDemand(
                number, draw(SCOPES), "tokens", draw(st.sampled_from((0, 50, 150))), draw(AMOUNTS),
                day_ms - draw(st.sampled_from((0, 0, 0, DAY_MS))), day_ms + DAY_MS, draw(st.integers(0, 20)),
            )
            for number in numbers
        ),
        windows=tuple(
            WindowDemand(scope, name, length_ms, draw(st.sampled_from((0, 3, 100))), draw(st.integers(0, 40)))
            for scope, (name, length_ms) in windows
        ),
        concurrency=tuple(
            ConcurrencyDemand(scope, draw(st.integers(0, 4)))
            for scope in draw(st.lists(SCOPES, unique=True, max_size=2))
        ),
    )  # fmt: skip


# Grants of no hold, perhaps; none of another wallet than its own: grant 1 is always one of tokens.
ELSEWHERE = (Take("tokens", 1, 4), Take("credits", 76, 0), Take("tokens", 77, 2), Take("unheard", 78, 1))


@st.composite
def unruly(draw: st.DrawFn, lines: tuple[Any, ...], other: Any) -> tuple[Any, ...]:
    """Lines in another order, some of them twice, perhaps with one that the hold knows nothing of."""
    again = draw(st.lists(st.sampled_from(lines), max_size=3)) if lines else []
    return tuple(draw(st.permutations([*lines, *again, *([other] if draw(st.booleans()) else [])])))


class EngineMachine(RuleBasedStateMachine):
    """Two accounts, one worker's view of them, and everything that may happen to it."""

    twin: ClassVar[Twin]

    def __init__(self) -> None:
        super().__init__()
        self.twin.start()
        self.ledger = Ledger()
        self.holds: dict[str, Hold] = {}
        self.seen: list[Hold] = []  # every version of every hold, also of ended ones
        self.charges: list[Charge] = []
        self.confirms: list[Confirm] = []
        self.reserves: list[Reserve] = []
        self.tickets: list[tuple[str, str]] = []
        self.made = 0

    def nonce(self) -> str:
        self.made += 1
        return f"n{self.made}"

    @property
    def now_ms(self) -> int:
        return self.twin.oracle.now_ms

    @initialize(amounts=st.lists(st.integers(1, 200), min_size=2, max_size=5))
    def begin(self, amounts: list[int]) -> None:
        for index, amount in enumerate(amounts):
            expires = (0, BASE_MS + DAY_MS, BASE_MS + 100_000)[index % 3]
            wallet = WALLETS[index % 2]
            self.ledger.grant(ACCOUNTS[0], wallet, amount, priority=index % 2, expires_at_ms=expires)
        self.ledger.grant(ACCOUNTS[1], "tokens", 2**52)
        for account in ACCOUNTS:
            self.load(self.twin.both("mark_stale", account, ticket=self.nonce()), account)

    def load(self, ticket: str, account: str) -> None:
        self.twin.both("load", self.ledger.snapshot(account, self.now_ms), ticket=ticket)

    @rule(data=st.data(), account=ACCOUNT, late=st.booleans(), off=st.sampled_from((0, 0, 0, 1)))
    def reserve(self, data: st.DataObject, account: str, late: bool, off: int) -> None:
        self.made += 1
        request = Reserve(
            account=account,
            hold_id=str(uuid.UUID(int=self.made * 2**64 + 7)),
            rev=self.ledger.book(account).rev - off,
            demand=data.draw(demands(self.now_ms)),
            lease_ms=data.draw(st.sampled_from((LEASE_MS, 5_000))),
            deadline_ms=self.now_ms - 1 if late and off else 0,
            warn_at=data.draw(st.sampled_from(((), (500, 900, 1000)))),
            note=b"note %d" % self.made,
            dry=data.draw(st.sampled_from((False, False, False, True))),
        )
        self.reserves.append(request)
        self._reserve(request)

    def _reserve(self, request: Reserve) -> None:
        answer = self.twin.both("reserve", request, ticket=self.nonce())
        if isinstance(answer, Reserved) and not request.dry:
            self.holds[request.hold_id] = answer.hold
            self.seen.append(answer.hold)
        elif isinstance(answer, Stale):
            self.tickets.append((request.account, answer.ticket))
        elif isinstance(answer, Turn):
            self.turn(request.account)

    @precondition(lambda self: self.reserves)
    @rule(data=st.data())
    def reserve_again(self, data: st.DataObject) -> None:
        """A replay, perhaps after the hold grew or ended."""
        self._reserve(data.draw(st.sampled_from(self.reserves)))

    def turn(self, account: str) -> None:
        book = self.ledger.book(account)
        book.period_at_ms, book.turn_at_ms = self.now_ms, self.now_ms + DAY_MS
        self.ledger.grant(account, "tokens", 90, expires_at_ms=self.now_ms + DAY_MS)
        self.load(self.twin.both("mark_stale", account, ticket=self.nonce()), account)

    @rule(
        account=ACCOUNT,
        amount=st.integers(1, 150),
        wallet=st.sampled_from(WALLETS),
        days=st.sampled_from((0, 1, 3)),
    )
    def grant(self, account: str, amount: int, wallet: str, days: int) -> None:
        """A purchase: SQL first, then the push; its load comes at once or never."""
        starts = self.now_ms + 50_000 if amount % 5 == 0 else 0
        expires = self.now_ms + days * DAY_MS if days else 0
        self.ledger.grant(account, wallet, amount, priority=amount % 3, starts_at_ms=starts, expires_at_ms=expires)
        book = self.ledger.book(account)
        if amount % 2:
            book.rev += 1
        if amount % 7 == 0:
            book.turn_at_ms = self.now_ms + 30_000
        self.tickets.append((account, self.twin.both("mark_stale", account, ticket=self.nonce())))

    @rule(account=ACCOUNT, number=st.integers(1, 3))
    def revoke(self, account: str, number: int) -> None:
        self.ledger.book(account).revoked.add(number)
        self.tickets.append((account, self.twin.both("mark_stale", account, ticket=self.nonce())))

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def load_under_a_ticket(self, data: st.DataObject) -> None:
        account, ticket = data.draw(st.sampled_from(self.tickets[-4:]))
        self.load(ticket, account)

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def extend(self, data: st.DataObject) -> None:
        hold = data.draw(st.sampled_from([h for h in self.seen if h.hold_id in self.holds][-6:]))
        more = Demand(
            tuple(
                replace(item, amount=data.draw(AMOUNTS), abandon=1, minimum=0)
                for item in hold.demand.wallets
                if data.draw(st.booleans())
            ),
            tuple(replace(item, amount=data.draw(st.integers(0, 30)), abandon=0) for item in hold.demand.budgets),
            tuple(replace(item, amount=data.draw(st.sampled_from((0, 5)))) for item in hold.demand.windows),
        )
        answer = self.twin.both("extend", hold, more, ticket=self.nonce())
        if isinstance(answer, Reserved):
            self.holds[hold.hold_id] = answer.hold
            self.seen.append(answer.hold)

    @precondition(lambda self: self.seen)
    @rule(data=st.data(), known=st.booleans())
    def settle(self, data: st.DataObject, known: bool) -> None:
        """Below, at or above the hold, in any order; also of one that ended, lapsed or was never heard of here."""
        pool = [h for h in self.seen if h.hold_id in self.holds] if known and self.holds else self.seen
        hold = data.draw(st.sampled_from(pool))
        lines = tuple(
            line
            for wallet in hold.demand.wallets
            if (takes := [take for take in hold.takes if take.wallet == wallet.wallet])
            for line in split(takes, data.draw(st.integers(0, 120)))
        )
        budgets = tuple(
            BudgetLine(item.number, item.starts_at_ms, data.draw(st.integers(0, 60))) for item in hold.demand.budgets
        )
        if data.draw(st.booleans()):
            lines = data.draw(unruly(lines, data.draw(st.sampled_from(ELSEWHERE))))
            budgets = data.draw(unruly(budgets, BudgetLine(17, BASE_MS, 3)))
        charge = Charge(hold.account, hold.hold_id, ChargeState.SETTLED, lines, budgets, b"row")
        self.charges.append(charge)
        actuals = data.draw(st.sampled_from(((), (None,) * len(hold.demand.windows), (7,) * len(hold.demand.windows))))
        self.twin.both("settle", hold, charge, window_actuals=actuals)
        self.holds.pop(hold.hold_id, None)

    @precondition(lambda self: self.seen)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        hold = data.draw(st.sampled_from(self.seen[-8:]))
        self.twin.both("release", hold)
        self.holds.pop(hold.hold_id, None)

    @precondition(lambda self: self.seen)
    @rule(data=st.data(), live=st.booleans())
    def renew(self, data: st.DataObject, live: bool) -> None:
        """A beat with some holds: live ones, old versions, and ones that ended."""
        pool = list(self.holds.values()) if live and self.holds else self.seen
        chosen = data.draw(st.lists(st.sampled_from(pool), max_size=4, unique_by=lambda hold: hold.hold_id))
        told = data.draw(st.booleans())
        self.twin.both("renew", 0, [replace(hold, first_byte=told or hold.first_byte) for hold in chosen])

    @rule()
    def sweep(self) -> None:
        self.twin.both("sweep", 0, count=5)

    @rule(account=ACCOUNT, count=st.sampled_from((1, 4)))
    def lapse(self, account: str, count: int) -> None:
        self.twin.both("lapse", account, count=count)

    @rule(older_than_ms=st.sampled_from((0, 5_000)), count=st.sampled_from((1, 10)))
    def reap(self, older_than_ms: int, count: int) -> None:
        """Commit what lies in the outbox; confirm it now, later, or never."""
        for entry in self.twin.both("outbox", 0, older_than_ms=older_than_ms, count=count):
            self.confirms.append(self.ledger.commit(entry.charge))

    @precondition(lambda self: self.charges)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        """The worker commits a charge of its own, whether or not Redis has it; perhaps again."""
        self.confirms.append(self.ledger.commit(data.draw(st.sampled_from(self.charges[-5:]))))

    @precondition(lambda self: self.confirms)
    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        """In any order, again, or one that SQL has overtaken since; alone or with others of its account."""
        recent = self.confirms[-6:]
        first = data.draw(st.sampled_from(recent))
        others = {item.hold_id: item for item in recent if item.account == first.account}
        others.pop(first.hold_id, None)
        together = data.draw(st.lists(st.sampled_from(list(others)), unique=True)) if others else []
        self.twin.both("confirm", first, *(others[hold_id] for hold_id in together))

    @rule(account=ACCOUNT)
    def sync(self, account: str) -> None:
        self.twin.both("sync_seq", account, self.ledger.book(account).seq)

    @rule(step_ms=STEPS)
    def clock(self, step_ms: int) -> None:
        self.twin.advance(step_ms)

    @rule(dice=st.integers(0, 7))
    def crash(self, dice: int) -> None:
        """The worker forgets its holds; or Redis forgets everything; or another Redis takes over."""
        if dice < 4:
            self.holds.clear()
        elif dice == 4:
            self.twin.flush()
        elif self.twin.can_restart:
            self.twin.new_incarnation()

    @invariant()
    def both_hold_the_same(self) -> None:
        for account in ACCOUNTS:
            if (found := self.twin.oracle.accounts.get(account)) is not None and found.stamp == self.twin.oracle.stamp:
                view = self.twin.both("peek", account, ticket="", wallets=(*WALLETS, "unheard"))
                self.check_sums(account, view)
        self.twin.both("outbox", 0, older_than_ms=-DAY_MS, count=100)

    def check_sums(self, account: str, view: AccountView) -> None:
        """Counted is SQL's sum over the counted seqs: those up to the watermark and those kept above it."""
        kept = self.twin.oracle.accounts[account].kept
        sums, _ = self.ledger.counted(account, up_to_seq=view.seq)
        for delta in kept.values():
            for line in delta.lines:
                sums[line.number] += line.amount
        for _, grants in view.wallets:
            for grant in grants:
                if grant.amount:
                    assert grant.counted == sums[grant.number], f"drift on grant {grant.number} of {account}"
                    assert grant.pending >= 0 and grant.held >= 0


def machine_for(twin: Twin) -> type[RuleBasedStateMachine]:
    """The state machine, bound to one server."""
    return type("BoundMachine", (EngineMachine,), {"twin": twin})
