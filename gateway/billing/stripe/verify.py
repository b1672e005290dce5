"""Whether a webhook's body is Stripe's: the signature over its bytes.

Rules
1. The bytes as they came are what is signed; nothing is decoded or spelled anew before this.
2. Only scheme v1 counts. Several signatures, and several secrets of ours, may be there while a secret is replaced: one
   match is enough, all are compared, each in constant time.
3. A timestamp more than ``TOLERANCE_S`` away, in the past or in the future, is refused: a recorded request is worth
   nothing later, nor one that somebody signed ahead.
4. Without a secret nothing is genuine.

Source: https://docs.stripe.com/webhooks#verify-manually. The SDK's own check lets future timestamps pass.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Final

from gateway.errors import BadRequest

TOLERANCE_S: Final = 300
HEADER_MAX: Final = 4096
_TIMESTAMP: Final = re.compile(r"[0-9]{1,12}", re.ASCII)


def verify(payload: bytes, header: str | None, secrets: Sequence[str], *, now_s: float) -> None:
    """Raises BadRequest ``invalid_signature``."""
    timestamp, signatures = _parsed(header or "")
    signed = b"%d." % timestamp + payload
    matches = False
    for secret in secrets:
        expected = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest().encode() if secret else b""
        for signature in signatures:
            matches |= hmac.compare_digest(expected, signature) and expected != b""
    if not matches:
        raise _refused("No signature of it is ours.")
    if abs(now_s - timestamp) > TOLERANCE_S:
        raise _refused("Its time is more than five minutes away from ours.")


def _parsed(header: str) -> tuple[int, list[bytes]]:
    """``t=TIME,v1=HEX,…``."""
    pairs = [part.strip().partition("=") for part in header[:HEADER_MAX].split(",")]
    times = [value for name, _, value in pairs if name == "t"]
    signatures = [value.encode(errors="replace") for name, _, value in pairs if name == "v1" and value]
    if len(times) != 1 or _TIMESTAMP.fullmatch(times[0]) is None or not signatures:
        raise _refused("The Stripe-Signature header is missing, or is none.")
    return int(times[0]), signatures


def _refused(why: str) -> BadRequest:
    return BadRequest("invalid_signature", f"The signature is not valid. {why}", param="Stripe-Signature")
