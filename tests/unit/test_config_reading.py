"""Bad files, row by row: what cannot be read, what is no plain YAML, what the environment lacks."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.loading import load
from gateway.config.reading import Number, read
from gateway.errors import ConfigError
from tests.support.configs import BASE, config, edited, problems

SERVER = "server: {listen: 127.0.0.1:8080, admin: 127.0.0.1:9090}"


def bomb() -> str:
    """A billion laughs: eight levels of ten aliases each."""
    levels = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 9)]
    return "\n".join(levels) + "\n"


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "none.yaml", {})
    assert caught.value.problems == [
        f"{tmp_path / 'none.yaml'}: expected a readable file, found: no such file or directory"
    ]


def test_a_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, {})
    assert caught.value.problems == [f"{tmp_path}: expected a readable file, found: a folder"]


def test_a_path_through_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="expected a readable file, found: not a directory"):
        load(tmp_path / "file" / "config.yaml", {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # what is no YAML
        ("a: 1\n\tb: 2\n", "config.yaml:2: expected spaces for indentation, found a tab"),
        ("a: [1, 2\nb: 3\n", "config.yaml:2: expected ',' or ']', found ':'"),
        ("a: 'x\n", "config.yaml:1: expected valid YAML, found: unexpected end of stream"),
        ("a: *nope\n", "config.yaml:1: expected valid YAML, found: undefined alias 'nope'"),
        ("a: 1\n---\nb: 2\n", "config.yaml:2: expected valid YAML, found: another document"),
        ("a: \x07\n", "config.yaml: expected readable YAML, found: unacceptable character #x0007"),
        ("[" * 2000, "config.yaml: expected shallow nesting, found a value nested too deeply"),
        # an unquoted reference
        ("version: 1\nkeys: [${KEY}]\n", 'config.yaml:2: expected references in quotes, found a bare ${…}: quote'),
        ("a: {b: ${KEY}}\n", "config.yaml:1: expected references in quotes, found a bare ${…}: quote it"),
        # what is YAML but no mapping
        ("", "config.yaml:1: expected a mapping of keys, found nothing"),
        ("# nothing\n", "config.yaml:1: expected a mapping of keys, found nothing"),
        ("- a\n", "config.yaml:1: expected a mapping of keys, found a value"),
        ("just text\n", "config.yaml:1: expected a mapping of keys, found a value"),
        # what is more than plain data
        ("a: !!python/object/apply:os.system ['id']\n", "config.yaml:1: a: expected plain values, found the tag"),
        ("a: !!python/name:os.system x\n", "config.yaml:1: a: expected plain values, found the tag '!!python"),
        ("a: !secret x\n", "config.yaml:1: a: expected plain values, found the tag '!secret'"),
        ("a: !!binary aGk=\n", "config.yaml:1: a: expected plain values, found the tag '!!binary'"),
        ("a:\n  <<: {b: 1}\n", "config.yaml:2: a: expected plain keys, found a merge key '<<'"),
        ("a:\n  {b: 1}: 2\n", "config.yaml:2: a: expected plain keys, found a list or mapping as a key"),
        ("a: &r [*r]\n", "config.yaml:1: a.0: expected shallow nesting, found a value nested too deeply"),
        (bomb(), "expected at most 20000 values, found more: aliases multiply"),
        # a key twice
        ("version: 1\nversion: 1\n", "config.yaml:2: version: expected each key once, found it again"),
        (
            edited("  pro: {label: Pro, price: 30", "  trial: {label: Pro, price: 30"),
            "config.yaml:17: plans.trial: expected each key once, found it again (first on line 16)",
        ),
    ],
)  # fmt: skip
def test_a_file_that_is_no_plain_yaml_is_refused_with_its_line(text: str, expected: str) -> None:
    assert any(problem.startswith(expected) or expected in problem for problem in problems(text)), problems(text)


def test_a_file_that_is_no_utf8_is_refused_with_its_line() -> None:
    assert problems(b"version: 1\nlabel: \xff\n") == ["config.yaml:2: expected UTF-8, found the byte 0xff"]


def test_a_huge_file_is_refused_unread() -> None:
    assert problems(b"#" * 1_000_001) == ["config.yaml: expected at most 1000000 bytes, found 1000001"]


def test_a_byte_order_mark_is_no_problem() -> None:
    assert config("\ufeff" + BASE).catalog.default_plan == "trial"


def test_aliases_are_plain_yaml() -> None:
    text = edited(
        "allowance: {tokens: 6000}",
        "allowance: &same {tokens: 6000}",
        "allowance: {tokens: 500000}",
        "allowance: *same",
    )
    assert config(text).catalog.plans["pro"].allowance == {"tokens": 6_000_000}
    text = edited(
        "tokens: 6000", "tokens: &a 6000", "price: 30, period: 30d", "price: &a 30, period: 30d", "500000", "*a"
    )
    assert config(text).catalog.plans["pro"].allowance == {"tokens": 30_000}


def test_numbers_stay_text_and_words_stay_words() -> None:
    source = read(b"a: 0.1\nb: 010\nc: no\nd: true\ne: ~\nf: '5'\ng: 1e3\n", {})
    assert source.tree == {"a": "0.1", "b": "010", "c": "no", "d": True, "e": None, "f": "5", "g": "1e3"}
    assert [type(source.tree[key]) for key in "abcfg"] == [Number, Number, str, str, Number]


@pytest.mark.parametrize(
    ("written", "env", "key"),
    [
        ("${KEY}", {"KEY": "sk-1"}, ("sk-1",)),
        ("${KEY:-}", {}, ()),
        ("${KEY:-}", {"KEY": ""}, ()),
        ("${KEY:-sk-2}", {}, ("sk-2",)),
        ("${KEY:-sk-2}", {"KEY": "sk-1"}, ("sk-1",)),
        ("${KEY}", {"KEY": "sk-${HOME}"}, ("sk-${HOME}",)),  # what the environment says is never read again
        ("", {}, ()),
    ],
)
def test_a_reference_is_filled_from_the_environment(written: str, env: dict[str, str], key: tuple[str, ...]) -> None:
    assert config(edited("${KEY:-}", written), env).settings.upstreams["anthropic"].keys == key


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("${NOT_SET}", "expected the environment variable NOT_SET to be set, found nothing"),
        ("${}", 'expected references as "${NAME}" or "${NAME:-default}"'),
        ("${1X}", 'expected references as "${NAME}" or "${NAME:-default}"'),
        ("${A-b}", 'expected references as "${NAME}" or "${NAME:-default}"'),
        ("${A", 'expected references as "${NAME}" or "${NAME:-default}"'),
    ],
)
def test_a_reference_to_nothing_is_told_by_name(written: str, said: str) -> None:
    assert f"config.yaml:5: upstreams.anthropic.keys.0: {said}" in problems(edited("${KEY:-}", written))


def test_no_value_of_the_environment_is_ever_shown() -> None:
    text = edited("decimals: 3", 'decimals: "${D}"', "price: 30", 'price: "${P}"', "127.0.0.1:8080", '"${L}"')
    told = "\n".join(problems(text, {"D": "canary-1", "P": "canary-2", "L": "canary-3", "KEY": "canary 4"}))
    assert told.count("expected") == 4
    assert "canary" not in told
    assert "'${P}'" in told


@pytest.mark.parametrize(
    "text",
    [
        edited("${KEY:-}", "sk-canary"),
        edited("${KEY:-}", "Bearer ${KEY:-}-canary"),
        edited(SERVER, "server: {admin_token: canary}"),
        edited(SERVER, 'server: {secret: "canary"}'),
        edited("redis: embedded", 'redis: "rediss://user:canary@redis:6379"'),
        edited("database: embedded", "database: postgresql://tollgate:canary@db/tollgate"),
        edited("default_plan: trial", "default_plan: trial\nstripe: {secret_key: canary, webhook_secret: canary}"),
        edited("default_plan: trial", "default_plan: trial\nalerts: {webhook: {url: 'https://a.b', secret: canary}}"),
        edited("default_plan: trial", "default_plan: trial\nalerts: {email: {smtp: 'smtp://u:canary@m', from: a@b.c}}"),
    ],
)
def test_a_secret_written_down_is_refused_and_not_shown(text: str) -> None:
    told = problems(text)
    assert any("found it in plain text" in problem for problem in told)
    assert "canary" not in "\n".join(told)


def test_a_password_from_the_environment_inside_a_url_is_fine() -> None:
    text = edited("redis: embedded", 'redis: "rediss://user:${PW}@redis:6379/1"')
    assert config(text, {"PW": "s3cret"}).settings.redis == "rediss://user:s3cret@redis:6379/1"


def test_secrets_can_stand_in_files(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    (tmp_path / "keys").write_text("sk-1\n\nsk-2\n")
    text = edited(
        SERVER, "server: {admin_token_file: token}", 'keys: ["${KEY:-}"]', f"keys_file: {tmp_path / 'keys'}"
    )  # relative to the config's folder, or absolute
    loaded = config(text, path=tmp_path / "config.yaml")
    assert loaded.settings.admin_token == "abc"
    assert loaded.settings.upstreams["anthropic"].keys == ("sk-1", "sk-2")


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ("admin_token_file: none", "server.admin_token_file: expected a readable file, found 'none': No such file"),
        ("admin_token_file: empty", "server.admin_token_file: expected a file of one line, found 'empty'"),
        ("admin_token_file: two", "server.admin_token_file: expected a file of one line, found 'two'"),
        ("admin_token_file: binary", "server.admin_token_file: expected a file of UTF-8 text, found 'binary'"),
        (
            "admin_token_file: spaced",
            "server.admin_token: expected a secret of visible ASCII characters without spaces",
        ),
        ('admin_token: "${T}", admin_token_file: two', "expected either admin_token or admin_token_file, found both"),
    ],
)
def test_a_file_that_holds_no_secret_is_told(server: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "spaced").write_text("canary canary\n")
    (tmp_path / "two").write_text("canary\ncanary\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    told = "\n".join(problems(edited(SERVER, f"server: {{{server}}}"), {"T": "x"}, tmp_path / "config.yaml"))
    assert said in told
    assert "canary" not in told


JUNK = [
    "",
    "{",
    "}",
    "[",
    "]",
    ":",
    "- ",
    "&a ",
    "*a",
    "!x ",
    "'",
    '"',
    "${",
    "${X:-}",
    "#",
    "\t",
    "\n",
    "null",
    "-1",
    "1e9",
    "é",
]


@given(st.lists(st.tuples(st.integers(0, len(BASE)), st.integers(0, 12), st.sampled_from(JUNK)), max_size=4))
def test_however_a_file_is_damaged_it_loads_or_is_refused_with_problems(cuts: list[tuple[int, int, str]]) -> None:
    text = BASE
    for at, length, junk in cuts:
        text = text[:at] + junk + text[at + length :]
    try:
        config(text, {"KEY": "canary"})
    except ConfigError as error:
        assert error.problems
        assert all(problem.startswith("config.yaml:") and "canary" not in problem for problem in error.problems)


@given(st.binary(max_size=200))
def test_whatever_bytes_stand_in_a_file_are_no_config(data: bytes) -> None:
    assert problems(data)
