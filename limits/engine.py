"""The engine's verbs: pack the arguments, run one script, unpack the reply.

Rules
1. One script per verb, one round trip per script; nothing is retried here. A lost reply is
   EngineUnavailable(sent=True): every verb may be sent again, and the same id means the same thing.
2. Decisions are made in the scripts, on the server's clock. Here are no limits, no state and no cache.
3. Bad arguments raise ValueError before anything is sent.

Not here: connections (``client``), layouts (``codec``, ``replies``), key names (``keys``), what to do about an answer.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Sequence
from typing import Any, Final

from limits import codec, keys, replies
from limits.client import Argument, Client
from limits.growth import aligned, summed
from limits.model import (
    AccountView,
    Charge,
    Confirm,
    Demand,
    ExtendReply,
    Hold,
    OpenHold,
    OutboxEntry,
    PartitionState,
    Reserve,
    ReserveReply,
    Settled,
    Snapshot,
    Stale,
)
from limits.replies import Asked
from limits.resp import Spelled, blanks
from limits.scripts import script

HOLDS_PER_RENEW_MAX: Final = 512
CONFIRMS_PER_CALL: Final = 32
BUCKETS_PEEKED_MAX: Final = 64
LAPSES_PER_CALL: Final = 64
HOLDS_SCANNED_AT_ONCE: Final = 500
_POLICY = struct.Struct("<qQIIQI")
# The arguments of the two scripts that every call runs, but for the fields of its demand
_RESERVE: Final = blanks(None, None, None, None, None, None, keys.META, None)
_SETTLE: Final = blanks(None, None, None, None, None, None, keys.META, None, None)


class Engine:
    """Accounts, wallets, budgets, windows and holds in one Redis, Valkey or Redis Cluster.

    ``reassert_wait_ms``: how long a partition admits nothing after its record was made, so that live holds come back
    first. ``amnesty_ms``: the usual lease; for so long no lease lapses after an outage or data loss.
    ``clock_offset_ms`` moves the server's clock and ``clock_ms`` makes it stand still at a time, for tests.
    """

    def __init__(
        self,
        client: Client,
        *,
        partitions: int = 256,
        reassert_wait_ms: int = 1000,
        amnesty_ms: int = 60_000,
        outbox_max_entries: int = 100_000,
        outbox_max_age_ms: int = 600_000,
        clock_offset_ms: int = 0,
        clock_ms: int = 0,
    ) -> None:
        self.client = client
        self.partitions = partitions
        self._limits = (reassert_wait_ms, amnesty_ms, outbox_max_age_ms, outbox_max_entries)
        self.set_clock(offset_ms=clock_offset_ms, still_ms=clock_ms)

    def set_clock(self, *, offset_ms: int = 0, still_ms: int = 0) -> None:
        """For tests: what is added to the server's time, or the time at which the clock stands still (0 = it runs)."""
        self._policy = _POLICY.pack(offset_ms, still_ms, *self._limits)

    def partition(self, account: str) -> int:
        return keys.home_of(account, self.partitions).partition

    async def reserve(self, request: Reserve, *, ticket: str) -> ReserveReply:
        """Take the whole demand or nothing; nothing when dry. ``ticket``: a nonce, proposed in case the account is
        found stale.

        Raises EngineUnavailable, ScriptRejected, ValueError."""
        packed = codec.layout(request.demand)
        names = keys.hold_names(request.hold_id)
        if not (0 < request.lease_ms < 2**32 and 0 <= request.deadline_ms < codec.TIME_MAX and request.rev >= 0):
            raise ValueError(
                f"no such lease, deadline or rev: {request.lease_ms}, {request.deadline_ms}, {request.rev}"
            )
        lease_ms, warn_at = (0, ()) if request.dry else (request.lease_ms, request.warn_at)
        call = struct.pack(f"<16sQIQ{len(warn_at)}H", names.id, request.rev, lease_ms, request.deadline_ms, *warn_at)
        policy, tail, limits, fields = self._policy, packed.slots + request.note, packed.limits, packed.fields
        nonce, idempotency = ticket.encode(), request.idempotency
        given = _RESERVE % (
            len(policy), policy, len(call), call, len(tail), tail, len(limits), limits, len(nonce), nonce,
            len(idempotency), idempotency, len(names.field), names.field,
        )  # fmt: skip
        reply = await self._send("reserve", request.account, Spelled(8 + fields.count, given + fields.data))
        asked = Asked(
            request.account, request.hold_id, request.lease_ms, request.note, request.demand, request.demand, packed
        )
        return replies.decode_demand(reply, asked)

    async def extend(self, hold: Hold, more: Demand, *, ticket: str = "") -> ExtendReply:
        """Take ``more`` on top, or nothing; every slot of it must be one of the hold's. Windows: those of now.

        Raises EngineUnavailable, ScriptRejected, ValueError."""
        top = aligned(hold.demand, more)
        grown = summed(hold.demand, top)
        asked, packed = codec.layout(top), codec.layout(grown)
        names = keys.hold_names(hold.hold_id)
        args = (
            struct.pack("<16sH", names.id, hold.version),
            asked.slots,
            asked.limits,
            packed.slots + hold.note,
            ticket,
        )
        head, fields = Spelled.of(self._policy, *args, keys.META, names.field), packed.fields
        reply = await self._send("extend", hold.account, Spelled(head.count + fields.count, head.data + fields.data))
        about = Asked(
            hold.account, hold.hold_id, hold.lease_ms, hold.note, grown, top, asked, hold.window_starts_ms,
            hold.first_byte,
        )  # fmt: skip
        return replies.decode_extend(reply, about)

    async def settle(self, hold: Hold, charge: Charge, *, window_actuals: Sequence[int | None] = ()) -> Settled:
        """End a hold with its charge; never refused. ``window_actuals``: what each window of the demand really took
        (None or nothing at all: as reserved). Raises EngineUnavailable, ScriptRejected, ValueError."""
        packed = codec.layout(hold.demand)
        names = keys.hold_names(hold.hold_id)
        actuals = b""
        if window_actuals:
            if len(window_actuals) != len(packed.windows):
                raise ValueError(f"{len(packed.windows)} windows, but {len(window_actuals)} actuals")
            used = [-1 if window_actuals[index] is None else window_actuals[index] for index in packed.windows]
            actuals = struct.pack(f"<{len(used)}q", *used)
        fields = codec.Fields(packed.settled)
        vector, lines = codec.encode_lines(charge.lines, charge.budgets, fields)
        encoded, at = codec.encode_charge(charge, vector)
        policy, place = self._policy, b"%d" % at
        given = _SETTLE % (
            len(policy), policy, len(names.id), names.id, len(encoded), encoded, len(place), place,
            len(actuals), actuals, len(lines), lines, len(names.field), names.field, len(names.mark), names.mark,
        )  # fmt: skip
        others = packed.fields
        if len(fields) > len(packed.settled):  # lines of the charge live elsewhere, too
            others = Spelled.of(*list(fields)[3:])
        reply = await self._send("settle", hold.account, Spelled(9 + others.count, given + others.data))
        return replies.decode_settled(reply)

    async def release(self, hold: Hold) -> None:
        """End a hold that was not served: no charge, everything back. Raises EngineUnavailable."""
        await self.release_id(hold.account, hold.hold_id)

    async def release_id(self, account: str, hold_id: str) -> bool:
        """The same for a reserve whose reply never came, once its deadline has passed; whether it was open.

        Raises EngineUnavailable."""
        return bool(await self._run("release", account, keys.hold_names(hold_id).id))

    async def open_holds(self, account: str) -> tuple[OpenHold, ...]:
        """What is in flight, the oldest first: for people, who ask seldom. It looks through the account's fields in
        pieces, so that nobody waits for it. Raises EngineUnavailable."""
        key = keys.home_of(account, self.partitions).keys[0]
        found: dict[str, OpenHold] = {}
        cursor = b"0"
        while True:
            cursor, fields = await self.client.execute(
                b"HSCAN", key, cursor, b"MATCH", keys.HOLD + b"*", b"COUNT", HOLDS_SCANNED_AT_ONCE, key=key
            )
            for name, packed in zip(fields[::2], fields[1::2], strict=True):
                hold = codec.decode_hold(keys.hold_text(name[1:]), packed)
                found[hold.hold_id] = hold
            if int(cursor) == 0:
                return tuple(sorted(found.values(), key=lambda hold: hold.created_at_ms))

    async def renew(self, partition: int, holds: Sequence[Hold]) -> PartitionState:
        """Beat the partition, and upsert live holds of its accounts (at most 512).

        Raises EngineUnavailable, ValueError."""
        if len(holds) > HOLDS_PER_RENEW_MAX:
            raise ValueError(f"at most {HOLDS_PER_RENEW_MAX} holds per renew")
        accounts: dict[str, int] = {}
        grouped: list[tuple[int, bytes]] = []
        for hold in holds:
            place = accounts.setdefault(hold.account, len(accounts) + 1)
            whole = codec.encode_hold(hold, codec.layout(hold.demand))
            head = struct.pack("<H16sI", place, keys.hold_names(hold.hold_id).id, hold.lease_ms)
            grouped.append((place, head + whole))
        grouped.sort(key=lambda item: item[0])
        own = [keys.account_key(partition, account) for account in accounts]
        reply = await self.client.evalsha(
            script("renew"),
            [keys.outbox_key(partition), keys.leases_key(partition), *own],
            [self._policy, *(packed for _, packed in grouped)],
        )
        return replies.decode_partition(reply)

    async def load(self, snapshot: Snapshot, *, ticket: str) -> bool:
        """Put a snapshot, read after the ticket was given, into a stale account. False: the ticket does not stand, or
        the snapshot is older than the watermark. Raises EngineUnavailable, ScriptRejected, ValueError."""
        head, args = codec.encode_snapshot(snapshot)
        return bool(await self._run("load", snapshot.account, ticket, head, *args))

    async def confirm(self, *confirms: Confirm) -> None:
        """SQL has these charges of one account (at most ``CONFIRMS_PER_CALL``, no hold twice): count their deltas, each
        once; drop what was pending. Raises EngineUnavailable, ScriptRejected, ValueError."""
        accounts, holds = {item.account for item in confirms}, {item.hold_id for item in confirms}
        if len(accounts) != 1 or len(holds) != len(confirms) or len(confirms) > CONFIRMS_PER_CALL:
            raise ValueError(f"1 to {CONFIRMS_PER_CALL} charges of one account, no hold twice")
        fields = codec.Fields.of(keys.META)
        packed = b"".join([codec.encode_confirm(item, fields) for item in sorted(confirms, key=_first_seq)])
        await self._run("confirm", confirms[0].account, packed, *fields)

    async def peek(self, account: str, *, ticket: str, wallets: Sequence[str]) -> AccountView | Stale:
        """What Redis holds: the wallets named, and up to 512 budgets. Raises EngineUnavailable."""
        pairs = ((keys.wallet_field(wallet), keys.list_field(wallet)) for wallet in wallets)
        fields = (keys.META, *(field for pair in pairs for field in pair))
        reply = await self._run("peek", account, ticket, BUCKETS_PEEKED_MAX, *fields)
        if isinstance(reply, bytes):
            return Stale(reply[1:].decode())
        return replies.decode_view(reply, wallets)

    async def mark_stale(self, account: str, *, ticket: str) -> str:
        """A push: nothing is admitted before a load under this new ticket, which is answered.

        Raises EngineUnavailable."""
        await self._run("mark_stale", account, ticket)
        return ticket

    async def outbox(self, partition: int, *, older_than_ms: int, count: int, after: str = "") -> list[OutboxEntry]:
        """Charges that wait for SQL longer than that, oldest first, after an entry id. Raises EngineUnavailable."""
        args = (self._policy, older_than_ms, count, after)
        now, entries = await self.client.evalsha(script("outbox"), [keys.outbox_key(partition)], args)
        return [codec.decode_entry(entry_id, fields[1], int(now)) for entry_id, fields in entries]

    async def outbox_entries(self) -> int:
        """How many charges wait for SQL, in all partitions. Raises EngineUnavailable."""
        outboxes = [keys.outbox_key(partition) for partition in range(self.partitions)]
        return sum(await asyncio.gather(*(self.client.execute(b"XLEN", outbox, key=outbox) for outbox in outboxes)))

    async def sweep(self, partition: int, *, count: int) -> list[tuple[str, str, bool]]:
        """End the dead leases of up to ``count`` accounts; answers (account, hold id, whether it was charged).

        Raises EngineUnavailable."""
        lease_keys = [keys.outbox_key(partition), keys.leases_key(partition)]
        due = await self.client.evalsha(script("sweep"), lease_keys, [self._policy, count])
        accounts = [name.decode() for name in due]
        lapsed = await asyncio.gather(*(self.lapse(account) for account in accounts))
        return [(account, *end) for account, ended in zip(accounts, lapsed, strict=True) for end in ended]

    async def lapse(self, account: str, *, count: int = LAPSES_PER_CALL) -> list[tuple[str, bool]]:
        """End dead leases of an account; answers (hold id, whether it was charged). Raises EngineUnavailable."""
        ended = await self._run("lapse", account, count)
        return [(keys.hold_text(item[1:]), item[:1] == b"1") for item in ended]

    async def sync_seq(self, account: str, last_seq: int) -> bool:
        """SQL's last seq, some time old: a live account whose watermark is below becomes stale (True)."""
        return bool(await self._run("sync_seq", account, last_seq))

    async def lead(self, name: str, owner: str, ttl_ms: int) -> bool:
        """Take or keep the lease of this name. Raises EngineUnavailable."""
        return bool(await self.client.evalsha(script("lead"), [keys.leader_key(name)], [self._policy, owner, ttl_ms]))

    def _run(self, name: str, account: str, *args: Argument) -> Awaitable[Any]:
        return self._send(name, account, (self._policy, *args))

    def _send(self, name: str, account: str, args: Sequence[Argument] | Spelled) -> Awaitable[Any]:
        return self.client.evalsha(script(name), keys.home_of(account, self.partitions).keys, args)


def _first_seq(confirm: Confirm) -> int:
    """In order of the account's seqs, so that its watermark moves at once."""
    deltas = confirm.deltas
    return deltas[0].seq if len(deltas) == 1 else min((delta.seq for delta in deltas), default=0)
