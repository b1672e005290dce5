"""The simulated models as a process of their own: one journal for several clients, no orphans."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.simulator.child import Simulator, spawn
from tests.support.processes import alive, wait_until
from tests.support.simulators import JournalReader, anthropic_client, child, openai_client

CHAT = {"model": "gpt-5", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(scope="module")
def running() -> Iterator[Simulator]:
    with child() as simulator:
        yield simulator


async def test_a_child_serves_both_dialects_and_keeps_one_journal(running: Simulator) -> None:
    async with openai_client(running.url) as client, anthropic_client(running.url) as other:
        await client.chat.completions.create(**CHAT, extra_headers={"x-simulate": "tag=both"})
        message: dict[str, Any] = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": CHAT["messages"]}
        await other.messages.create(**message, extra_headers={"x-simulate": "tag=both"})
    entries = await JournalReader(running.url).ended("both", count=2)
    assert [entry["dialect"] for entry in entries] == ["openai", "anthropic"]


async def test_a_child_resets_and_notices_cuts_under_its_own_loop(running: Simulator) -> None:
    """The child runs on uvloop, tests on asyncio: both must break connections alike."""
    async with openai_client(running.url) as client:
        for tag, steering in (("reset", "reset=within:5"), ("cut", "stall=5")):
            headers = {"x-simulate": f"events=40,{steering},tag={tag}"}
            stream = await client.chat.completions.create(**CHAT, stream=True, extra_headers=headers)
            for _ in range(5):
                await anext(stream)
            if tag == "reset":
                with pytest.raises(Exception, match="Connection error"):
                    await anext(stream)
            await stream.response.aclose()
    journal = JournalReader(running.url)
    assert [(await journal.ended("reset"))[0][name] for name in ("end", "events_served")] == ["reset", 5]
    assert [(await journal.ended("cut"))[0][name] for name in ("end", "events_served")] == ["cut_by_client", 5]


async def test_the_journal_can_be_cleared_and_totals_start_again(running: Simulator) -> None:
    journal = JournalReader(running.url)
    async with openai_client(running.url) as client:
        await client.chat.completions.create(**CHAT, extra_headers={"x-simulate": "output=7"})
    last = await journal.last_id()
    await journal.clear()
    assert await journal.entries() == []
    async with openai_client(running.url) as client:
        await client.chat.completions.create(**CHAT, extra_headers={"x-simulate": "output=9"})
    totals = await journal.totals()
    assert (totals["requests"], totals["open"], totals["served"]["output"]) == (1, 0, 9)
    assert [entry["id"] for entry in await journal.entries(since=last)] == [last + 1]


def test_a_stopped_child_is_gone_and_can_be_stopped_again() -> None:
    simulator = spawn()
    simulator.stop()
    assert not alive(simulator.pid)
    simulator.stop()


def test_a_child_started_by_a_thread_outlives_the_thread() -> None:
    started: list[Simulator] = []
    thread = threading.Thread(target=lambda: started.append(spawn()))
    thread.start()
    thread.join(30)
    (simulator,) = started
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            simulator.process.wait(0.2)
    finally:
        simulator.stop()


def test_a_child_dies_with_its_parent() -> None:
    program = "from gateway.simulator.child import spawn; import sys; print(spawn().pid, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    wait_until(lambda: not alive(pid), what="the child has ended")


def test_the_command_serves_until_a_signal_and_exits_with_zero() -> None:
    program = "from gateway.simulator.server import run; run('127.0.0.1', 0)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"http://127.0.0.1:" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
