"""Whole installations under load: the real ``tollgate serve``, simulated models with a journal, callers, and the books.

A test is plain blocking code that injects faults, while callers run on a loop in a thread of their own.

    with fleet(tmp_path, workers=2) as running:
        account = running.account("pro")
        answer = running.call(account, output=5).result(30)
        with running.calling(account, callers=8) as calls: ...
        running.assert_books_balance(account)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import orjson
from sqlalchemy import text

from gateway.config.loading import load
from gateway.embedded import running_url
from gateway.errors import StoreUnavailable
from gateway.installation import Installation
from gateway.metrics import Metrics
from gateway.quota.keys import KeyHasher, display_prefix, new_key
from gateway.quota.states import States
from gateway.quota.turn import Turner, nonce
from gateway.simulator.child import Simulator
from gateway.store.common import wall_clock_ms
from gateway.store.store import Store, open_store
from limits.client import Client, connect
from limits.engine import Engine
from limits.keys import account_key, leases_key
from limits.model import AccountView, Stale
from tests.support.bills import Balance, tokens_served
from tests.support.gateways import PROVIDER_KEY, Served, config_text, served
from tests.support.processes import wait_until
from tests.support.simulators import child

T = TypeVar("T")
SECRET = "0123456789abcdef" * 4
ADMIN_TOKEN = "admin-token-of-the-tests"
ENVIRONMENT = {"TOLLGATE_SECRET": SECRET, "TOLLGATE_ADMIN_TOKEN": ADMIN_TOKEN}
STEPS = 1000  # of the tests' tokens
MESSAGES = "/v1/messages"
RECORD_SCORE = "-9000000000000000"  # of a partition's record whose amnesty ended long ago (limits/lua/prelude.lua)


class Loop:
    """An event loop in a thread, so that callers go on while the test blocks."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="callers", daemon=True)
        self._thread.start()

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T], within_s: float = 60.0) -> T:
        return self.start(work).result(within_s)

    def close(self) -> None:
        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await self._loop.shutdown_asyncgens()

        self.run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass(frozen=True, slots=True)
