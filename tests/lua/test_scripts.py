"""The scripts as such: how they are put together, what they refuse by themselves, and where they may run."""

from __future__ import annotations

import re
import struct
import time
import uuid

import pytest

from limits import codec, keys
from limits.client import Client
from limits.engine import CONFIRMS_PER_CALL, Engine
from limits.errors import EngineUnavailable, ScriptRejected
from limits.model import BudgetLine, Charge, ChargeState, Confirm, Hold, Late, Reserve, Reserved, Stale
from limits.scripts import NAMES, SHARED, compose, parse, read, script
from tests.support import servers
from tests.support.clients import client_of
from tests.support.lab import ACCOUNT, LEASE_MS, Lab, budget, concurrency, together, wallet, window

# --- how a script is put together ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_script_carries_all_that_it_reaches_and_nothing_else(name: str) -> None:
    """Each shared local costs time at every call."""
    text = script(name).source.decode()
    shared = parse([read(file) for file in SHARED])
    defined = set(re.findall(r"^local function (\w+)", text, re.MULTILINE))
    unused = [word for word in defined if len(re.findall(rf"\b{word}\b", text)) == 1]
    assert not unused
    named = {word for block in shared.blocks for word in block.names}
    used = set(re.findall(r"\b\w+(?=\()", re.sub(r"'[^']*'", "''", text)))
    assert used & named <= defined
    assert not shared.constants.keys() & set(re.findall(r"\b[A-Z_]+\b", re.sub(r"'[^']*'", "''", text)))
    assert text.startswith("#!lua") and "--" not in text


def test_what_is_seldom_needed_is_defined_when_it_is_called() -> None:
    blocks = (
        "local A, B = 1, 'x'",
        "local function often()\n  return A\nend",
        "local function rare()\n  return often() .. B\nend",
    )
    shared = parse(blocks)
    text = compose("-- Flags: none\n-- Seldom: rare\noften()\nif KEYS then return rare(2) end", shared)
    assert text.splitlines() == [
        "#!lua",
        "local function often()",
        "  return 1",
        "end",
        "local function rare(...)",
        "local function rare()",
        "  return often() .. 'x'",
        "end",
        "return rare(...)",
        "end",
        "often()",
        "if KEYS then return rare(2) end",
    ]


# --- what a script refuses, whoever sends it -----------------------------------------------------------------------


class Raw:
    """Reserve's arguments, so that one can be spoilt."""

    def __init__(self, lab: Lab) -> None:
        packed = codec.layout(together(wallet(5), budget(5, 9), window(1, 5), concurrency(1)))
        hold_id = uuid.uuid4().bytes
        self.keys = [keys.account_key(0, ACCOUNT), keys.outbox_key(0), keys.leases_key(0)]
        self.policy = struct.pack("<qQIIQI", 0, lab.now_ms, 0, 0, 600_000, 100)
        self.call = struct.pack("<16sQIQ", hold_id, 1, LEASE_MS, 0)
        self.slots, self.limits = packed.slots, packed.limits
        self.fields = [keys.META, keys.HOLD + hold_id, *list(packed.settled)[3:]]

    async def send(self, client: Client) -> bytes:
        args = [self.policy, self.call, self.slots, self.limits, b"ticket", b"", *self.fields]
        answer: bytes = await client.evalsha(script("reserve"), self.keys, args)
        return answer


async def test_an_amount_beyond_what_is_exact_is_refused_by_the_script(lab: Lab) -> None:
    await lab.ready(100)
    raw = Raw(lab)
    for amount in (2**53, 2**53 + 1, 2**63, 2**64 - 1):
        raw.slots = struct.pack("<B8Q", codec.WIDE + 2, amount, *[0] * 7) + Raw(lab).slots[1 + 6 * 8 :]
        with pytest.raises(ScriptRejected, match="LIMITS an amount is out of range"):
            await raw.send(lab.client)
    assert (await lab.view()).holds_open == 0


@pytest.mark.parametrize("part", ["policy", "call", "slots", "limits"])
async def test_a_truncated_argument_is_refused_and_writes_nothing(lab: Lab, part: str) -> None:
    await lab.ready(100)
    whole = Raw(lab)
    names = sum(len(name) for name in (b" tokens", b"K", bytes(16)))  # read when the hold ends, not here
    for length in range(len(getattr(whole, part)) - (names if part == "slots" else 0)):
        raw = Raw(lab)
        setattr(raw, part, getattr(raw, part)[:length])
        if part == "call" and length >= struct.calcsize("<16sQIQ"):
            continue
        with pytest.raises(ScriptRejected):
            await raw.send(lab.client)
    assert (await lab.view()).holds_open == 0
    assert (await lab.wallet()).available == 100


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"renew"}))
async def test_a_script_counts_its_keys_and_arguments(lab: Lab, name: str) -> None:
    with pytest.raises(ScriptRejected):
        await lab.client.evalsha(script(name), [b"{p000}:x"] * 2 if name != "sweep" else [b"{p000}:x"], [b"\0" * 36])


