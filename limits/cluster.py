"""The same client over a Redis Cluster: one multiplexed connection per master, commands sent where their slot is.

Rules
1. Only what the cluster proves not to have run is sent again (MOVED, ASK, TRYAGAIN, NOSCRIPT), within the deadline.
2. A master that is away, or a MOVED, makes the slot map be read again; the slots of other masters aren't touched.
3. One map reading at a time, with a pause between them.

Not here: connections and deadlines (``connection``), what commands mean (``engine``).
"""

from __future__ import annotations

import asyncio
import random
import time
from binascii import crc_hqx
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import hiredis

from limits.connection import Address, Node, ScriptListener, StateListener, Timing, nobody
from limits.errors import EngineUnavailable
from limits.resp import Argument, Script, Spelled, code_of, error_of, pack, pack_eval, pack_evalsha

SLOTS = 16384
REDIRECTIONS_MAX = 8
AGAIN_S = 0.005  # before a TRYAGAIN (a slot on the move) is tried again, doubling
AGAIN_MAX_S = 0.04
READING_PAUSE_S = 0.1  # between two readings of the map
READING_PAUSE_MAX_S = 0.5  # the same while nobody tells it
READING_TIMEOUT_S = 0.25  # one server's time to tell the map
ASKING = pack(b"ASKING")
STALE_MAP = frozenset(("CLUSTERDOWN", "READONLY", "MASTERDOWN"))


@lru_cache(maxsize=4096)
def _slot_of_tag(tag: bytes) -> int:
    return crc_hqx(tag, 0) % SLOTS


def slot_of(key: bytes) -> int:
    """The key's slot. Source: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/"""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            return _slot_of_tag(key[start + 1 : end])
    return _slot_of_tag(key)


Call = tuple[Script, Sequence[bytes], Sequence[Argument] | Spelled]


