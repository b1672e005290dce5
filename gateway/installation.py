"""Where an installation lives: its config, its data folder, its secret, its two stores. For the server and the CLI."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.config.loading import load
from gateway.config.model import Config
from gateway.errors import ConfigError

CONFIG_VARIABLE = "TOLLGATE_CONFIG"
DATA_VARIABLE = "TOLLGATE_DATA"
_SECRET_FILE = "secret"  # noqa: S105  # a file name
_SECRET_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class Installation:
    """A loaded config and its data folder."""

    config: Config
    data: Path
    secret: str
    is_new: bool = False  # the data folder was not there before

    @property
    def redis_embedded(self) -> bool:
        return self.config.settings.redis == "embedded"


def locate(config: Path | None, data: Path | None, env: Mapping[str, str] | None = None) -> tuple[Path, Path]:
    """Config file and data folder: as given, else from the environment, else ./config.yaml and ./data."""
    env = os.environ if env is None else env
    return (
        config or Path(env.get(CONFIG_VARIABLE) or "config.yaml"),
        data or Path(env.get(DATA_VARIABLE) or "data"),
    )


def open_installation(config: Path | None, data: Path | None) -> Installation:
    """Load the config and prepare the data folder. Raises ConfigError (exit 78)."""
    config_path, data_path = locate(config, data)
    loaded = load(config_path, os.environ)
    try:
        is_new = not data_path.exists()
        data_path.mkdir(parents=True, exist_ok=True)
        secret = loaded.settings.secret or _own_secret(data_path)
    except OSError as error:
        raise ConfigError([f"the data folder {data_path} cannot be used: {error.strerror}"]) from error
    return Installation(loaded, data_path.resolve(), secret, is_new)


def _own_secret(data: Path) -> str:
    """Made once, readable by its owner only; two processes starting together agree on one."""
    path = data / _SECRET_FILE
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        secret = path.read_text().strip()
        if len(secret) < _SECRET_CHARACTERS:
            raise ConfigError([f"{path} holds no usable secret; restore it from your backup"]) from None
        return secret
    with os.fdopen(descriptor, "w") as file:
        secret = secrets.token_hex(_SECRET_CHARACTERS // 2)
        file.write(secret + "\n")
        file.flush()
        os.fsync(file.fileno())
    return secret