class Account:
    """An account with one key."""

    id: str
    key: str
    key_id: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one call came to. Times are ``time.monotonic`` seconds."""

    tag: str
    status: int  # 0: no HTTP answer at all
    sent_at_s: float
    headers_s: float  # until the headers
    seconds: float  # until the end
    headers: Mapping[str, str]
    body: bytes
    whole: bool  # the body came to its end in order

    @property
    def reason(self) -> str:
        """The refusal's reason, the error's type, or nothing."""
        if self.status < 400:
            return ""
        error = orjson.loads(self.body).get("error", {})
        detail = error.get("details") or {}
        told = (error.get("tollgate") or {}).get("reason") or detail.get("error_code") or error.get("code")
        return str(told or error.get("type"))

    @property
    def message(self) -> str:
        return str(orjson.loads(self.body).get("error", {}).get("message"))


@dataclass(slots=True)
class Calls:
    """Callers that call again and again; what they were answered, in the order of the ends."""

    answers: list[Answer] = field(default_factory=list)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def statuses(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for answer in list(self.answers):
            found[answer.status] = found.get(answer.status, 0) + 1
        return found

    def sent_after(self, at_s: float, status: int | None = None) -> list[Answer]:
        return [a for a in list(self.answers) if a.sent_at_s >= at_s and status in (None, a.status)]

    def wait_ok(self, after_s: float, *, within_s: float = 15.0, calls: int = 1) -> float:
        """Seconds from ``after_s`` until so many calls sent later had succeeded."""
        wait_until(lambda: len(self.sent_after(after_s, 200)) >= calls, what=f"{calls} calls succeed again: "
                   f"{self.statuses()}", within_s=within_s)  # fmt: skip
        return sorted(a.sent_at_s + a.seconds for a in self.sent_after(after_s, 200))[calls - 1] - after_s

    def wait_status(self, status: int, after_s: float, *, within_s: float = 15.0) -> Answer:
        """The first answer with this status to a call sent later."""
        found = wait_until(
            lambda: self.sent_after(after_s, status), what=f"an answer {status}: {self.statuses()}", within_s=within_s
        )
        return found[0]


@dataclass(slots=True)
class Fleet:
    """A running installation; ``url`` may name another replica's listener."""

    server: Served
    models: Simulator
    loop: Loop
    session: aiohttp.ClientSession
    installation: Installation
    store: Store
    client: Client
    engine: Engine
    states: States
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    # --- who -----------------------------------------------------------------------------------------------------

    def account(self, plan: str = "pro", **options: Any) -> Account:
        """A new account with a key."""
        return self.loop.run(self._account(plan, **options))

    async def _account(self, plan: str, **options: Any) -> Account:
        made = await self.store.accounts.create(
            options.pop("name", "Test"), now_ms=wall_clock_ms(), plan=plan, **options
        )
        key = new_key()
        digest = KeyHasher(self.installation.secret).digest(key)
        stored = await self.store.keys.create(
            digest=digest, prefix=display_prefix(key), account_id=made.id, now_ms=wall_clock_ms()
        )
        return Account(made.id, key, stored.id)

    # --- calls ---------------------------------------------------------------------------------------------------

    def call(self, account: Account, *, url: str | None = None, **options: Any) -> Future[Answer]:
        """One call; options as ``ask``."""
        return self.loop.start(self.ask(account, url=url, **options))

    async def ask(
        self,
        account: Account,
        *,
        url: str | None = None,
        output: int = 5,
        max_tokens: int | None = None,
        stream: bool = False,
        feature: str | None = None,
        simulate: str = "",
        started: asyncio.Event | None = None,
    ) -> Answer:
        """One Anthropic call under a tag of its own (its job, too). ``started`` is set at the body's first byte."""
        tag = f"{account.id[-12:]}-{next(self.numbers)}"
        headers = {"x-api-key": account.key, "anthropic-version": "2023-06-01", "Tollgate-Job": tag}
        if feature is not None:
            headers["Tollgate-Feature"] = feature
        said = f"[[simulate output={output} tag={tag} {simulate}]] Hello"
        body = {
            "model": "claude-haiku-4-5",
            "max_tokens": max_tokens or max(output, 1),
            "stream": stream,
            "messages": [{"role": "user", "content": said}],
        }
        at_s = time.monotonic()
        pieces: list[bytes] = []
        told: Mapping[str, str] = {}
        status, headers_s, whole = 0, 0.0, False
        try:
            async with self.session.post((url or self.server.url) + MESSAGES, json=body, headers=headers) as answer:
                status, told, headers_s = answer.status, answer.headers, time.monotonic() - at_s
                async for piece in answer.content.iter_any():
                    pieces.append(piece)
                    if started is not None:
                        started.set()
                whole = True
        except (aiohttp.ClientError, OSError):
            pass
        return Answer(tag, status, at_s, headers_s, time.monotonic() - at_s, told, b"".join(pieces), whole)

    @contextlib.contextmanager
    def calling(self, account: Account, *, callers: int = 4, pause_s: float = 0.02, **options: Any) -> Iterator[Calls]:
        """Callers that call again and again until the block ends; the last answers are waited for."""
        calls = Calls()

        async def caller() -> None:
            while not calls.stop.is_set():
                calls.answers.append(await self.ask(account, **options))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(calls.stop.wait(), pause_s)

        running = [self.loop.start(caller()) for _ in range(callers)]
        try:
            yield calls
        finally:
            self.loop._loop.call_soon_threadsafe(calls.stop.set)
            for each in running:
                each.result(60)

    def streams(self, account: Account, number: int, *, output: int, delay_ms: int, **options: Any) -> Streams:
        """Open so many streams, one token an event, and wait until each has begun."""
        begun = [asyncio.Event() for _ in range(number)]
        steps = f"chunk=1 delay={delay_ms}"
        answers = [
            self.call(account, output=output, stream=True, simulate=steps, started=event, **options) for event in begun
        ]

        async def all_begun() -> None:
            async with asyncio.timeout(30):
                for event in begun:
                    await event.wait()

        self.loop.run(all_begun())
        return Streams(answers)

    # --- the books -----------------------------------------------------------------------------------------------

    async def _rows(self, account: Account) -> list[dict[str, Any]]:
        query = text("SELECT * FROM usage WHERE account_id = :account ORDER BY seq")
        async with self.store.database.read() as connection:
            return [dict(row._mapping) for row in await connection.execute(query, {"account": account.id})]

    def rows(self, account: Account) -> list[dict[str, Any]]:
        """Its usage rows, in the order of their seq."""
        return self.loop.run(self._rows(account))

    async def _balance(self, account: Account, wallet: str) -> Balance | None:
        view = await self.engine.peek(account.id, ticket=nonce(), wallets=(wallet,))
        return None if isinstance(view, Stale) else self._balance_of(view)

    def _balance_of(self, view: AccountView) -> Balance:
        grants = [grant for _, states in view.wallets for grant in states]
        return Balance(
            granted=sum(grant.amount for grant in grants),
            counted=sum(grant.counted for grant in grants),
            pending=sum(grant.pending for grant in grants),
            held=sum(grant.held for grant in grants),
            holds_open=view.holds_open,
        )

    def balance(self, account: Account, wallet: str = "tokens") -> Balance | None:
        """Redis' side; None when it must be loaded before it counts."""
        return self.loop.run(self._balance(account, wallet))

    async def _used(self, account: Account, wallet: str) -> int:
        query = text("SELECT COALESCE(SUM(used), 0) FROM grants WHERE account_id = :account AND wallet = :wallet")
        async with self.store.database.read() as connection:
            found = await connection.execute(query, {"account": account.id, "wallet": wallet})
            return int(found.scalar_one())

    def told(self, account: Account) -> int:
        """Open holds of the account whose first byte Redis knows: a lapse charges those."""
        key = account_key(self.engine.partition(account.id), account.id)
        reply = self.loop.run(self.client.execute("HGETALL", key, key=key))
        fields = dict(zip(reply[::2], reply[1::2], strict=True))
        return sum(value[2] & 1 for name, value in fields.items() if name[:1] == b"h" and len(name) == 17)

    def used(self, account: Account, wallet: str = "tokens") -> int:
        """SQL's side: what its grants have spent, in steps."""
        return self.loop.run(self._used(account, wallet))

    def journal(self, **query: str | int) -> list[dict[str, Any]]:
        """The models' journal: what was really served."""

        async def read() -> list[dict[str, Any]]:
            async with self.session.get(f"{self.models.url}/journal", params=query) as answer:
                found: list[dict[str, Any]] = await answer.json()
                return found

        return self.loop.run(read())

    def last_entry(self) -> int:
        """The journal's newest entry: what a later ``journal(since=…)`` starts from."""
        return max((entry["id"] for entry in self.journal()), default=0)

    def at_rest(self, account: Account, wallet: str = "tokens", *, within_s: float = 20.0) -> Balance:
        """Wait until nothing is held or pending and Redis counts what SQL has; answers Redis' side."""
        seen: list[object] = []

        def rested() -> Balance | None:
            try:
                view = self.loop.run(self.states.view(account.id, (wallet,)))  # as its next call would find it
                found, used = self._balance_of(view), self.used(account, wallet)
            except StoreUnavailable:  # a database that is just back may be slow to answer us, too
                return None
            seen[:] = [found, used]
            return found if (found.holds_open, found.held, found.pending, found.counted) == (0, 0, 0, used) else None

        try:
            return wait_until(rested, what="the account is at rest", within_s=within_s)
        except AssertionError as error:
            raise AssertionError(f"{error}: Redis and SQL {seen}") from error

    def assert_charged_as_served(self, account: Account, *, since: int = 0, within_s: float = 20.0) -> int:
        """Every answer of the journal has exactly one settled row with its usage, and nothing else is charged.

        Answers how many. Calls of the account carry their tag as job.
        """
        mine = (entry for entry in self.journal(since=since) if entry["tag"].startswith(f"{account.id[-12:]}-"))
        entries = {entry["tag"]: entry for entry in mine if tokens_served(entry)}

        def settled() -> list[dict[str, Any]] | None:
            try:
                rows = [row for row in self.rows(account) if row["state"] == "settled"]
            except StoreUnavailable:
                return None
            return rows if len(rows) >= len(entries) else None

        rows = wait_until(settled, what=f"{len(entries)} answers are charged: {len(self.rows(account))} rows",
                          within_s=within_s)  # fmt: skip
        jobs = [row["job"] for row in rows]
        assert sorted(jobs) == sorted(entries), (
            f"lost {entries.keys() - set(jobs)}, without service "
            f"{set(jobs) - entries.keys()}, of {len(rows)} rows and {len(entries)} answers"
        )
        wrong = {
            row["job"]: (row["charged"], STEPS * tokens_served(entries[row["job"]]), row["basis"], row["end"])
            for row in rows
            if row["charged"] != STEPS * tokens_served(entries[row["job"]])
        }
        assert not wrong, f"charged, served: {wrong}"
        return len(rows)

    def assert_audit_finds_nothing(self) -> dict[str, Any]:
        """``tollgate audit``: difference 0, and nothing moves any more."""
        found: dict[str, Any] = self.server.cli("audit", check=False)
        assert (found["difference"], found["moving"]) == (0, 0), found
        return found

    def end_amnesty(self) -> None:
        """Make the partitions' records old: a new Redis lets no lease lapse for a while; a test has no such time."""

        async def make_old(partition: int) -> None:
            key = leases_key(partition)
            await self.engine.renew(partition, ())
            record = (await self.client.execute("ZRANGE", key, 0, 0, key=key))[0]
            await self.client.execute("ZADD", key, RECORD_SCORE, record, key=key)

        async def make_all_old() -> None:
            await asyncio.gather(*(make_old(partition) for partition in range(self.engine.partitions)))

        self.loop.run(make_all_old())

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a family's samples that carry these labels."""

        async def read() -> str:
            async with self.session.get(f"{self.server.admin_url}/metrics") as answer:
                return await answer.text()

        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = [line for line in self.loop.run(read()).splitlines() if line.startswith((f"{name}{{", f"{name} "))]
        assert not lines or all(f"{label}=" in lines[0] for label in labels), f"{name} has other labels: {lines[0]}"
        return sum(float(line.rpartition(" ")[2]) for line in lines if all(each in line for each in wanted))

    def get(self, url: str) -> int:
        """The status of a plain GET; 0 = nobody answers."""

        async def ask() -> int:
            try:
                async with self.session.get(url) as answer:
                    return answer.status
            except (aiohttp.ClientError, OSError):
                return 0

        return self.loop.run(ask())


