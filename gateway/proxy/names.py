"""What is known of header names, which are the same over and over.

Rules
1. A spelling is judged once and then looked up.
2. What callers make us remember is bounded: a long name is judged every time, and what is full begins anew.

Not here: which names may pass (``headers``), what an answer's headers are (``leg.headers``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

Judged = TypeVar("Judged")

NAMES_MAX: Final = 1_024
NAME_BYTES_MAX: Final = 64


class Names(dict[bytes, Judged]):
    """``names[raw]`` is what ``judge`` says of a name as it was sent."""

    def __init__(self, judge: Callable[[bytes], Judged]) -> None:
        super().__init__()
        self._judge = judge

    def __missing__(self, raw: bytes) -> Judged:
        judged = self._judge(raw)
        if len(raw) <= NAME_BYTES_MAX:
            if len(self) >= NAMES_MAX:
                self.clear()
            self[raw] = judged
        return judged
