"""Logs: one JSON object per line on standard error, nothing per request, and never a secret.

Rules
1. An exception is told by its type and place, never by its values: those may hold a key or a prompt.
2. What looks like a key is masked in the finished line, wherever it came from. That is the second line of defence; the
   first is not to log it.
3. Logging never waits for its sink: lines queue up to a bound, then they are dropped and counted.
4. What a task raises and nobody awaits is told once, by the same rules: asyncio's own words would repeat its values.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

log = logging.getLogger(__name__)

LINES_MAX = 10_000
LINE_BYTES_MAX = 16 * 1024
BATCH_LINES = 256
FLUSH_S = 1.0
FRAMES_MAX = 30
STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
ROOT = Path(__file__).resolve().parents[1]

MASKED = re.compile(
    r"""
      (?P<prefix> \b(?: tg_ | sk- | pk- | rk_ | sk_ | pk_ | whsec_ | xai- | AIza | gsk_ ) )  [A-Za-z0-9_-]{6,}
    | (?P<scheme> \b(?: Bearer | Basic ) \s+ )                                              [^\s"'\\,;]+
    | (?P<header> (?: x-api-key | api-key | authorization ) (?:\\?["'])? \s* [:=,] \s* (?:b?\\?["'])?
                  (?: (?: Bearer | Basic ) \s+ )? )                                         [^\s"'\\,;]+
    | (?P<url> :// ) [^/\s"'\\@]* : [^/\s"'\\@]+ @
    """,
    re.VERBOSE | re.IGNORECASE,
)


def mask(text: str) -> str:
    """The text with everything that looks like a key or a password replaced by ``***``."""
    return MASKED.sub(_masked, text)


def _masked(found: re.Match[str]) -> str:
    kept = next(part for part in found.groups() if part is not None)
    return f"{kept}***@" if found["url"] else f"{kept}***"


class JsonFormatter(logging.Formatter):
    """time, level, logger, message, whatever ``extra`` says, and where an exception came from."""

    def __init__(self, **context: object) -> None:
        super().__init__()
        self._context = context

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._context,
        }
        line.update((name, value) for name, value in vars(record).items() if name not in STANDARD)
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = list(_chain(record.exc_info[1]))
        return mask(orjson.dumps(line, default=_told, option=orjson.OPT_NON_STR_KEYS).decode())


def _told(value: object) -> str:
    """An unknown object by its type: its repr may hold anything."""
    return str(value) if isinstance(value, Path) else f"<{type(value).__name__}>"


def _chain(error: BaseException) -> Iterator[dict[str, object]]:
    """The exception and what caused it: type and frames, innermost last."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        kind = type(current)
        yield {"type": f"{kind.__module__}.{kind.__qualname__}", "where": list(_frames(current.__traceback__))}
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _frames(trace: TracebackType | None) -> list[str]:
    frames = []
    while trace is not None:
        code = trace.tb_frame.f_code
        path = Path(code.co_filename)
        name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else "/".join(path.parts[-2:])
        frames.append(f"{name}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return frames[-FRAMES_MAX:]


class QueueingHandler(logging.Handler):
    """Lines go to a bounded queue; a thread of this process writes them. After a fork the child has its own."""

    def __init__(self, descriptor: int, *, lines_max: int = LINES_MAX) -> None:
        super().__init__()
        self.dropped = 0
        self._descriptor = descriptor
        self._lines_max = lines_max
        self._restart()

    def _restart(self) -> None:
        self._pid = os.getpid()
        self._queue: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._accepted = self._written = self.dropped = 0
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if os.getpid() != self._pid:
            self._restart()
        if self._queue.qsize() >= self._lines_max:
            self.dropped += 1
            return
        try:
            line = self.format(record).encode("utf-8", "replace")
        except (ValueError, TypeError, KeyError):  # a record whose arguments don't fit its text
            line = orjson.dumps({"level": "error", "logger": record.name, "message": "a log record could not be told"})
        self._accepted += 1
        self._queue.put(line[:LINE_BYTES_MAX] + b"\n")
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_all, name="logs", daemon=True)
            self._thread.start()

    def _write_all(self) -> None:
        while True:
            lines = [self._queue.get()]
            while len(lines) < BATCH_LINES and not self._queue.empty():
                lines.append(self._queue.get())
            told, self.dropped = self.dropped, 0
            if told:
                lost = {"level": "warning", "logger": __name__, "message": "log lines were dropped", "lines": told}
                lines.append(orjson.dumps(lost) + b"\n")
            self._write(b"".join(lines))
            self._written += len(lines) - bool(told)

    def _write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                time.sleep(0.01)  # somebody made the sink non-blocking
            except OSError:  # a full disk, a closed pipe: these lines are lost, the program isn't
                return

    def flush(self) -> None:
        """Wait until what was accepted is written, for a second at most."""
        deadline = time.monotonic() + FLUSH_S
        while os.getpid() == self._pid and self._written < self._accepted and time.monotonic() < deadline:
            time.sleep(0.001)


def loop_failed(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An event loop's exception handler. The context's message and objects hold values: only the exception is told."""
    error = context.get("exception")
    task = context.get("task") or context.get("future")
    name = task.get_name() if isinstance(task, asyncio.Task) else None
    if isinstance(error, BaseException):
        log.error("something failed in the background", exc_info=error, extra={"task": name})
    else:
        log.error("the event loop complains: %s", context.get("message"), extra={"task": name})


def configure(*, level: str = "INFO", descriptor: int = 2, **context: object) -> QueueingHandler:
    """Send everything that is logged, warnings included, through one handler. ``context`` is added to each line.

    May be called again, for example by a worker with its slot.
    """
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, QueueingHandler):
            handler.flush()
            root.removeHandler(handler)
    made = QueueingHandler(descriptor)
    made.setFormatter(JsonFormatter(**context))
    root.addHandler(made)
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    for noisy in ("aiosqlite", "asyncio", "stripe", "alembic.runtime.migration", "watchfiles"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return made
