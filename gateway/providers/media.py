"""What images and documents cost at most, by the providers' published formulas.

Rules
1. Nothing is fetched: an image that is only an address or a file id gets the fixed upper bound.
2. Sizes are read from the first bytes of inline data; what cannot be read gets the fixed upper bound.

Not here: which field of which dialect holds an image.
"""

from __future__ import annotations

import re
import struct
from binascii import Error as Base64Error
from binascii import a2b_base64

from gateway.providers.families import CLAUDE, Family

_HEAD_CHARACTERS = 65_536  # of base64: a JPEG may carry that much metadata before its size
_PDF_SCAN_CHARACTERS = 4 * 1024 * 1024
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PDF_PAGE = re.compile(rb"/Type\s*/Page(?![a-zA-Z])")
_PDF_COUNT = re.compile(rb"/Count\s+(\d{1,5})")

# Source: Anthropic, "Vision": tokens = width x height / 750, images are scaled down to at most ~1,600 tokens; models
# from 4.7 on take larger ones (up to 4,784 tokens).
_CLAUDE_IMAGE_TOKENS_MAX = 1_640
_CLAUDE_NEW_IMAGE_TOKENS_MAX = 4_784
_CLAUDE_PIXELS_PER_TOKEN = 750
_CLAUDE_PATCH_PIXELS = 28

# Source: OpenAI, "Images and vision", calculating costs: 85 + 170 per 512 px tile after scaling to 768 px short side,
# and 32 px patches for newer and small models; the small ones multiply.
_OPENAI_TILED = re.compile(r"gpt-4o|gpt-4\.1|gpt-4\.5|gpt-4-|(?:^|/)o[134]|gpt-5(?![.\d])|chatgpt")
_OPENAI_SMALL = re.compile(r"mini|nano")
_OPENAI_TILES_MAX = 8  # 768 x 2048
_OPENAI_PATCHES_SMALL_MAX = 1_536
_OPENAI_PATCHES_MAX = 12_000  # of a 12-megapixel photograph at original detail

# Source: Anthropic, "PDF support": 1,500 to 3,000 tokens of text per page and its image, at most 100 pages.
_PDF_PAGE_TOKENS = 3_000
_PDF_PAGES_MAX = 100
_PDF_BYTES_PER_PAGE_LEAST = 3_000
DOCUMENT_TOKENS_UNSEEN = 50_000  # a document that we only know the address or the id of
AUDIO_BYTES_PER_TOKEN = 400  # 10 tokens a second at the lowest usual rate, 32 kbit/s


def claude_image(of: Family, data: str | None) -> int:
    """Tokens of one image for a Claude model; ``data`` is base64, None when only its address is known."""
    most = _CLAUDE_IMAGE_TOKENS_MAX if of == CLAUDE else _CLAUDE_NEW_IMAGE_TOKENS_MAX
    size = image_size(data) if data else None
    if size is None:
        return most
    width, height = size
    area = -(-width * height // _CLAUDE_PIXELS_PER_TOKEN)
    patches = -(-width // _CLAUDE_PATCH_PIXELS) * -(-height // _CLAUDE_PATCH_PIXELS)
    return min(most, max(area, patches))


def openai_image(model: str, data: str | None, detail: object) -> int:
    """Tokens of one image for an OpenAI model; ``detail`` is the request's own (auto, low, high, original)."""
    size = image_size(data) if data else None
    if "gpt-4o-mini" in model:
        return 2_833 if detail == "low" else 2_833 + 5_667 * _tiles(size)
    if _OPENAI_SMALL.search(model):
        return _patches(size, _OPENAI_PATCHES_SMALL_MAX) * 246 // 100 + 1
    if _OPENAI_TILED.search(model):
        return 85 if detail == "low" else 85 + 170 * _tiles(size)
    return _patches(size, _OPENAI_PATCHES_MAX) * 12 // 10 + 1


def document(data: str | None) -> int:
    """Tokens of one PDF, base64; None when only its address or id is known."""
    if data is None:
        return DOCUMENT_TOKENS_UNSEEN
    return _pdf_pages(data) * (_PDF_PAGE_TOKENS + _CLAUDE_IMAGE_TOKENS_MAX)


def audio(data: str) -> int:
    """Tokens of inline audio, base64."""
    return len(data) * 3 // 4 // AUDIO_BYTES_PER_TOKEN + 1


def data_of_url(url: str) -> str | None:
    """The base64 of a ``data:`` URL, None of any other."""
    if not url.startswith("data:"):
        return None
    head, found, data = url.partition(";base64,")
    return data if found and len(head) < 256 else None


def image_size(data: str) -> tuple[int, int] | None:
    """(width, height) in pixels of a base64 PNG, JPEG, GIF or WebP; None when it cannot be told."""
    head = _decode(data[:_HEAD_CHARACTERS])
    size: tuple[int, int] | None = None
    if head.startswith(b"\x89PNG\r\n\x1a\n") and len(head) >= 24:
        size = struct.unpack(">II", head[16:24])
    elif head.startswith(b"GIF8") and len(head) >= 10:
        size = struct.unpack("<HH", head[6:10])
    elif head.startswith(b"\xff\xd8"):
        size = _jpeg_size(head)
    elif head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        size = _webp_size(head)
    return size if size and 0 < size[0] < 65_536 and 0 < size[1] < 65_536 else None


def _decode(data: str) -> bytes:
    """Base64 of which only the first part may be there."""
    try:
        return a2b_base64(data[: len(data) // 4 * 4])
    except (Base64Error, ValueError):
        return b""


def _jpeg_size(head: bytes) -> tuple[int, int] | None:
    """From the first start-of-frame marker."""
    at = 2
    while at + 9 <= len(head) and head[at] == 0xFF:
        if head[at + 1] in _JPEG_SIZES:
            height, width = struct.unpack(">HH", head[at + 5 : at + 9])
            return width, height
        at += 2 + int(struct.unpack(">H", head[at + 2 : at + 4])[0])
    return None


def _webp_size(head: bytes) -> tuple[int, int] | None:
    kind = head[12:16]
    if kind == b"VP8X" and len(head) >= 30:
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if kind == b"VP8 " and len(head) >= 30:
        width, height = struct.unpack("<HH", head[26:30])
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and len(head) >= 25:
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return None


def _tiles(size: tuple[int, int] | None) -> int:
    """512 px tiles after OpenAI's scaling: into 2048 x 2048, then the short side down to 768."""
    if size is None:
        return _OPENAI_TILES_MAX
    longer, shorter = max(size), min(size)
    if longer > 2048:
        longer, shorter = 2048, -(-shorter * 2048 // longer)
    if shorter > 768:
        longer, shorter = -(-longer * 768 // shorter), 768
    return min(_OPENAI_TILES_MAX, -(-longer // 512) * -(-shorter // 512))


def _patches(size: tuple[int, int] | None, most: int) -> int:
    if size is None:
        return most
    return min(most, -(-size[0] // 32) * -(-size[1] // 32))


def _pdf_pages(data: str) -> int:
    """Pages by the file's own page objects where they are readable, else by what a page takes at least."""
    most = min(_PDF_PAGES_MAX, max(1, len(data) * 3 // 4 // _PDF_BYTES_PER_PAGE_LEAST))
    if len(data) > _PDF_SCAN_CHARACTERS:
        return most
    content = _decode(data)
    told = max((int(count) for count in _PDF_COUNT.findall(content)), default=0)
    pages = max(told, len(_PDF_PAGE.findall(content)))
    return min(_PDF_PAGES_MAX, pages) if pages else most
