"""The leg against the simulated models, in every way in which they can fail; their journal says what they sent."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import AsyncIterator

import pytest

from gateway.errors import UpstreamInterrupted, UpstreamTimeout, UpstreamUnreachable
from gateway.proxy.leg.answer import Answer
from gateway.proxy.leg.client import HttpLeg
from gateway.proxy.leg.connection import BUFFER_BYTES, UNREAD_BYTES_HIGH
from gateway.proxy.leg.request import Origin
from tests.support.legs import rest, turns
from tests.support.simulators import LocalModels, in_process

EVENTS = 6


@pytest.fixture
async def models() -> AsyncIterator[LocalModels]:
    async with in_process() as models:
        yield models


async def ask(
    leg: HttpLeg,
    models: LocalModels,
    steering: str,
    *,
    stream: bool = True,
    first_byte_s: float = 10.0,
    idle_s: float = 10.0,
) -> Answer:
    body = b'{"model":"gpt-5","stream":%b,"messages":[{"role":"user","content":"Hi"}]}' % str(stream).lower().encode()
    headers = {b"x-simulate": f"tag=t events={EVENTS} {steering}".encode()}
    fixed = ((b"authorization", b"Bearer sk-test"),)
    url = f"{models.url}/v1/chat/completions"
    return await leg.send(
        url, headers, body, fixed=fixed, first_byte_s=first_byte_s, idle_s=idle_s, leaving=lambda: None
    )


async def served(models: LocalModels) -> tuple[int, str]:
    """(how many bytes of the one call's body the model sent, their digest)."""
    (entry,) = await models.journal.ended("t")
    return entry["bytes_served"], entry["served_sha256"]


def digest(body: bytes) -> tuple[int, str]:
    return len(body), hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_is_what_the_model_sent(stream: bool, leg: HttpLeg, models: LocalModels) -> None:
    found = await ask(leg, models, "", stream=stream)
    assert found.status == 200
    assert found.headers["content-type"].startswith("text/event-stream" if stream else "application/json")
    assert digest(await rest(found)) == await served(models)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_model_that_breaks_off_before_its_answer_is_unreachable(
    stream: bool, leg: HttpLeg, models: LocalModels
) -> None:
    with pytest.raises(UpstreamUnreachable):
        await ask(leg, models, "reset=before", stream=stream)
    assert await served(models) == digest(b"")


async def test_a_model_that_takes_too_long_to_answer_is_a_timeout(leg: HttpLeg, models: LocalModels) -> None:
    with pytest.raises(UpstreamTimeout):
        await ask(leg, models, "ttfb=20000", first_byte_s=0.1)
    assert await served(models) == digest(b"")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "steering", ["reset=headers", *(f"reset=within:{count}" for count in range(1, EVENTS)), "reset=after"]
)
async def test_a_model_that_breaks_off_gives_what_it_sent_and_then_the_break(
    steering: str, stream: bool, leg: HttpLeg, models: LocalModels
) -> None:
    body = bytearray()
    found = await ask(leg, models, steering, stream=stream)
    if steering == "reset=after" and not stream:
        assert digest(await rest(found)) == await served(models)
        return
    with pytest.raises(UpstreamInterrupted):
        while piece := await found.read():
            body += piece
    assert digest(bytes(body)) == await served(models)


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_a_model_that_falls_silent_is_a_timeout_after_what_it_sent(
    count: int, leg: HttpLeg, models: LocalModels
) -> None:
    body = bytearray()
    found = await ask(leg, models, f"stall={count}", idle_s=0.1)
    with pytest.raises(UpstreamTimeout):
        while piece := await found.read():
            body += piece
    assert digest(bytes(body)) == await served(models)


async def test_an_answer_that_ends_in_order_within_a_line_is_whole_for_the_leg(
    leg: HttpLeg, models: LocalModels
) -> None:
    """What the words say of it is for the scanner to judge."""
    body = await rest(await ask(leg, models, "truncate=3"))
    assert not body.endswith(b"\n") and digest(body) == await served(models)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_line_of_50_mb_passes_in_small_pieces(stream: bool, leg: HttpLeg, models: LocalModels) -> None:
    found = await ask(leg, models, "giant=50000000", stream=stream)
    size, body = 0, hashlib.sha256()
    while piece := await found.read():
        assert len(piece) <= UNREAD_BYTES_HIGH + BUFFER_BYTES
        size += len(piece)
        body.update(piece)
    assert size > 50_000_000
    if stream:  # of a whole answer the journal keeps what it says, not its filling
        assert (size, body.hexdigest()) == await served(models)


async def test_a_reader_that_does_not_read_stops_the_model(leg: HttpLeg, models: LocalModels) -> None:
    """What the two kernels hold is theirs; the rest of the 50 MB stays with the model."""
    found = await ask(leg, models, "giant=50000000")
    (entry,) = await models.journal.entries(tag="t")
    before = -1
    while entry["bytes_served"] != before:
        before = entry["bytes_served"]
        await turns(200)
        (entry,) = await models.journal.entries(tag="t")
    assert found.unread_bytes <= UNREAD_BYTES_HIGH + BUFFER_BYTES and found.is_paused
    assert entry["bytes_served"] < 25_000_000
    found.close()
    (entry,) = await models.journal.ended("t")
    assert entry["end"] == "cut_by_client"


@pytest.mark.parametrize("stream", [True, False])
async def test_an_encoded_answer_is_passed_as_it_is(stream: bool, leg: HttpLeg, models: LocalModels) -> None:
    found = await ask(leg, models, "gzip=1000000", stream=stream)
    body = await rest(found)
    assert found.headers["content-encoding"] == "gzip"
    plain = gzip.decompress(body)
    assert (len(plain) >= 1_000_000 or stream) and len(body) < 20_000


async def test_a_redirect_is_an_answer_and_is_not_followed(leg: HttpLeg, models: LocalModels) -> None:
    found = await ask(leg, models, "redirect")
    assert found.status == 302 and "/redirected" in found.headers["location"]
    await rest(found)
    assert (await models.journal.totals())["requests"] == 1


async def test_an_error_is_an_answer_and_its_connection_is_kept(leg: HttpLeg, models: LocalModels) -> None:
    for status in (400, 401, 404, 429, 500, 529):
        found = await ask(leg, models, f"status={status} retry_after=7")
        assert found.status == status and found.headers["retry-after"] == "7"
        assert b"error" in await rest(found)
    origin = Origin(False, "127.0.0.1", int(models.url.rpartition(":")[2]))
    assert len(leg.pool(origin)) == 1


async def test_a_cut_call_stops_the_model(leg: HttpLeg, models: LocalModels) -> None:
    found = await ask(leg, models, "stall=2")
    assert await found.read()
    found.close()
    (entry,) = await models.journal.ended("t")
    assert entry["end"] == "cut_by_client"
