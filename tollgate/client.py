"""The metering API for programs that wait: standard library only, safe to share between threads.

    client = Client("https://tollgate.example.com", os.environ["TOLLGATE_KEY"], account="acme")
    client.use(service="sms", quantity=7)
    with client.hold(service="outbound_call", quantity=1, ttl=60) as hold:
        ...                                   # the hold's lease is renewed in the background
        hold.extend(quantity=1)
        hold.settle(quantity="61.2s")

Rules
1. A hold that is left without a word is settled as held; left by an exception it is released: nothing is charged. One
   whose settling failed is left alone: its lease ends it, by the plan's ``on_abandon``.
2. Errors are ``MeteringError``; a request is repeated only as ``wire`` says.
"""

from __future__ import annotations

import http.client
import ssl
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from tollgate import wire
from tollgate.errors import MeteringError
from tollgate.wire import HoldState, Item, Quantity, Use, Wire, measure

RENEWALS_PER_TTL = 3
IDLE_CONNECTIONS_MAX = 16


class Client:
    """``url``: where Tollgate listens for customers. ``account``: for a service key, whom it acts for.

    ``patience``: for how long a request may be repeated, ``timeout``: for how long one attempt may take, in seconds."""

    def __init__(
        self, url: str, key: str, *, account: str | None = None, patience: float = 15.0, timeout: float = 15.0
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not an http or https URL: {url}")
        self._secure = ssl.create_default_context() if parts.scheme == "https" else None
        self._host, self._port, self._root = parts.hostname, parts.port, parts.path.rstrip("/")
        self._wire = Wire(key, account)
        self._patience_s, self._timeout_s = patience, timeout
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    def check(self, **item: Any) -> Use:
        """What ``use`` would come to; nothing is taken. Takes the fields of ``Item``. Raises MeteringError."""
        return wire.use_of(self._ask("POST", "/api/v1/usage", {**Item(**item).body(), "dry_run": True}))

    def use(self, *, idempotency_key: str | None = None, **item: Any) -> Use:
        """Check and charge. Takes the fields of ``Item``. Raises MeteringError."""
        return wire.use_of(self._ask("POST", "/api/v1/usage", Item(**item).body(), idempotency_key))

    def use_many(self, items: Iterable[Item], *, idempotency_key: str | None = None) -> list[Use | MeteringError]:
        """Several at once, in order; those that were refused are answered as errors. Raises MeteringError."""
        body = [item.body() for item in items]
        return wire.uses_of(self._ask("POST", "/api/v1/usage", body, idempotency_key))

    def hold(self, *, ttl: int | None = None, idempotency_key: str | None = None, **item: Any) -> Hold:
        """Set aside, in a ``with`` block. ``ttl``: seconds that it lives without a sign of life. Takes the fields of
        ``Item``. Raises MeteringError."""
        body = {**Item(**item).body(), **({} if ttl is None else {"ttl": ttl})}
        state = wire.hold_of(self._ask("POST", "/api/v1/holds", body, idempotency_key))
        return Hold(self, state)

    def look(self, hold_id: str) -> HoldState:
        """A hold as it stands, or what a metered call came to. Raises MeteringError."""
        return wire.hold_of(self._ask("GET", f"/api/v1/holds/{hold_id}"))

    def extend(
        self, hold_id: str, *, quantity: Quantity | None = None, amount: Quantity | None = None,
        tokens: Mapping[str, int] | None = None, ttl: int | None = None, idempotency_key: str | None = None,
    ) -> HoldState:  # fmt: skip
        """Take more, give it more time, or both. Raises MeteringError: Refused when that is not there."""
        body = {**measure(quantity, amount, tokens), **({} if ttl is None else {"ttl": ttl})}
        return wire.hold_of(self._ask("POST", f"/api/v1/holds/{hold_id}/extend", body, idempotency_key))

    def settle(
        self, hold_id: str, *, quantity: Quantity | None = None, amount: Quantity | None = None,
        tokens: Mapping[str, int] | None = None,
    ) -> HoldState:  # fmt: skip
        """End it with what it really was; without a word as held. Raises MeteringError."""
        body = measure(quantity, amount, tokens)
        return wire.hold_of(self._ask("POST", f"/api/v1/holds/{hold_id}/settle", body))

    def release(self, hold_id: str) -> HoldState:
        """End it without a charge. Raises MeteringError."""
        return wire.hold_of(self._ask("POST", f"/api/v1/holds/{hold_id}/release", {}))

    def close(self) -> None:
        """Close idle connections; the client may be used on."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, method: str, path: str, body: object = None, idempotency_key: str | None = None) -> dict[str, Any]:
        request = self._wire.request(method, path, body, idempotency_key=idempotency_key)
        began_s, attempt = time.monotonic(), 1
        while True:
            try:
                return wire.answer_of(*self._send(request))
            except MeteringError as error:
                pause_s = wire.pause_s(error, attempt, time.monotonic() - began_s, self._patience_s)
                if pause_s is None:
                    raise
            time.sleep(pause_s)
            attempt += 1

    def _send(self, request: wire.Request) -> tuple[int, Mapping[str, str], bytes]:
        """One attempt. Raises Unavailable when no answer came."""
        with self._lock:
            connection = self._idle.pop() if self._idle else self._connection()
        try:
            connection.request(request.method, self._root + request.path, request.body, dict(request.headers))
            answer = connection.getresponse()
            found = answer.status, dict(answer.getheaders()), answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self.close()  # those beside it are as old: the repeat must not meet one after the other
            raise wire.unreachable(error) from error
        with self._lock:
            if not answer.will_close and len(self._idle) < IDLE_CONNECTIONS_MAX:
                self._idle.append(connection)
            else:
                connection.close()
        return found

    def _connection(self) -> http.client.HTTPConnection:
        if self._secure is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=self._secure)


class Hold:
    """An open hold. In a ``with`` block a thread renews its lease; it ends as the block ends."""

    def __init__(self, client: Client, state: HoldState) -> None:
        self._client = client
        self._over = threading.Event()
        self._renewer: threading.Thread | None = None
        self._is_ending = False
        self.state = state
        self.failure: MeteringError | None = None  # of the last renewal that failed

    @property
    def id(self) -> str:
        return self.state.id

    def extend(
        self, *, quantity: Quantity | None = None, amount: Quantity | None = None,
        tokens: Mapping[str, int] | None = None, ttl: int | None = None,
    ) -> HoldState:  # fmt: skip
        """Take more, give it more time, or both. Raises MeteringError: Refused when that is not there."""
        self.state = self._client.extend(self.id, quantity=quantity, amount=amount, tokens=tokens, ttl=ttl)
        return self.state

    def settle(
        self, *, quantity: Quantity | None = None, amount: Quantity | None = None,
        tokens: Mapping[str, int] | None = None,
    ) -> HoldState:  # fmt: skip
        """End it with what it really was; without a word as held. Raises MeteringError."""
        self._stop()
        self.state = self._client.settle(self.id, quantity=quantity, amount=amount, tokens=tokens)
        return self.state

    def release(self) -> HoldState:
        """End it without a charge. Raises MeteringError."""
        self._stop()
        self.state = self._client.release(self.id)
        return self.state

    def __enter__(self) -> Self:
        self._renewer = threading.Thread(target=self._renew, name=f"tollgate-hold-{self.id}", daemon=True)
        self._renewer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_ending:
            return
        if kind is None:
            self.settle()
            return
        with suppress(MeteringError):  # the block's own exception is the one to be seen
            self.release()

    def _stop(self) -> None:
        self._is_ending = True
        self._over.set()
        if self._renewer is not None:
            self._renewer.join()
            self._renewer = None

    def _renew(self) -> None:
        """Often enough that one failure does no harm."""
        while not self._over.wait(self.state.ttl_s / RENEWALS_PER_TTL):
            try:
                self._client.extend(self.id, ttl=self.state.ttl_s)
                self.failure = None
            except MeteringError as error:
                self.failure = error
                if error.retry_after is None:
                    return
