"""The command line as a program of its own: pipes, signals, secrets, and a server beside it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.embedded import DataLock, borrowed
from tests.support.commands import Cli, installation
from tests.support.servers import short_folder

EX_INTERRUPTED = 130
EX_PIPE = 141


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return installation(tmp_path, capsys)


@contextlib.contextmanager
def locked(data: Path) -> Iterator[None]:
    """The data folder as a server holds it that does not answer yet."""
    lock = DataLock(data)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def silent_redis(data: Path) -> Iterator[socket.socket]:
    """Where a server's Redis would be, but nobody says a word."""
    with short_folder() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen()
        listener.settimeout(60)
        (data / "valkey.socket").write_text(str(folder / "s"))
        yield listener


def test_a_key_is_printed_once_and_stands_nowhere_else(cli: Cli) -> None:
    account = cli.account()
    made = cli.process("keys", "create", account, "--name", "laptop")
    assert made.code == 0, made.err
    key = next(word for word in made.out.split() if word.startswith("tg_"))
    assert made.out.count(key) == 1 and key not in made.err
    rotated = cli.ok("keys", "rotate", cli.ok("keys", "list", account)[0]["id"])["key"]
    cli.ok("balance", account)
    for secret in (key, rotated):
        assert not [path for path in cli.data.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
        assert secret not in cli("keys", "list", account, "--all", "--json").out + cli("log", "--json").out


def test_a_key_typed_where_none_belongs_is_not_repeated(cli: Cli) -> None:
    key = cli.ok("keys", "create", cli.account())["key"]
    for command in (("keys", "revoke", key, "--yes"), ("balance", key), (key,), ("accounts", "show", "a", key)):
        result = cli(*command)
        assert result.code == 2 and key not in result.out + result.err


def test_a_reader_that_leaves_early_is_no_error(cli: Cli) -> None:
    cli.account()
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "gateway", "accounts", "list", "--json"],
            stdout=gone,
            stderr=subprocess.PIPE,
            env=cli.environment,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (EX_PIPE, b"")


def test_ctrl_c_ends_at_once_with_130_and_nothing_half_done(cli: Cli) -> None:
    account = cli.account()
    with locked(cli.data), silent_redis(cli.data) as asked:
        waiting = cli.start("grant", account, "5", "--wallet", "tokens")
        asked.accept()[0].close()  # it found the folder busy, and looks for the Redis of whoever has it
        waiting.send_signal(signal.SIGINT)
        out, err = waiting.communicate(timeout=30)
    assert (waiting.returncode, out) == (EX_INTERRUPTED, "") and "Traceback" not in err
    assert len(cli.ok("transactions", account)) == 1


def test_a_command_uses_the_redis_of_a_server_that_runs(cli: Cli) -> None:
    """What the server has loaded is what the command tells, and what the command changes the server knows."""
    account = cli.account()
    with borrowed(cli.data):
        before = cli.ok("balance", account)
        assert cli.ok("audit") | {"differences": []} == {
            "accounts": 1, "charges": 0, "in_redis": 1, "moving": 0, "difference": 0, "differences": [],
        }  # fmt: skip
        granted = cli.process("grant", account, "5", "--wallet", "tokens", "--json")
        assert granted.code == 0, granted.err
        after = cli.ok("balance", account)
        assert cli.ok("audit")["difference"] == 0
    assert (before["wallets"][0]["available"], after["wallets"][0]["available"]) == ("6000", "6005")


def test_many_commands_at_once_all_do_their_work(cli: Cli) -> None:
    account = cli.account()
    running = [cli.start("grant", account, "1", "--wallet", "tokens") for _ in range(3)]
    for each in running:
        _, err = each.communicate(timeout=60)
        assert each.returncode == 0, err
    assert len(cli.ok("transactions", account)) == 4
    assert cli.ok("balance", account)["wallets"][0]["available"] == "6003"


def test_nothing_is_left_running_or_lying_about(cli: Cli) -> None:
    account = cli.account()
    assert cli.process("balance", account).code == 0
    assert not (cli.data / "valkey.socket").exists()
    with locked(cli.data):
        pass
