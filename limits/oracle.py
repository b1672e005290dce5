"""The engine's contract in plain Python: what the scripts must do, said a second time, without a thought for speed.

Rules
1. Same verbs, same arguments, same answers as ``engine.Engine``; the stateful tests compare the two, call by call.
2. Its clock stands still until told (``now_ms``); ``restart`` is a new incarnation, ``flush`` loses everything.
3. Only what the contract promises is here: no packing, no cached sums, no indices.

Not here: a database. Who uses the oracle plays that part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from limits import keys
from limits.codec import layout
from limits.errors import ScriptRejected
from limits.growth import aligned, summed
from limits.model import (
    AccountView,
    BudgetLine,
    Charge,
    ChargeState,
    Confirm,
    Demand,
    ExtendReply,
    Gone,
    GrantView,
    Hold,
    Late,
    OutboxEntry,
    Overloaded,
    PartitionState,
    Reauth,
    Reserve,
    Reserved,
    ReserveReply,
    Settled,
    Snapshot,
    Stale,
    Take,
    Turn,
    Warming,
    split,
)
from limits.oracle_checks import Check
from limits.oracle_state import (
    LAPSES_PER_RESERVE,
    ORPHAN_AGE_MS,
    Account,
    Grant,
    Mark,
    OpenHold,
    Partition,
    Wallet,
    due_of,
)
from limits.replies import view_of


class Oracle:
    """What an Engine answers, on a simulated server."""

    def __init__(
        self,
        *,
        partitions: int = 256,
        reassert_wait_ms: int = 1000,
        amnesty_ms: int = 60_000,
        outbox_max_entries: int = 100_000,
        outbox_max_age_ms: int = 600_000,
        now_ms: int = 0,
        stamp: str = "0" * 16,
    ) -> None:
        self.partitions = partitions
        self.reassert_wait_ms = reassert_wait_ms
        self.amnesty_ms = amnesty_ms
        self.outbox_max_entries = outbox_max_entries
        self.outbox_max_age_ms = outbox_max_age_ms
        self.now_ms = now_ms
        self.stamp = stamp
        self.accounts: dict[str, Account] = {}
        self.places: dict[int, Partition] = {}
        self.leads: dict[str, tuple[str, int]] = {}

    def restart(self, stamp: str) -> None:
        """A new incarnation over the same data."""
        self.stamp = stamp

    def flush(self) -> None:
        """All data lost, the incarnation stays."""
        self.accounts, self.places, self.leads = {}, {}, {}

    def partition(self, account: str) -> int:
        return keys.partition_of(account, self.partitions)

    async def reserve(self, request: Reserve, *, ticket: str) -> ReserveReply:
        if request.deadline_ms and self.now_ms > request.deadline_ms:
            return Late(self.now_ms)
        place = self._place(self.partition(request.account))
        account = self.accounts.get(request.account)
        if account is None or account.stamp != self.stamp:
            return self._stale(request.account, ticket)
        if self._warming(place):
            return Warming(place.created_ms + self.reassert_wait_ms, self.now_ms, place.record)
        opened = account.holds.get(request.hold_id)
        if opened is not None:
            if layout(opened.hold.demand).slots != layout(request.demand).slots:
                raise ScriptRejected("another hold has this id")
            return self._repeat(account, opened, place, told=False)
        if account.rev != request.rev:
            return Reauth(account.rev)
        if account.turn_at_ms and self.now_ms >= account.turn_at_ms:
            return Turn(account.turn_at_ms, self.now_ms)
        if len(place.outbox) > self.outbox_max_entries or any(
            entry_ms <= self.now_ms - self.outbox_max_age_ms for (entry_ms, _) in place.outbox
        ):
            return Overloaded(len(place.outbox))
        if account.due_ms and self.now_ms >= account.due_ms:
            self._lapse_due(request.account, account, place, LAPSES_PER_RESERVE)
        check = Check(account, self.now_ms, request.demand, () if request.dry else request.warn_at)
        if check.refused is not None:
            return check.refused
        hold = Hold(
            account=request.account,
            hold_id=request.hold_id,
            version=1,
            created_at_ms=self.now_ms,
            lease_ms=request.lease_ms,
            takes=check.takes,
            demand=request.demand,
            window_starts_ms=check.window_starts_ms,
            note=request.note,
        )
        if not request.dry:
            check.take()
            self._open(account, hold)
        return Reserved(hold, check.views(), check.crossed, check.windows, self.now_ms, place.record)

    async def extend(self, hold: Hold, more: Demand, *, ticket: str = "") -> ExtendReply:
        top = aligned(hold.demand, more)
        place = self._place(self.partition(hold.account))
        account = self.accounts.get(hold.account)
        if account is None or account.stamp != self.stamp:
            return self._stale(hold.account, ticket)
        if self._warming(place):
            return Warming(place.created_ms + self.reassert_wait_ms, self.now_ms, place.record)
        opened = account.holds.get(hold.hold_id)
        if opened is None or opened.hold.version not in (hold.version, hold.version + 1):
            return Gone()
        if opened.hold.version == hold.version + 1:
            same = layout(opened.hold.demand).slots == layout(summed(hold.demand, top)).slots
            return self._repeat(account, opened, place, told=hold.first_byte) if same else Gone()
        check = Check(account, self.now_ms, top, (), growing=opened.hold)
        if check.refused is not None:
            return check.refused
        takes = {(take.wallet, take.number): take for take in opened.hold.takes}
        for take in check.takes:
            before = takes.get((take.wallet, take.number), Take(take.wallet, take.number, 0))
            takes[(take.wallet, take.number)] = replace(take, amount=before.amount + take.amount)
        if len(takes) > 255:
            return Gone()
        check.take()
        opened.hold = replace(
            opened.hold,
            version=hold.version + 1,
            takes=tuple(takes.values()),
            demand=summed(hold.demand, top),
            window_starts_ms=check.window_starts_ms,
        )
        grown = replace(opened.hold, first_byte=hold.first_byte)
        return Reserved(grown, check.views(), (), check.windows, self.now_ms, place.record)

    async def settle(self, hold: Hold, charge: Charge, *, window_actuals: Sequence[int | None] = ()) -> Settled:
        place = self.places.get(self.partition(hold.account)) or self._place(self.partition(hold.account))
        account = self.accounts.setdefault(hold.account, Account())
        known = hold.hold_id in account.holds
        if known:
            account.free(hold.hold_id, window_actuals)
        mark = account.marks.get(hold.hold_id)
        if mark is None or mark.state is ChargeState.LAPSED:
            if mark is not None:
                account.add(mark.lines, mark.budgets, pending=-1)
                place.outbox.pop(mark.entry, None)
            self._mark(account, place, charge)
        return Settled("" if known else place.record, self.now_ms, known)

    async def release(self, hold: Hold) -> None:
        await self.release_id(hold.account, hold.hold_id)

    async def release_id(self, account: str, hold_id: str) -> None:
        found = self.accounts.get(account)
        if found is not None and hold_id in found.holds:
            found.free(hold_id, [0] * len(found.holds[hold_id].hold.demand.windows))

    async def renew(self, partition: int, holds: Sequence[Hold]) -> PartitionState:
        place = self._place(partition)
        self._amnesty(place, beating=True)
        for hold in holds:
            account = self.accounts.setdefault(hold.account, Account())
            opened = account.holds.get(hold.hold_id)
            mark = account.marks.get(hold.hold_id)
            if opened is None:
                if mark is not None and mark.state is ChargeState.SETTLED:
                    continue
                account.put(hold)
                self._open(account, hold)
                continue
            told = opened.hold.first_byte or hold.first_byte
            if hold.version > opened.hold.version:
                account.lift(opened.hold)
                account.put(hold)
                opened.hold = hold
            opened.hold = replace(opened.hold, first_byte=told, lease_ms=hold.lease_ms)
            self._lease(account, opened)
        return PartitionState(place.record, self.now_ms, len(place.outbox))

    async def load(self, snapshot: Snapshot, *, ticket: str) -> bool:
        self._place(self.partition(snapshot.account))
        account = self.accounts.get(snapshot.account)
        if account is None or account.ticket != (self.stamp, ticket) or snapshot.seq < account.seq:
            return False
        given = {state.wallet: state for state in snapshot.wallets}
        for name in {*given, *account.wallets}:
            old = account.wallets.get(name, Wallet())
            fresh = Wallet(old.warned_period_ms, old.warned_level)
            for grant in given[name].grants if name in given else ():
                before = old.grants.get(grant.number, Grant())
                fresh.grants[grant.number] = Grant(
                    grant.amount, grant.counted, before.pending, before.held,
                    grant.starts_at_ms, grant.expires_at_ms, grant.priority,
                )  # fmt: skip
            for number, before in old.grants.items():
                if number not in fresh.grants and (before.pending or before.held):
                    fresh.grants[number] = Grant(pending=before.pending, held=before.held)
            account.wallets[name] = fresh
        account.load_budgets(snapshot)
        account.kept = {seq: delta for seq, delta in account.kept.items() if seq > snapshot.seq}
        for _, delta in sorted(account.kept.items()):
            account.add(delta.lines, delta.budgets, counted=1)
        account.stamp, account.ticket = self.stamp, None
        account.seq, account.rev = snapshot.seq, snapshot.rev
        account.turn_at_ms, account.period_at_ms = snapshot.turn_at_ms, snapshot.period_at_ms
        account.absorb()
        return True

    async def confirm(self, *confirms: Confirm) -> None:
        for confirm in confirms:
            account = self.accounts.setdefault(confirm.account, Account())
            if confirm.state is ChargeState.SETTLED and confirm.hold_id in account.holds:
                account.free(confirm.hold_id, ())
        for confirm in confirms:
            self._confirm(confirm)

    def _confirm(self, confirm: Confirm) -> None:
        place = self._place(self.partition(confirm.account))
        account = self.accounts[confirm.account]
        for delta in sorted(confirm.deltas, key=lambda item: item.seq):
            if delta.seq <= account.seq or delta.seq in account.kept:
                continue
            account.add(delta.lines, delta.budgets, counted=1)
            if account.stamp == self.stamp and delta.seq == account.seq + 1:
                account.seq = delta.seq
            else:
                account.kept[delta.seq] = delta
        mark = account.marks.get(confirm.hold_id)
        if mark is not None and (mark.state is ChargeState.LAPSED or confirm.state is ChargeState.SETTLED):
            account.add(mark.lines, mark.budgets, pending=-1)
            place.outbox.pop(mark.entry, None)
            del account.marks[confirm.hold_id]
        elif mark is None:
            self._drop_orphans(place, confirm)
        if account.stamp == self.stamp:
            account.absorb()

    async def peek(self, account: str, *, ticket: str, wallets: Sequence[str]) -> AccountView | Stale:
        self._place(self.partition(account))
        found = self.accounts.get(account)
        if found is None or found.stamp != self.stamp:
            return self._stale(account, ticket)
        shown = []
        for name in wallets:
            grants = [
                GrantView(number, g.amount, g.counted, g.pending, g.held, g.expires_at_ms, g.starts_at_ms, g.priority)
                for number, g in found.wallets.get(name, Wallet()).grants.items()
            ]
            shown.append((view_of(name, grants, self.now_ms), tuple(grants)))
        budgets = tuple((number, starts, *sums) for (number, starts), sums in found.budgets.items())
        return AccountView(found.rev, found.seq, found.turn_at_ms, tuple(shown), budgets, len(found.holds), self.now_ms)

    async def mark_stale(self, account: str, *, ticket: str) -> str:
        self._place(self.partition(account))
        found = self.accounts.setdefault(account, Account())
        found.stamp, found.ticket = None, (self.stamp, ticket)
        return ticket

    async def outbox(self, partition: int, *, older_than_ms: int, count: int, after: str = "") -> list[OutboxEntry]:
        place = self.places.get(partition, Partition("", 0))
        behind = tuple(int(part) for part in after.split("-")) if after else (-1, 0)
        return [
            OutboxEntry(f"{entry[0]}-{entry[1]}", charge, max(0, self.now_ms - entry[0]))
            for entry, charge in place.outbox.items()
            if entry > behind and entry[0] <= self.now_ms - older_than_ms
        ][:count]

    async def sweep(self, partition: int, *, count: int) -> list[tuple[str, str, bool]]:
        place = self._place(partition)
        if self._amnesty(place, beating=True) > self.now_ms:
            return []
        due = sorted(
            (account.due_ms, name)
            for name, account in self.accounts.items()
            if self.partition(name) == partition and 0 < account.due_ms <= self.now_ms
        )
        return [(name, *ended) for _, name in due[:count] for ended in await self.lapse(name)]

    async def lapse(self, account: str, *, count: int = 64) -> list[tuple[str, bool]]:
        place = self._place(self.partition(account))
        found = self.accounts.get(account)
        return self._lapse_due(account, found, place, count) if found is not None else []

    async def sync_seq(self, account: str, last_seq: int) -> bool:
        self._place(self.partition(account))
        found = self.accounts.get(account)
        if found is None or found.stamp != self.stamp or found.seq >= last_seq:
            return False
        found.stamp, found.ticket = None, None
        return True

    async def lead(self, name: str, owner: str, ttl_ms: int) -> bool:
        held_by, until_ms = self.leads.get(name, (owner, 0))
        if held_by != owner and self.now_ms < until_ms:
            return False
        self.leads[name] = (owner, self.now_ms + ttl_ms)
        return True

    # --- parts of several verbs ---------------------------------------------------------------------------------

    def _place(self, partition: int) -> Partition:
        """The partition's record, made anew when absent or of another incarnation."""
        place = self.places.get(partition)
        if place is None:
            place = self.places[partition] = Partition("", 0)
        if place.stamp != self.stamp:
            place.stamp, place.created_ms = self.stamp, self.now_ms
            place.amnesty_until_ms, place.beat_ms = self.now_ms + self.amnesty_ms, self.now_ms
        return place

    def _drop_orphans(self, place: Partition, confirm: Confirm) -> None:
        """Entries of a charge that nothing points to: the account was removed by hand."""
        for entry, charge in list(place.outbox.items()):
            overtaken = charge.state is ChargeState.LAPSED or confirm.state is ChargeState.SETTLED
            if charge.hold_id == confirm.hold_id and overtaken and entry[0] <= self.now_ms - ORPHAN_AGE_MS:
                del place.outbox[entry]

    def _warming(self, place: Partition) -> bool:
        return place.created_ms <= self.now_ms < place.created_ms + self.reassert_wait_ms

    def _stale(self, name: str, ticket: str) -> Stale:
        """The ticket of this incarnation: the first nonce that found the account stale."""
        account = self.accounts.setdefault(name, Account())
        if account.ticket is not None and account.ticket[0] == self.stamp:
            return Stale(account.ticket[1])
        if ticket:
            account.ticket = (self.stamp, ticket)
        return Stale(ticket)

    def _repeat(self, account: Account, opened: OpenHold, place: Partition, *, told: bool) -> Reserved:
        """Nothing is taken: the hold as it is (but the caller's word on its first byte), the rest as it is now."""
        seen = Check(account, self.now_ms, _nothing(opened.hold.demand), (), growing=opened.hold)
        hold = replace(opened.hold, first_byte=told)
        return Reserved(hold, seen.views(), (), seen.windows, self.now_ms, place.record)

    def _open(self, account: Account, hold: Hold) -> None:
        account.holds[hold.hold_id] = opened = OpenHold(hold)
        self._lease(account, opened)

    def _lease(self, account: Account, opened: OpenHold) -> None:
        opened.due_ms = due_of(self.now_ms + opened.hold.lease_ms)
        if not account.due_ms or opened.due_ms < account.due_ms:
            account.due_ms = opened.due_ms

    def _amnesty(self, place: Partition, *, beating: bool) -> int:
        """Until when no lease of the partition lapses. An old beat means an outage: everybody gets time."""
        silence_ms = self.now_ms - place.beat_ms
        if silence_ms > self.amnesty_ms / 3 or silence_ms < 0:
            place.amnesty_until_ms, place.beat_ms = self.now_ms + self.amnesty_ms, self.now_ms
        elif beating and silence_ms > self.amnesty_ms / 12:
            place.beat_ms = self.now_ms
        return place.amnesty_until_ms

    def _lapse_due(self, name: str, account: Account, place: Partition, limit: int) -> list[tuple[str, bool]]:
        until_ms = self._amnesty(place, beating=False)
        lapsed = []
        if self.now_ms >= until_ms:
            ripe = [(held.due_ms, hold_id) for hold_id, held in account.holds.items() if held.due_ms <= self.now_ms]
            for _, hold_id in sorted(ripe)[:limit]:
                hold = account.free(hold_id, ())
                lapsed.append((hold_id, hold.first_byte))
                if hold.first_byte and hold_id not in account.marks:
                    self._mark(account, place, abandoned(name, hold))
        first = min((held.due_ms for held in account.holds.values()), default=0)
        account.due_ms = max(first, until_ms if self.now_ms < until_ms else 0) if first else 0
        return lapsed

    def _mark(self, account: Account, place: Partition, charge: Charge) -> None:
        entry = place.append(self.now_ms, charge)
        account.marks[charge.hold_id] = Mark(charge.state, entry, charge.lines, charge.budgets)
        account.add(charge.lines, charge.budgets, pending=1)


def abandoned(account: str, hold: Hold) -> Charge:
    """What a lapse after the first byte charges: each slot's ``abandon``, with the hold's note for the row."""
    lines: list[Take] = []
    for wallet in hold.demand.wallets:
        takes = [take for take in hold.takes if take.wallet == wallet.wallet]
        lines += split(takes, wallet.abandon) if takes else ()
    budgets = tuple(
        BudgetLine(item.number, item.starts_at_ms, item.abandon) for item in hold.demand.budgets if item.abandon
    )
    return Charge(account, hold.hold_id, ChargeState.LAPSED, tuple(lines), budgets, hold.note)


def _nothing(demand: Demand) -> Demand:
    """The same slots with amounts of 0."""
    return Demand(
        tuple(replace(item, amount=0, minimum=0) for item in demand.wallets),
        tuple(replace(item, amount=0) for item in demand.budgets),
        tuple(replace(item, amount=0) for item in demand.windows),
        demand.concurrency,
    )