@dataclass(frozen=True, slots=True)
class Streams:
    """Streams under way."""

    answers: list[Future[Answer]]

    def wait(self, within_s: float = 60.0) -> list[Answer]:
        return [answer.result(within_s) for answer in self.answers]


# --- starting ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def fleet(folder: Path, *, models: Simulator | None = None, server: str = "", **changes: Any) -> Iterator[Fleet]:
    """Start an installation with two workers and wait until it is ready; everything ends with the block.

    ``changes`` as ``config_text`` (redis, database, plans, lease, …); ``server``: more of its server section.
    """
    os.environ.setdefault("TEST_PROVIDER_KEY", PROVIDER_KEY)
    with contextlib.ExitStack() as stack:
        simulator = models or stack.enter_context(child())
        running = stack.enter_context(served(folder, written(simulator, server, **changes), env=ENVIRONMENT))
        yield stack.enter_context(inspected(running, simulator))


def written(models: Simulator, server: str = "", **changes: Any) -> str:
    """The tests' config with two workers, a secret and an admin token."""
    text_of_config = config_text(models.url, **{"workers": 2, **changes})
    more = 'secret: "${TOLLGATE_SECRET}", admin_token: "${TOLLGATE_ADMIN_TOKEN}", ' + (f"{server}, " if server else "")
    return text_of_config.replace("server: {", f"server: {{{more}", 1)


