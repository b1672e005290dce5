"""Commands that are put together from spelled parts are those that hiredis packs whole."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import hiredis
import pytest

from limits.resp import Argument, Script, Spelled, blanks, pack_eval, pack_evalsha

SCRIPT = Script.of("reserve", b"return 1")
KEYS = (b"{p000}:a:one", b"{p000}:o", b"{p000}:l")
ARGS: tuple[tuple[Argument, ...], ...] = ((), ("",), (b"\r\n%b\0", 12, "gr\u00fcn"), tuple(range(300)))


@pytest.mark.parametrize("args", ARGS)
def test_a_script_is_asked_for_in_the_same_bytes_however_its_arguments_were_spelled(args: tuple[Argument, ...]) -> None:
    for packed, head in ((pack_evalsha, (b"EVALSHA", SCRIPT.sha)), (pack_eval, (b"EVAL", SCRIPT.source))):
        whole = hiredis.pack_command((*head, len(KEYS), *KEYS, *args))  # type: ignore[arg-type]
        assert packed(SCRIPT, KEYS, args) == packed(SCRIPT, list(KEYS), Spelled.of(*args)) == whole


@pytest.mark.parametrize("filled", [b"", b"%d", b"\r\n$1\r\n", bytes(1000)])
def test_blanks_are_filled_in_with_any_bytes(filled: bytes) -> None:
    given = blanks(None, b"100%", None) % (len(filled), filled, len(filled), filled)
    assert given == Spelled.of(filled, b"100%", filled).data


@pytest.fixture
def tracing() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def test_beats_leave_nothing_behind(tracing: None) -> None:
    """Each has the accounts that it is due for: hundreds, and others each time. To remember them would fill memory."""
    before, _ = tracemalloc.get_traced_memory()
    for beat in range(200):
        pack_evalsha(SCRIPT, [*KEYS[1:], *(b"{p000}:a:%d-%d" % (beat, account) for account in range(100))], ())
    assert tracemalloc.get_traced_memory()[0] - before < 200_000