# --- over maxmemory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [servers.valkey, servers.redis7], ids=["valkey", "redis7"])
async def test_over_maxmemory_nothing_begins_and_everything_ends(start: type[servers.valkey]) -> None:
    with start(extra=("--maxmemory-policy", "noeviction")) as server:
        async with client_of(server.url) as client:
            lab = Lab(client)
            await lab.ready(1_000)
            holds = [await lab.told(await lab.hold(together(wallet(10, abandon=1), window(1, 99)))) for _ in range(5)]
            await client.execute("CONFIG", "SET", "maxmemory", "100kb")
            with pytest.raises(EngineUnavailable, match="OOM"):
                await lab.ask(wallet(10))
            with pytest.raises(EngineUnavailable, match="OOM"):
                await lab.engine.extend(holds[0], wallet(10))
            charge = await lab.settle(holds[0], 7)
            await lab.engine.release(holds[1])
            await lab.engine.renew(0, holds[2:4])
            lab.advance(2 * LEASE_MS)
            assert len(await lab.engine.sweep(0, count=10)) == 3
            await lab.commit(charge)
            await lab.reap()
            assert await lab.load()
            assert ((await lab.view()).holds_open, (await lab.wallet()).available) == (0, 990)


# --- on a cluster --------------------------------------------------------------------------------------------------


async def test_every_key_of_a_script_is_declared_and_of_one_slot(cluster_url: str) -> None:
    """Three nodes refuse an undeclared or foreign key; 64 accounts reach all of them."""
    async with client_of(cluster_url) as client:
        engine = Engine(client, partitions=16, reassert_wait_ms=0, amnesty_ms=0)
        for index in range(64):
            account = f"account {index} {{p000}}"
            await everything(engine, account)


async def everything(engine: Engine, account: str) -> None:
    """Every verb once."""
    lab = Lab(engine.client)
    lab.engine = engine
    demand = together(wallet(10, abandon=1), budget(10, 90), window(1, 9), concurrency(9))
    request = lab.request(demand, rev=1)
    request = Reserve(account, request.hold_id, 1, demand, LEASE_MS, note=b"note")
    assert await engine.reserve(request, ticket="t") == Stale("t")
    lab.ledger.grant(account, "tokens", 100)
    assert await engine.load(lab.ledger.snapshot(account, 1), ticket="t")
    answer = await engine.reserve(request, ticket="t")
    assert isinstance(answer, Reserved)
    grown = await engine.extend(answer.hold, wallet(5))
    assert isinstance(grown, Reserved)
    partition = engine.partition(account)
    await engine.renew(partition, [grown.hold])
    charge = Charge(account, grown.hold.hold_id, ChargeState.SETTLED, (), (BudgetLine(1, 5, 1),), b"")
    assert (await engine.settle(grown.hold, charge)).known
    entries = await engine.outbox(partition, older_than_ms=-60_000, count=100)
    assert charge in [entry.charge for entry in entries]
    await engine.confirm(lab.ledger.commit(charge))
    await engine.release_id(account, grown.hold.hold_id)
    assert await engine.sweep(partition, count=9) == []
    assert not await engine.sync_seq(account, 1)
    await engine.mark_stale(account, ticket="u")
    assert isinstance(await engine.peek(account, ticket="v", wallets=("tokens",)), Stale)


async def test_declared_keys_exist_from_the_first_call_on(lab: Lab) -> None:
    """A missing declared key would make a whole slot's migration answer TRYAGAIN."""
    lab.grant(100)
    await lab.engine.reserve(lab.request(wallet(1)), ticket="t")
    names = [keys.account_key(0, ACCOUNT), keys.outbox_key(0), keys.leases_key(0)]
    assert await lab.client.execute("EXISTS", *names) == 3
    assert await lab.load("t")
    await lab.commit(await lab.settle(await lab.hold(wallet(1)), 1))
    assert await lab.client.execute("EXISTS", *names) == 3


# --- the server's clock --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset_ms", [0, -3_600_000, 86_400_000])
async def test_time_is_the_servers_own_plus_the_offset(lab: Lab, offset_ms: int) -> None:
    lab.engine.set_clock(offset_ms=offset_ms)
    before_ms = int(time.time() * 1000)
    state = await lab.engine.renew(0, [])
    assert before_ms - 1_000 <= state.server_ms - offset_ms <= int(time.time() * 1000) + 1_000
    answer = await lab.engine.reserve(lab.request(wallet(1), deadline_ms=state.server_ms - 1), ticket="t")
    assert isinstance(answer, Late)


async def test_entry_ids_grow_when_the_clock_goes_back(lab: Lab) -> None:
    await lab.ready(100)
    holds = [await lab.hold(wallet(1)) for _ in range(3)]
    for hold in holds:
        await lab.settle(hold, 1)
        lab.advance(-5_000)
    entries = await lab.engine.outbox(0, older_than_ms=-60_000, count=10)
    assert [entry.charge.hold_id for entry in entries] == [hold.hold_id for hold in holds]
    for entry in entries:
        await lab.engine.confirm(lab.ledger.commit(entry.charge))
    assert await lab.engine.outbox(0, older_than_ms=-60_000, count=10) == []


async def test_a_call_confirms_charges_of_one_account_each_once(lab: Lab) -> None:
    one, other = (Confirm(ACCOUNT, str(uuid.uuid4()), ChargeState.SETTLED, ()) for _ in range(2))
    foreign = Confirm("other", str(uuid.uuid4()), ChargeState.SETTLED, ())
    for wrong in ((), (one, one), (one, foreign), (one, other) * CONFIRMS_PER_CALL):
        with pytest.raises(ValueError, match="charges of one account"):
            await lab.engine.confirm(*wrong)


async def test_a_confirm_of_nothing_known_is_no_error(lab: Lab) -> None:
    empty = Confirm(ACCOUNT, str(uuid.uuid4()), ChargeState.SETTLED, ())
    await lab.engine.confirm(empty)
    assert isinstance(Hold, type) and await lab.is_stale()