class ClusterClient:
    """``limits.client.Client`` on a cluster. ``seeds`` are asked for the map first, and when nobody else answers."""

    def __init__(
        self,
        seeds: Sequence[Address],
        timing: Timing,
        on_state: StateListener | None = None,
        on_script: ScriptListener = nobody,
    ) -> None:
        assert seeds, "a cluster needs at least one address"
        self._seeds = tuple(seeds)
        self._timing = timing
        self._on_state = on_state
        self._on_script = on_script
        self._nodes: dict[tuple[str, int], Node] = {}
        self._masters: tuple[Node, ...] = ()
        self._slots: list[Node | None] = [None] * SLOTS
        self._reading: asyncio.Task[None] | None = None
        self._attempt: asyncio.Future[None] | None = None  # done when the reading under way has tried once
        self._read_at = 0.0
        self._reason = ""  # why the last reading failed
        self._closed = False
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def up(self) -> bool:
        """Every slot has a master, and none of them is known to be away."""
        return bool(self._masters) and not self._reason and not any(node.away for node in self._masters)

    async def evalsha(
        self,
        script: Script,
        keys: Sequence[bytes],
        args: Sequence[Argument] | Spelled,
        *,
        timeout_s: float | None = None,
    ) -> Any:
        call, began_s, limit_s = (script, keys, args), time.monotonic(), timeout_s or self._timing.command_timeout_s
        try:
            return await self._run(pack_evalsha(*call), slot_of(keys[0]), limit_s, call)
        finally:
            self._on_script((script.name,), time.monotonic() - began_s)

    async def execute(self, *args: Argument, key: bytes | None = None, timeout_s: float | None = None) -> Any:
        """``key`` says which master; without it, any."""
        slot = slot_of(key) if key is not None else random.randrange(SLOTS)  # noqa: S311 (no secret)
        return await self._run(pack(*args), slot, timeout_s or self._timing.command_timeout_s, None)

    async def _run(self, command: bytes, slot: int, timeout_s: float, call: Call | None) -> Any:
        deadline = time.monotonic() + timeout_s
        node = self._slots[slot] or await self._find(slot, timeout_s)
        redirections, asking, pause_s = 0, b"", AGAIN_S
        while redirections < REDIRECTIONS_MAX:
            try:
                reply = await node.send(asking + command, deadline - time.monotonic(), ignored=bool(asking))
            except EngineUnavailable:
                self._refresh()
                raise
            if not isinstance(reply, hiredis.ReplyError):
                return reply
            code = code_of(reply)
            if code == "NOSCRIPT" and call is not None:
                command, call = pack_eval(*call), None
            elif code == "MOVED":
                node, asking = self._node_at(str(reply), node), b""
                redirections += 1
                self._slots[slot] = node
                self._refresh()
            elif code == "ASK":
                node, asking = self._node_at(str(reply), node), ASKING
                redirections += 1
            elif code == "TRYAGAIN" and time.monotonic() + pause_s < deadline:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, AGAIN_MAX_S)
            else:
                if code in STALE_MAP:
                    self._refresh()
                raise error_of(reply)
        raise EngineUnavailable(f"slot {slot} was redirected {REDIRECTIONS_MAX} times", sent=False)

    # --- the map -----------------------------------------------------------------------------------------------

    def _node_at(self, reply: str, teller: Node) -> Node:
        """The node of ``MOVED slot host:port`` or ``ASK …``; an empty host is the teller's own (cluster spec)."""
        host, _, port = reply.split()[2].rpartition(":")
        return self._node(host or teller.address.host, int(port))

    def _node(self, host: str, port: int) -> Node:
        node = self._nodes.get((host, port))
        if node is None:
            address = replace(self._seeds[0], host=host, port=port)
            node = self._nodes[host, port] = Node(address, self._timing, self._on_state)
        return node

    async def _find(self, slot: int, timeout_s: float) -> Node:
        """The slot's master after reading the map; refuses at once while nobody tells it."""
        self._refresh()
        if not self._reason and self._attempt is not None:
            await asyncio.wait((self._attempt,), timeout=timeout_s)
        node = self._slots[slot]
        if node is None:
            raise EngineUnavailable(f"no master for slot {slot}: {self._reason or 'not served'}", sent=False)
        return node

    def _refresh(self) -> None:
        """Have the map read again soon, unless that is under way."""
        if (self._reading is None or self._reading.done()) and not self._closed:
            loop = asyncio.get_running_loop()
            self._attempt = loop.create_future()
            self._reading = loop.create_task(self._read_until_told(self._attempt), name="redis cluster map")

    async def _read_until_told(self, attempt: asyncio.Future[None]) -> None:
        pause_s = READING_PAUSE_S
        await asyncio.sleep(self._read_at + pause_s - time.monotonic())
        while reason := await self._read():
            self._reason = reason
            if not attempt.done():
                attempt.set_result(None)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 (no secret)
            pause_s = min(2 * pause_s, READING_PAUSE_MAX_S)
        self._reason = ""
        self._read_at = time.monotonic()
        self._reading = None
        if not attempt.done():
            attempt.set_result(None)

    async def _read(self) -> str:
        """Ask one server after another, those that are up first. Returns why nobody told, or nothing when one did."""
        seeds = [self._node(seed.host, seed.port) for seed in self._seeds]
        candidates = list(dict.fromkeys((*self._masters, *seeds, *self._nodes.values())))
        random.shuffle(candidates)
        reason = ""
        for node in sorted(candidates, key=lambda node: not node.up):
            try:
                reply = await node.send(pack(b"CLUSTER", b"SLOTS"), READING_TIMEOUT_S)
            except EngineUnavailable as error:
                reason = reason or str(error)
                continue
            if isinstance(reply, list) and reply:
                self._apply(reply, node)
                return ""
            reason = f"{node.address} tells no map of the cluster" + (f": {reply}" if reply else "")
        return reason

    def _apply(self, ranges: Sequence[Any], teller: Node) -> None:
        """Source: https://redis.io/docs/latest/commands/cluster-slots/ (a null or empty host is the teller's own)."""
        slots: list[Node | None] = [None] * SLOTS
        for first, last, master, *_ in ranges:
            host = (master[0] or b"").decode()
            node = self._node(host or teller.address.host, master[1])
            slots[first : last + 1] = [node] * (last + 1 - first)
        self._slots = slots
        self._masters = tuple({node for node in slots if node is not None})
        keep = {(node.address.host, node.address.port) for node in (*self._masters, *self._seeds_known())}
        for place in [place for place, node in self._nodes.items() if place not in keep and node.idle]:
            task = asyncio.get_running_loop().create_task(self._nodes.pop(place).close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _seeds_known(self) -> list[Node]:
        return [self._nodes[seed.host, seed.port] for seed in self._seeds if (seed.host, seed.port) in self._nodes]

    async def close(self) -> None:
        """Close every connection for good; whatever still waits fails."""
        self._closed = True
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            await asyncio.wait((reading,))
        await asyncio.gather(*(node.close() for node in self._nodes.values()), *self._closing)
