"""Tollgate keys: ``tg_`` + 43 random characters (256 bits) + 6 characters of checksum. Only their HMAC is ever stored.

Rules
1. A key with a wrong checksum is refused without asking the database.
2. Each use of the installation's secret has its own derived key, so that no value of one purpose serves another.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import zlib

PREFIX = "tg_"
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM_CHARACTERS = 43
_CHECK_CHARACTERS = 6
KEY_CHARACTERS = len(PREFIX) + _RANDOM_CHARACTERS + _CHECK_CHARACTERS


def _checksum(text: str) -> str:
    value = zlib.crc32(text.encode("ascii"))
    digits = []
    for _ in range(_CHECK_CHARACTERS):
        value, digit = divmod(value, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(digits)


def new_key() -> str:
    """A fresh key; it is shown once and never stored."""
    body = PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_CHARACTERS))
    return body + _checksum(body)


def demo_key(secret: str, name: str) -> str:
    """The demo's key for ``name``: the same at every start of one installation, so that it can be shown again."""
    value = int.from_bytes(hmac.digest(derive(secret, "demo-keys"), name.encode(), hashlib.sha512))
    characters = []
    for _ in range(_RANDOM_CHARACTERS):
        value, digit = divmod(value, len(_ALPHABET))
        characters.append(_ALPHABET[digit])
    body = PREFIX + "".join(characters)
    return body + _checksum(body)


def well_formed(key: str) -> bool:
    """Whether this could be one of our keys at all."""
    return (
        len(key) == KEY_CHARACTERS
        and key.startswith(PREFIX)
        and key.isascii()
        and _checksum(key[:-_CHECK_CHARACTERS]) == key[-_CHECK_CHARACTERS:]
    )


def display_prefix(key: str) -> str:
    """What lists show of a key: enough to recognize it, far too little to use it."""
    return key[: len(PREFIX) + 6]


def derive(secret: str, purpose: str) -> bytes:
    """The key for one purpose."""
    return hmac.digest(secret.encode(), b"tollgate:" + purpose.encode(), hashlib.sha256)


class KeyHasher:
    """HMAC-SHA256 of keys under the installation's secret."""

    def __init__(self, secret: str) -> None:
        self._key = derive(secret, "api-keys")

    def digest(self, key: str) -> bytes:
        return hmac.digest(self._key, key.encode("ascii"), hashlib.sha256)
