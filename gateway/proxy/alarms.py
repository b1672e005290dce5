"""What an operator must be told of, once a minute and not once a request."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict

log = logging.getLogger(__name__)

REPEAT_S = 60.0
KINDS_MAX = 256


class Alarms:
    """Log lines that repeat at most once a minute, with how often it happened meanwhile."""

    def __init__(self) -> None:
        self._told: OrderedDict[str, tuple[float, int]] = OrderedDict()  # kind → when told last, how often since

    def tell(self, kind: str, message: str, *arguments: object) -> None:
        """``kind`` comes from the config and our own codes, never from a caller."""
        now_s = time.monotonic()
        told_s, since = self._told.get(kind, (-REPEAT_S, 0))
        if now_s - told_s < REPEAT_S:
            self._told[kind] = (told_s, since + 1)
            return
        log.error(message, *arguments, extra={"repeated": since})
        self._told[kind] = (now_s, 0)
        if len(self._told) > KINDS_MAX:
            self._told.popitem(last=False)
