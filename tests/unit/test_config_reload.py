"""Laws of reloading: an invalid file never replaces a running one, and what cannot change while running is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.config.loading import load
from gateway.config.model import Config
from gateway.config.reload import Rejected, Reloaded, Unchanged, Watcher
from tests.support.configs import BASE, edited

DEADLINE_S = 20


class Told:
    """Collects what a watcher tells, and can be waited for."""

    def __init__(self) -> None:
        self.outcomes: list[Reloaded | Rejected] = []
        self._more = asyncio.Event()

    def __call__(self, outcome: Reloaded | Rejected) -> None:
        self.outcomes.append(outcome)
        self._more.set()

    async def after(self, write: Callable[[int], None]) -> Reloaded | Rejected:
        """Write, each time something new, until it is noticed: a watch that has just begun may miss the first."""
        async with asyncio.timeout(DEADLINE_S):
            for attempt in range(1000):
                write(attempt)
                try:
                    async with asyncio.timeout(0.4):
                        await self._more.wait()
                        break
                except TimeoutError:
                    continue
        self._more.clear()
        return self.outcomes[-1]


@asynccontextmanager
async def watching(path: Path) -> AsyncIterator[tuple[Watcher, Told]]:
    told = Told()
    watcher = Watcher(load(path, {}), {}, told)
    stop = asyncio.Event()
    task = asyncio.create_task(watcher.watch(stop))
    try:
        yield watcher, told
    finally:
        stop.set()
        async with asyncio.timeout(DEADLINE_S):
            await task


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    write(path, BASE)
    return path


def write(path: Path, text: str) -> None:
    path.write_text(text)


def remove(path: Path) -> None:
    path.unlink()


def watcher(path: Path, adapt: Callable[[Config], Config] = lambda config: config) -> tuple[Watcher, Told]:
    told = Told()
    return Watcher(adapt(load(path, {})), {}, told, adapt=adapt), told


async def test_a_valid_file_replaces_the_running_config(path: Path) -> None:
    running, told = watcher(path)
    write(path, edited("tokens: 6000", "tokens: 7000"))
    outcome = await running.reload()
    assert isinstance(outcome, Reloaded)
    assert outcome.needs_restart == ()
    assert running.current is outcome.config
    assert running.current.catalog.plans["trial"].allowance == {"tokens": 7_000_000}
    assert told.outcomes == [outcome]


async def test_an_invalid_file_leaves_the_running_config_in_force(path: Path) -> None:
    running, told = watcher(path)
    before = running.current
    write(path, edited("tokens: 6000", "tokens: many"))
    outcome = await running.reload()
    assert isinstance(outcome, Rejected)
    assert "plans.trial.allowance.tokens: expected an amount" in outcome.problems[0]
    remove(path)
    assert isinstance(await running.reload(), Rejected)
    assert running.current is before
    assert len(told.outcomes) == 2


async def test_a_file_that_says_the_same_is_no_news(path: Path) -> None:
    running, told = watcher(path)
    before = running.current
    write(path, BASE + "# a comment\n")
    assert isinstance(await running.reload(), Unchanged)
    assert running.current is before
    assert told.outcomes == []


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("127.0.0.1:8080", "127.0.0.1:8081", "server.listen"),
        ("127.0.0.1:9090", "127.0.0.1:9091", "server.admin"),
        ("admin: ", "workers: 2, admin: ", "server.workers"),
        ("admin: ", 'secret: "${S:-other}", admin: ', "server.secret"),
        ("redis: embedded", "redis: redis://localhost", "storage.redis"),
        ("database: embedded", "database: sqlite:///other.db", "storage.database"),
        ("admin: ", "lease: 9s, admin: ", "server.lease"),
        ("admin: ", "connect: 9s, admin: ", "server.connect"),
        ("admin: ", "grace: 9s, admin: ", "server.grace"),
    ],
)
async def test_what_cannot_change_while_running_stays_and_is_told(path: Path, old: str, new: str, key: str) -> None:
    running, told = watcher(path)
    before = running.current.settings
    write(path, edited(old, new, "tokens: 6000", "tokens: 7000"))
    outcome = await running.reload()
    assert isinstance(outcome, Reloaded)
    assert outcome.needs_restart == (key,)
    assert running.current.settings == before
    assert running.current.catalog.plans["trial"].allowance == {"tokens": 7_000_000}
    assert told.outcomes == [outcome]


async def test_what_the_command_line_changed_stays_changed_and_needs_no_restart(path: Path) -> None:
    def adapt(config: Config) -> Config:
        listen = replace(config.settings.listen, port=18080)
        return replace(config, settings=replace(config.settings, listen=listen))

    running, _ = watcher(path, adapt)
    write(path, edited("tokens: 6000", "tokens: 7000", "admin: ", "idle: 9s, admin: "))
    outcome = await running.reload()
    assert isinstance(outcome, Reloaded)
    assert outcome.needs_restart == ()
    assert (running.current.settings.listen.port, running.current.settings.idle_s) == (18080, 9)


async def test_reloads_asked_for_at_once_come_one_after_the_other(path: Path) -> None:
    running, told = watcher(path)
    write(path, edited("tokens: 6000", "tokens: 7000"))
    outcomes = await asyncio.gather(*(running.reload() for _ in range(5)))
    assert [type(outcome) for outcome in outcomes] == [Reloaded] + [Unchanged] * 4
    assert len(told.outcomes) == 1


async def test_a_written_file_is_noticed(path: Path) -> None:
    async with watching(path) as (running, told):
        outcome = await told.after(lambda n: write(path, edited("tokens: 6000", f"tokens: {7000 + n}")))
        assert isinstance(outcome, Reloaded)
        assert running.current is outcome.config
        refused = await told.after(lambda n: write(path, f"version: {2 + n}\n"))
        assert isinstance(refused, Rejected)
        assert running.current is outcome.config


async def test_a_change_made_before_the_watch_began_is_noticed(path: Path) -> None:
    """Once, whether or not the new file is valid: nothing is read again and again."""
    told = Told()
    running, stop = Watcher(load(path, {}), {}, told), asyncio.Event()
    write(path, edited("tokens: 6000", "tokens: 7001"))
    task = asyncio.create_task(running.watch(stop))
    assert isinstance(await told.after(lambda n: None), Reloaded)
    stop.set()
    async with asyncio.timeout(DEADLINE_S):
        await task
    assert len(told.outcomes) == 1


async def test_a_file_renamed_over_it_is_noticed(path: Path) -> None:
    def swap(attempt: int) -> None:
        new = path.with_name("config.yaml.new")
        new.write_text(edited("tokens: 6000", f"tokens: {7000 + attempt}"))
        new.replace(path)

    async with watching(path) as (_, told):
        assert isinstance(await told.after(swap), Reloaded)


async def test_a_config_map_swapped_by_its_symlink_is_noticed(tmp_path: Path) -> None:
    """As kubelet does it: config.yaml → ..data/config.yaml, and ..data is renamed to a new folder."""

    def publish(attempt: int) -> None:
        folder = tmp_path / f"..v{attempt}"
        folder.mkdir()
        (folder / "config.yaml").write_text(edited("tokens: 6000", f"tokens: {7000 + attempt}"))
        link = tmp_path / "..data_tmp"
        link.symlink_to(folder.name)
        link.replace(tmp_path / "..data")

    publish(900)
    path = tmp_path / "config.yaml"
    path.symlink_to("..data/config.yaml")
    async with watching(path) as (running, told):
        assert isinstance(await told.after(publish), Reloaded)
        assert running.current.path == path


async def test_other_files_in_the_folder_are_no_news(path: Path) -> None:
    async with watching(path) as (_, told):
        for number in range(20):
            (path.parent / f"other{number}.yaml").write_text("x")
        outcome = await told.after(lambda n: write(path, edited("tokens: 6000", f"tokens: {7000 + n}")))
        assert told.outcomes == [outcome]
