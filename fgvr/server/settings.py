"""What a server is told: `server.*` of the configuration, and the environment or `.env`, where tokens live alone."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from fgvr.errors import ConfigError
from fgvr.runtime.budget import parse_bytes


class Environment(BaseSettings):
    """Variables that set what the command line leaves at its default; see `overrides`."""

    model_config = SettingsConfigDict(env_file=".env", env_file_encoding="utf-8", extra="ignore", hide_input_in_errors=True)

    admin_token: SecretStr | None = Field(None, validation_alias=AliasChoices("FGVR_ADMIN_TOKEN", "ADMIN_TOKEN"))
    token: SecretStr | None = Field(None, validation_alias="FGVR_TOKEN")
    budget: str | None = Field(None, validation_alias=AliasChoices("FGVR_BUDGET", "MAX_MEMORY_USAGE"))
    check_interval: float | None = Field(None, validation_alias=AliasChoices("FGVR_CHECK_INTERVAL", "MEMORY_CHECK_INTERVAL"))
    auto_cleanup: bool | None = Field(None, validation_alias=AliasChoices("FGVR_AUTO_CLEANUP", "AUTO_CLEANUP_ENABLED"))
    host: str | None = Field(None, validation_alias="FGVR_HOST")
    port: int | None = Field(None, validation_alias="FGVR_PORT")
    max_inflight: int | None = Field(None, validation_alias="FGVR_MAX_INFLIGHT")
    deadline: float | None = Field(None, validation_alias="FGVR_DEADLINE")
    max_body: str | None = Field(None, validation_alias="FGVR_MAX_BODY")

    @classmethod
    def read(cls) -> Environment:
        """Raises ConfigError naming the variable."""
        try:
            return cls()  # type: ignore[call-arg]
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(f"environment or .env: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None

    @property
    def overrides(self) -> dict[str, Any]:
        """Key of the configuration -> value, for those that are set."""
        runtime = {f"runtime.{name}": getattr(self, name) for name in ("budget", "check_interval", "auto_cleanup")}
        server = {f"server.{name}": getattr(self, name) for name in ("host", "port", "max_inflight", "deadline", "max_body")}
        return {key: value for key, value in (runtime | server).items() if value not in (None, "")}


@dataclass(frozen=True, slots=True)
class Tokens:
    """`admin` lets one change things, `reader` read them; no reader token: reading is free."""

    admin: str = field(repr=False)
    reader: str | None = field(default=None, repr=False)
    made: bool = False  # the admin token was made here: show it once

    @classmethod
    def of(cls, environment: Environment) -> Tokens:
        given = environment.admin_token.get_secret_value() if environment.admin_token else ""
        reader = environment.token.get_secret_value() if environment.token else ""
        return cls(given or secrets.token_urlsafe(24), reader or None, made=not given)


@dataclass(frozen=True, slots=True)
class Settings:
    """`server.*` of configs/mode/serve.yaml, where each is explained. Bytes and seconds."""

    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: tuple[str, ...] = ()
    max_inflight: int = 64
    deadline: float = 120.0
    drain: float = 6.0
    batch_wait: float = 0.004
    batch_tokens: int = 16384
    max_body: int = 32 << 20
    max_images: int = 16
    max_pixels: int = 25_000_000
    max_messages: int = 256
    body_bytes: int = 64 << 20
    decode_bytes: int = 256 << 20
    decode_seconds: float = 5.0
    upload_seconds: float = 30.0
    stall: float = 30.0
    max_connections: int = 256
    max_prompt_chars: int = 20_000
    max_new_tokens: int = 1024
    max_items: int = 256
    max_n: int = 8
    image_hosts: tuple[str, ...] = ()
    health_model: str = "mllm"
    health_seconds: float = 5.0
    logs: Path | None = None
    log_days: int = 14

    @classmethod
    def of(cls, server: Mapping[str, Any]) -> Settings:
        """From plain values. Raises ConfigError listing every key that is wrong, with what may stand there."""
        wrong: list[str] = []
        values: dict[str, Any] = {}
        for one in fields(cls):
            value = server[one.name]
            found = _read(one.name, value, getattr(cls(), one.name))
            if found is None and value is not None:
                wrong.append(f"server.{one.name}={value}")
            values[one.name] = found
        if values["health_model"] not in ("mllm", "encoder", "joint"):
            wrong.append(f"server.health_model={values['health_model']} (mllm, encoder or joint)")
        if values["port"] is not None and not 0 <= values["port"] < 65536:
            wrong.append(f"server.port={values['port']} (0 to 65535; 0 = any free one)")
        if wrong:
            raise ConfigError(f"not understood: {'; '.join(wrong)}; see configs/mode/serve.yaml")
        return cls(**values)


def _read(name: str, value: Any, default: Any) -> Any:
    """As the default's type; None = it is not that."""
    match default:
        case tuple():
            texts = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
            return tuple(item.lower() for item in value) if texts else None
        case int():
            size = parse_bytes(value) if isinstance(value, str) and name in ("max_body", "body_bytes", "decode_bytes") else value
            if isinstance(size, str) and size.isdigit():
                size = int(size)
            return size if isinstance(size, int) and not isinstance(size, bool) and size >= (0 if name == "port" else 1) else None
        case float():
            return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 else None
        case str():
            return value if isinstance(value, str) and value else None
    return None if value is None else Path(str(value)).expanduser()
