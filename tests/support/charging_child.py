"""A worker that only writes charges: ``python -m tests.support.charging_child URL FOLDER ACCOUNT FIRST COUNT``.

Writes charge FIRST, FIRST+1, … in batches of 5, each of 1 step, lapsed and then settled, and prints the number of each
batch once its commit was answered. Charges have the same ids in every process.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from pathlib import Path

from gateway.domain.charges import ChargeRow
from gateway.errors import StoreUnavailable
from gateway.store.store import Store
from tests.support import stores

BATCH = 5


def numbered(account_id: str, number: int, state: str) -> ChargeRow:
    """Charge ``number`` of an account."""
    hold_id = str(uuid.uuid5(uuid.UUID(account_id), str(number)))
    return stores.charge(account_id, (1, 1 if state == "settled" else 9), hold_id=hold_id, state=state)


def batch(account_id: str, first: int, state: str) -> list[ChargeRow]:
    return [numbered(account_id, first + i, state) for i in range(BATCH)]


async def write(store: Store, account_id: str, first: int, count: int) -> None:
    for start in range(first, first + count, BATCH):
        for state in ("lapsed", "settled"):
            await _insist(store, batch(account_id, start, state))
        print(start, flush=True)


async def _insist(store: Store, rows: list[ChargeRow]) -> None:
    """As a worker does: a commit without an answer is repeated."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            await store.writer.commit(rows)
            return
        except StoreUnavailable:
            turn = loop.create_future()
            loop.call_later(0.02, turn.set_result, None)
            await turn


async def main(url: str, folder: str, account_id: str, first: int, count: int) -> None:
    async with stores.opened(url, Path(folder)) as store:
        await write(store, account_id, first, count)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])))
