"""A request's bytes: one head, whatever a client put into it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy.leg.request import Origin, route, spell

URL = "https://api.example.com/v1/messages"


def test_a_head_has_the_host_first_and_the_length_last() -> None:
    origin, head = spell(URL, ((b"x-api-key", b"sk-1"),), {b"content-type": b"application/json"}, 17)
    assert origin == Origin(True, "api.example.com", 443)
    assert head == (
        b"POST /v1/messages HTTP/1.1\r\nhost: api.example.com\r\nx-api-key: sk-1\r\n"
        b"content-type: application/json\r\ncontent-length: 17\r\n\r\n"
    )


def test_a_body_is_json_unless_a_header_says_otherwise() -> None:
    assert b"\r\ncontent-type: application/json\r\n" in spell(URL, (), {}, 2)[1]
    assert spell(URL, (), {b"content-type": b"application/vnd.x+json"}, 2)[1].count(b"content-type") == 1


@pytest.mark.parametrize(
    ("url", "origin", "line", "host"),
    [
        ("http://10.0.0.1/v1", Origin(False, "10.0.0.1", 80), "/v1", "10.0.0.1"),
        ("http://h:80/v1", Origin(False, "h", 80), "/v1", "h"),
        ("https://h:8443/v1", Origin(True, "h", 8443), "/v1", "h:8443"),
        ("https://h:80/v1", Origin(True, "h", 80), "/v1", "h:80"),
        ("http://[::1]:8080/v1", Origin(False, "::1", 8080), "/v1", "[::1]:8080"),
        ("https://EXAMPLE.com/v1", Origin(True, "example.com", 443), "/v1", "example.com"),
        ("https://bücher.example/v1", Origin(True, "xn--bcher-kva.example", 443), "/v1", "xn--bcher-kva.example"),
        ("https://h", Origin(True, "h", 443), "/", "h"),
        # A path and a query go as they are, but for what would not be a target any more.
        ("https://h/a%20b//c;d", Origin(True, "h", 443), "/a%20b//c;d", "h"),
        ("https://h/v1?beta=true&x=%zz?/:@", Origin(True, "h", 443), "/v1?beta=true&x=%zz?/:@", "h"),
        ("https://h/v1?", Origin(True, "h", 443), "/v1?", "h"),
        ("https://h/v1?a b#c", Origin(True, "h", 443), "/v1?a%20b%23c", "h"),
        ("https://h/v1?é\udcff", Origin(True, "h", 443), "/v1?%C3%A9%FF", "h"),
        ("https://h/v1?a HTTP/1.1\r\nX: y", Origin(True, "h", 443), "/v1?a%20HTTP/1.1%0D%0AX:%20y", "h"),
    ],
)
def test_an_address_is_taken_apart(url: str, origin: Origin, line: str, host: str) -> None:
    found, head = spell(url, (), {}, 0)
    assert found == origin
    assert head.startswith(f"POST {line} HTTP/1.1\r\nhost: {host}\r\n".encode())


@pytest.mark.parametrize(
    "url",
    ["ftp://h/", "h/v1", "", "http://", "https://user:pass@h/", "https://h/a#b", "http://h:99999/", "http://a b/", "http://[::1/"],
)  # fmt: skip
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        spell(url, (), {}, 0)


def test_what_is_remembered_of_an_address_shows_no_secret() -> None:
    assert "sk-1" not in repr(route(URL, ((b"x-api-key", b"sk-1"),)))


@pytest.mark.parametrize("value", [b"a\r\nX: y", b"a\n", b"a\r", b"\0", b"a\x7f", b"\x1b[0m", b"a" * 1_000 + b"\n"])
def test_a_value_that_could_end_its_line_is_refused(value: bytes) -> None:
    for fixed, headers in (((), {b"anthropic-x": value}), (((b"anthropic-x", value),), {})):
        with pytest.raises(ValueError):
            spell(URL, fixed, headers, 0)


@pytest.mark.parametrize("value", [b"", b"a\tb", "é日本".encode(), b"\xe9", b" a ", b"a" * 1_000])
def test_any_other_value_passes_as_the_bytes_it_came_as(value: bytes) -> None:
    for fixed, headers in (((), {b"anthropic-x": value}), (((b"anthropic-x", value),), {})):
        for _ in range(2):  # what is remembered is the same
            assert b"\r\nanthropic-x: " + value + b"\r\n" in spell(URL, fixed, headers, 0)[1]


@pytest.mark.parametrize(
    "name",
    ["", "a b", "a:", "a\r\nb", "é", "\0", "host", "Content-Length", "transfer-encoding", "connection", "expect", "te"],
)
def test_a_name_that_is_none_or_frames_the_request_is_refused(name: str) -> None:
    for fixed, headers in (((), {name.encode(): b"1"}), (((name.encode(), b"1"),), {})):
        with pytest.raises(ValueError):
            spell(URL, fixed, headers, 0)


@given(query=st.text(), headers=st.dictionaries(st.binary(), st.binary()))
def test_whatever_a_client_sends_a_head_has_one_line_for_each_header(query: str, headers: dict[bytes, bytes]) -> None:
    try:
        _, head = spell(f"{URL}?{query}", (), headers, 5)
    except ValueError:
        return
    lines = head.split(b"\r\n")
    assert lines[-2:] == [b"", b""]
    assert len(lines) == 1 + 1 + len(headers) + (b"content-type" not in headers) + 1 + 2
    assert b"\n" not in b"".join(lines) and b"\r" not in b"".join(lines)
    assert lines[0].count(b" ") == 2
