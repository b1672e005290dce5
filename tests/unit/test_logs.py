"""Logs: one object per line, no secrets, and a blocked sink blocks nobody."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.logs import LINE_BYTES_MAX, JsonFormatter, QueueingHandler, configure, loop_failed, mask
from tests.support.logs import kept
from tests.support.processes import wait_until

SECRET = "aB3_dE-fGh1jKlMnOp"


def logged(message: str, *args: object, **options: Any) -> dict[str, Any]:
    """What one record becomes."""
    logger = logging.Logger("test")
    lines: list[str] = []
    handler = logging.StreamHandler()
    handler.emit = lambda record: lines.append(JsonFormatter(worker=3).format(record))  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.log(logging.INFO, message, *args, **options)
    (line,) = lines
    assert "\n" not in line
    return dict(orjson.loads(line))


class Pipe:
    """A sink that nobody reads until ``read``."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)

    def read(self) -> bytes:
        try:
            return os.read(self.reader, 1 << 20)
        except BlockingIOError:
            return b""

    def fill(self) -> None:
        os.set_blocking(self.writer, False)
        try:
            while True:
                os.write(self.writer, b"\n" * 4096)
        except BlockingIOError:
            os.set_blocking(self.writer, True)

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


def test_a_line_is_one_object_with_its_context_and_extras() -> None:
    line = logged("took %d ms\nand more", 5, extra={"account": "acme", "path": Path("a/b"), "odd": object()})
    assert line["message"] == "took 5 ms\nand more"
    assert (line["level"], line["logger"], line["worker"]) == ("info", "test", 3)
    assert (line["account"], line["path"], line["odd"]) == ("acme", "a/b", "<object>")
    assert line["time"].endswith("+00:00")


@pytest.mark.parametrize(
    "text",
    [
        f"key tg_{SECRET} was refused",
        f"sk-ant-api03-{SECRET}",
        f"sk-proj-{SECRET}",
        f"Authorization: Bearer {SECRET}",
        f"authorization: bearer   {SECRET}",
        f"{{'x-api-key': '{SECRET}'}}",
        f'{{"x-api-key": "{SECRET}", "authorization": "Basic {SECRET}"}}',
        f"(b'x-api-key', b'{SECRET}') x-api-key={SECRET}",
        f"redis://user:{SECRET}@host:6379/0",
        f"postgresql://:{SECRET}@host/db",
        f"whsec_{SECRET}",
        f"sk_live_{SECRET}",
    ],
)
def test_what_looks_like_a_key_is_masked_wherever_it_stands(text: str) -> None:
    assert SECRET not in mask(text)
    assert SECRET not in str(logged(text))
    assert SECRET not in str(logged("%s", text))
    assert SECRET not in str(logged("x", extra={"deep": {"list": [text]}}))


@pytest.mark.parametrize(
    "text", ["risk-free", "task-7 done", "the bearer of news", "http://host:80/path", "tg_", "a basic case"]
)
def test_plain_words_are_left_alone(text: str) -> None:
    assert logged(text)["message"].split()[0] == text.split()[0]
    assert mask("risk-free http://host:80/a@b") == "risk-free http://host:80/a@b"


def test_an_exception_is_told_by_type_and_place_without_its_values() -> None:
    def fails() -> None:
        try:
            raise KeyError(f"prompt {SECRET}")
        except KeyError as error:
            raise ValueError(f"body {SECRET}") from error

    try:
        fails()
    except ValueError:
        line = logged("it failed", exc_info=True)
    assert SECRET not in str(line)
    assert [each["type"] for each in line["exception"]] == ["builtins.ValueError", "builtins.KeyError"]
    assert line["exception"][0]["where"][-1].startswith("tests/unit/test_logs.py:")
    assert line["exception"][0]["where"][-1].endswith(" fails")


