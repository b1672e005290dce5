"""What a test does to this process's logging ends with it: the next test may look at what is logged."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """The root logger's handlers and level, every logger's level and Python's warnings, as they were."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    levels = _levels()
    try:
        yield
    finally:
        root.handlers[:] = handlers
        for name in _levels():
            logging.getLogger(name).setLevel(levels.get(name, logging.NOTSET))
        logging.captureWarnings(False)


def _levels() -> dict[str, int]:
    named = {
        name: made.level for name, made in logging.root.manager.loggerDict.items() if isinstance(made, logging.Logger)
    }
    return {"": logging.root.level, **named}
