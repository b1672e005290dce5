"""A gateway on the test's loop, in front of simulated models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.gateways import Local, local
from tests.support.simulators import LocalModels, in_process


@pytest.fixture
async def models() -> AsyncIterator[LocalModels]:
    async with in_process() as running:
        yield running


@pytest.fixture
async def gateway(models: LocalModels, valkey_url: str, tmp_path: Path) -> AsyncIterator[Local]:
    async with local(models.url, valkey_url, tmp_path) as running:
        yield running