def test_a_blocked_sink_blocks_nobody_and_what_was_dropped_is_counted(pipe: Pipe) -> None:
    pipe.fill()
    handler = QueueingHandler(pipe.writer, lines_max=50)
    handler.setFormatter(JsonFormatter())
    logger = logging.Logger("blocked")
    logger.addHandler(handler)
    started = time.monotonic()
    for number in range(1000):
        logger.warning("line %d", number)
    assert time.monotonic() - started < 5
    assert handler.dropped >= 1000 - 50 - 1 - 256
    seen = bytearray()

    def drained() -> bool:
        seen.extend(pipe.read())
        return b"were dropped" in seen

    wait_until(drained, what="the sink is read again")
    handler.flush()
    seen.extend(pipe.read())
    lines = [orjson.loads(line) for line in bytes(seen).splitlines() if line]
    told = sum(line.get("lines", 0) for line in lines)
    assert told + sum(line["message"].startswith("line ") for line in lines) == 1000


def test_a_broken_sink_loses_lines_only() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    handler = QueueingHandler(writer)
    logger = logging.Logger("broken")
    logger.addHandler(handler)
    logger.warning("nobody hears this")
    handler.flush()
    logger.warning("nor this")
    handler.flush()
    os.close(writer)


def test_a_forked_child_logs_by_itself(pipe: Pipe) -> None:
    handler = QueueingHandler(pipe.writer)
    logger = logging.Logger("fork")
    logger.addHandler(handler)
    logger.warning("parent")
    handler.flush()
    child = os.fork()
    if child == 0:
        logger.warning("child")
        handler.flush()
        os._exit(0)
    os.waitpid(child, 0)
    assert pipe.read().split() == [b"parent", b"child"]


def test_a_giant_line_is_cut_and_a_bad_record_is_survived(pipe: Pipe) -> None:
    handler = QueueingHandler(pipe.writer)
    logger = logging.Logger("odd")
    logger.addHandler(handler)
    logger.warning("x" * 10 * LINE_BYTES_MAX)
    logger.warning("%d", "not a number")
    handler.flush()
    long, bad = pipe.read().splitlines()
    assert len(long) == LINE_BYTES_MAX
    assert b"could not be told" in bad


def test_configure_twice_leaves_one_handler(pipe: Pipe) -> None:
    root = logging.getLogger()
    with kept():
        configure(descriptor=pipe.writer)
        handler = configure(descriptor=pipe.writer, worker=1)
        logging.getLogger("any").info("hello")
        handler.flush()
        (line,) = pipe.read().splitlines()
        assert orjson.loads(line)["worker"] == 1
        assert sum(isinstance(each, QueueingHandler) for each in root.handlers) == 1
    assert fcntl.fcntl(pipe.writer, fcntl.F_GETFL) & os.O_NONBLOCK == 0


def fail(text: str) -> None:
    raise ValueError(text)


async def forgotten() -> None:
    async def work() -> None:
        fail(f"the prompt was {SECRET}")

    task = asyncio.create_task(work(), name="forgotten")
    await asyncio.wait((task,))


async def called_back() -> None:
    loop = asyncio.get_running_loop()
    loop.call_soon(fail, f"the prompt was {SECRET}")
    done = loop.create_future()
    loop.call_soon(done.set_result, None)
    await done


@pytest.mark.parametrize("happens", [forgotten, called_back])
async def test_what_fails_behind_everybodys_back_is_told_once_and_without_its_values(
    happens: Callable[[], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio's own line would repeat the exception's text, and the arguments of a callback."""
    asyncio.get_running_loop().set_exception_handler(loop_failed)
    await happens()
    gc.collect()
    (record,) = caplog.records
    line = JsonFormatter().format(record)
    assert SECRET not in line and "prompt" not in line
    told = orjson.loads(line)
    assert told["level"] == "error"
    (exception,) = told["exception"]
    assert exception["type"] == "builtins.ValueError"
    assert exception["where"][-1].startswith("tests/unit/test_logs.py:")
