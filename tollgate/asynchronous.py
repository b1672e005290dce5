"""The metering API for programs that await. The same as ``tollgate.client``, on aiohttp.

    async with AsyncClient("https://tollgate.example.com", os.environ["TOLLGATE_KEY"]) as client:
        await client.use(service="sms", quantity=7)
        async with await client.hold(service="outbound_call", quantity=1, ttl=60) as hold:
            await hold.settle(quantity="61.2s")

Rules as there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import aiohttp

from tollgate import wire
from tollgate.client import RENEWALS_PER_TTL
from tollgate.errors import MeteringError
from tollgate.wire import HoldState, Item, Quantity, Use, Wire, measure


class AsyncClient:
    """As ``tollgate.client.Client``. ``session``: one of the caller's, which it closes itself."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        account: str | None = None,
        patience: float = 15.0,
        timeout: float = 15.0,
        session: aiohttp.ClientSession | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._wire = Wire(key, account)
        self._patience_s = patience
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._session, self._is_mine = session, session is None

    async def check(self, **item: Any) -> Use:
        """What ``use`` would come to; nothing is taken. Takes the fields of ``Item``. Raises MeteringError."""
        return wire.use_of(await self._ask("POST", "/api/v1/usage", {**Item(**item).body(), "dry_run": True}))

    async def use(self, *, idempotency_key: str | None = None, **item: Any) -> Use:
        """Check and charge. Takes the fields of ``Item``. Raises MeteringError."""
        return wire.use_of(await self._ask("POST", "/api/v1/usage", Item(**item).body(), idempotency_key))

    async def use_many(self, items: Iterable[Item], *, idempotency_key: str | None = None) -> list[Use | MeteringError]:
        """Several at once, in order; those that were refused are answered as errors. Raises MeteringError."""
        body = [item.body() for item in items]
        return wire.uses_of(await self._ask("POST", "/api/v1/usage", body, idempotency_key))

    async def hold(self, *, ttl: int | None = None, idempotency_key: str | None = None, **item: Any) -> AsyncHold:
        """Set aside, in an ``async with`` block. Takes the fields of ``Item``. Raises MeteringError."""
        body = {**Item(**item).body(), **({} if ttl is None else {"ttl": ttl})}
        state = wire.hold_of(await self._ask("POST", "/api/v1/holds", body, idempotency_key))
        return AsyncHold(self, state)

    async def look(self, hold_id: str) -> HoldState:
        """A hold as it stands, or what a metered call came to. Raises MeteringError."""
        return wire.hold_of(await self._ask("GET", f"/api/v1/holds/{hold_id}"))

    async def extend(
        self, hold_id: str, *, quantity: Quantity | None = None, amount: Quantity | None = None,
        tokens: Mapping[str, int] | None = None, ttl: int | None = None, idempotency_key: str | None = None,
    ) -> HoldState:  # fmt: skip
        """Take more, give it more time, or both. Raises MeteringError: Refused when that is not there."""
        body = {**measure(quantity, amount, tokens), **({} if ttl is None else {"ttl": ttl})}
        return wire.hold_of(await self._ask("POST", f"/api/v1/holds/{hold_id}/extend", body, idempotency_key))

    async def settle(
        self, hold_id: str, *, quantity: Quantity | None = None, amount: Quantity | None = None,
        tokens: Mapping[str, int] | None = None,
    ) -> HoldState:  # fmt: skip
        """End it with what it really was; without a word as held. Raises MeteringError."""
        body = measure(quantity, amount, tokens)
        return wire.hold_of(await self._ask("POST", f"/api/v1/holds/{hold_id}/settle", body))

    async def release(self, hold_id: str) -> HoldState:
        """End it without a charge. Raises MeteringError."""
        return wire.hold_of(await self._ask("POST", f"/api/v1/holds/{hold_id}/release", {}))

    async def close(self) -> None:
        """Close the session, if it is the client's own."""
        if self._is_mine and self._session is not None:
            await self._session.close()
            self._session = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _ask(
        self, method: str, path: str, body: object = None, idempotency_key: str | None = None
    ) -> dict[str, Any]:
        request = self._wire.request(method, path, body, idempotency_key=idempotency_key)
        clock = asyncio.get_running_loop().time
        began_s, attempt = clock(), 1
        while True:
            try:
                return wire.answer_of(*await self._send(request))
            except MeteringError as error:
                pause_s = wire.pause_s(error, attempt, clock() - began_s, self._patience_s)
                if pause_s is None:
                    raise
            await asyncio.sleep(pause_s)
            attempt += 1

    async def _send(self, request: wire.Request) -> tuple[int, Mapping[str, str], bytes]:
        """One attempt. Raises Unavailable when no answer came."""
        if self._session is None:
            self._session = aiohttp.ClientSession()
        try:
            async with self._session.request(
                request.method,
                self._url + request.path,
                data=request.body,
                headers=request.headers,
                timeout=self._timeout,
                allow_redirects=False,
            ) as answer:
                return answer.status, answer.headers, await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise wire.unreachable(error) from error


class AsyncHold:
    """An open hold. In an ``async with`` block a task renews its lease; it ends as the block ends."""

    def __init__(self, client: AsyncClient, state: HoldState) -> None:
        self._client = client
        self._renewer: asyncio.Task[None] | None = None
        self._is_ending = False
        self.state = state
        self.failure: MeteringError | None = None  # of the last renewal that failed

    @property
    def id(self) -> str:
        return self.state.id

    async def extend(
        self, *, quantity: Quantity | None = None, amount: Quantity | None = None,
        tokens: Mapping[str, int] | None = None, ttl: int | None = None,
    ) -> HoldState:  # fmt: skip
        """Take more, give it more time, or both. Raises MeteringError: Refused when that is not there."""
        self.state = await self._client.extend(self.id, quantity=quantity, amount=amount, tokens=tokens, ttl=ttl)
        return self.state

    async def settle(
        self, *, quantity: Quantity | None = None, amount: Quantity | None = None,
        tokens: Mapping[str, int] | None = None,
    ) -> HoldState:  # fmt: skip
        """End it with what it really was; without a word as held. Raises MeteringError."""
        await self._stop()
        self.state = await self._client.settle(self.id, quantity=quantity, amount=amount, tokens=tokens)
        return self.state

    async def release(self) -> HoldState:
        """End it without a charge. Raises MeteringError."""
        await self._stop()
        self.state = await self._client.release(self.id)
        return self.state

    async def __aenter__(self) -> Self:
        self._renewer = asyncio.create_task(self._renew(), name=f"tollgate-hold-{self.id}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_ending:
            return
        if kind is None:
            await self.settle()
            return
        with suppress(MeteringError):  # the block's own exception is the one to be seen
            await asyncio.shield(self.release())  # also when the block was cancelled

    async def _stop(self) -> None:
        self._is_ending = True
        renewer, self._renewer = self._renewer, None
        if renewer is not None:
            renewer.cancel()
            await asyncio.gather(renewer, return_exceptions=True)

    async def _renew(self) -> None:
        """Often enough that one failure does no harm."""
        while True:
            await asyncio.sleep(self.state.ttl_s / RENEWALS_PER_TTL)
            try:
                await self._client.extend(self.id, ttl=self.state.ttl_s)
                self.failure = None
            except MeteringError as error:
                self.failure = error
                if error.retry_after is None:
                    return
