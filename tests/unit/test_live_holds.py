"""Laws of a worker's live holds: when each is renewed, and when its first byte is told."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from gateway.quota import holds as module
from gateway.quota.holds import Holds
from limits.model import Demand, Hold, PartitionState

LEASE_MS = 60_000
HOLD = Hold("acme", "hold", 1, 0, LEASE_MS, (), Demand(), (), b"")
TOLD, UNTOLD = ("hold", True), ("hold", False)


class Engine:
    """Remembers what each beat of the one partition renewed: holds, with whether their first byte was told."""

    def __init__(self) -> None:
        self.beats: list[list[tuple[str, bool]]] = []

    def partition(self, account: str) -> int:
        return 0

    async def renew(self, partition: int, holds: Sequence[Hold]) -> PartitionState:
        self.beats.append([(hold.hold_id, hold.first_byte) for hold in holds])
        return PartitionState("a record", 0, 0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The monotonic clock of the registry, which stands still."""
    standing = SimpleNamespace(now_s=1_000.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: standing.now_s))
    return standing


async def test_a_hold_is_renewed_whenever_a_third_of_its_lease_is_over(clock: SimpleNamespace) -> None:
    engine = Engine()
    holds = Holds(engine)  # type: ignore[arg-type]
    holds.add(HOLD)
    for elapsed_s, sent in ((0, []), (19.9, []), (0.1, [UNTOLD]), (19.9, []), (0.2, [UNTOLD]), (100, [UNTOLD])):
        clock.now_s += elapsed_s
        await holds.beat()
        assert engine.beats[-1] == sent
    assert holds.oldest_age_s() == pytest.approx(140.1)


async def test_a_first_byte_is_told_by_the_next_beat_and_once(clock: SimpleNamespace) -> None:
    engine = Engine()
    holds = Holds(engine)  # type: ignore[arg-type]
    holds.add(HOLD)
    clock.now_s += LEASE_MS / 3000
    await holds.beat()
    holds.first_byte(HOLD)
    for _ in range(3):
        await holds.beat()
    assert engine.beats == [[UNTOLD], [TOLD], [], []]
    clock.now_s += LEASE_MS / 3000
    await holds.beat()
    assert engine.beats[-1] == [TOLD]


async def test_after_another_record_every_hold_is_sent_before_anything_else(clock: SimpleNamespace) -> None:
    engine, told = Engine(), list[str]()
    holds = Holds(engine)  # type: ignore[arg-type]
    holds.on_other_record = lambda: told.append("another record")
    holds.add(HOLD)
    await holds.beat()
    holds.saw_record(0, "another")
    assert (holds.stale, told) == ({0}, ["another record"])
    await holds.reassert(0)
    assert engine.beats == [[], [UNTOLD], [UNTOLD]], "and once more: meanwhile it was the first record again"
    assert not holds.stale
