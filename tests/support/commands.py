"""The command line for tests: in this process (quick), or as the real program (``process``)."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from gateway.cli.frame import execute
from gateway.cli.root import app
from tests.support import logs
from tests.support.configs import edited

CONFIG = edited(
    "meters:\n  tokens: {decimals: 3}\n",
    "meters:\n  tokens: {decimals: 3}\n  credits: {decimals: 6, name: credit}\n",
    "  pro: {label: Pro, price: 30, period: 30d, allowance: {tokens: 500000}}\n",
    "  pro: {label: Pro, price: 30, period: 30d, allowance: {tokens: 500000}}\n"
    "  custom: {label: Custom, price: custom, period: month, allowance: {tokens: custom}}\n"
    "  endless: {label: Endless, price: 99, period: 30d, allowance: {tokens: unlimited}}\n",
)


@dataclass(frozen=True)
class Result:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


def run_here(*arguments: str, env: Mapping[str, str]) -> Result:
    """One command line in this process and thread, as ``tollgate`` runs it with ``env`` added to the environment.

    A process of its own spends a second on importing; what such a process does, tests/e2e/test_cli_process.py tells.
    """
    with patch.dict(os.environ, env), contextlib.ExitStack() as stack:
        stack.enter_context(logs.kept())
        out = stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        err = stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        code = execute(app, arguments)
    return Result(code, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class Cli:
    """One installation: a config file and a data folder of its own."""

    config: Path
    data: Path
    capture: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str) -> Result:
        """Run a command in this process."""
        self.capture.readouterr()
        with logs.kept():
            code = execute(app, ["--config", str(self.config), "--data", str(self.data), *arguments])
        seen = self.capture.readouterr()
        return Result(code, seen.out, seen.err)

    def ok(self, *arguments: str) -> Any:
        """Run it with ``--json``; what it answered. It must succeed."""
        return self(*arguments, "--json").json()

    def account(self, name: str = "Acme", *options: str) -> str:
        """The id of a new account."""
        return str(self.ok("accounts", "create", name, *options)["id"])

    @property
    def environment(self) -> dict[str, str]:
        """For a real process that finds this installation."""
        return {**os.environ, "TOLLGATE_CONFIG": str(self.config), "TOLLGATE_DATA": str(self.data)}

    def start(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """The real program, started."""
        return subprocess.Popen(
            [sys.executable, "-m", "gateway", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**self.environment, **(env or {})},
        )

    def process(self, *arguments: str, env: Mapping[str, str] | None = None) -> Result:
        """The real program, run to its end."""
        with self.start(*arguments, env=env) as running:
            out, err = running.communicate(timeout=60)
        return Result(running.returncode, out, err)


def installation(folder: Path, capture: pytest.CaptureFixture[str], text: str = CONFIG) -> Cli:
    """A new installation in ``folder``."""
    config = folder / "config.yaml"
    config.write_text(text)
    return Cli(config, folder / "data", capture)