@contextlib.contextmanager
def inspected(server: Served, models: Simulator) -> Iterator[Fleet]:
    """Open the books of a running server."""
    with contextlib.ExitStack() as stack:
        loop = Loop()
        stack.callback(loop.close)
        configured = load(server.config, {**os.environ, **server.env})
        installation = Installation(configured, server.data.resolve(), configured.settings.secret)
        redis = configured.settings.redis
        url = running_url(server.data) if redis == "embedded" else redis
        assert url is not None, "there is no running Redis"
        yield loop.run(_open(server, models, loop, installation, url, stack))


async def _open(
    server: Served, models: Simulator, loop: Loop, installation: Installation, url: str, stack: contextlib.ExitStack
) -> Fleet:
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None, sock_connect=10)
    )
    stack.callback(lambda: loop.run(session.close()))
    store = open_store(
        installation.config.settings.database, folder=installation.data, catalog=lambda: installation.config.catalog
    )
    stack.callback(lambda: loop.run(store.close()))
    client = connect(url, command_timeout_s=2.0)
    stack.callback(lambda: loop.run(client.close()))
    partitions = await store.installed_partitions(now_ms=wall_clock_ms())
    engine = Engine(client, partitions=partitions, amnesty_ms=installation.config.settings.amnesty_ms)
    states = States(engine, Turner(engine, store.state, Metrics(None)))
    return Fleet(server, models, loop, session, installation, store, client, engine, states)
