"""What `server.*` and the environment say. Names of variables follow 12-factor; tokens are secrets, so they come from there alone."""

import secrets
from collections.abc import Mapping
from dataclasses import field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, SecretStr, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_settings import BaseSettings, SettingsConfigDict

from fgvr.errors import ConfigError
from fgvr.runtime.budget import parse_bytes
from fgvr.utils.paths import user_path


def _variable(*names: str) -> Any:
    return Field(None, validation_alias=AliasChoices(*names))


class Environment(BaseSettings):
    """Variables that set what the command line leaves at its default; see `overrides`."""

    model_config = SettingsConfigDict(env_file=".env", env_file_encoding="utf-8", extra="ignore", hide_input_in_errors=True)

    admin_token: SecretStr | None = _variable("FGVR_ADMIN_TOKEN", "ADMIN_TOKEN")
    token: SecretStr | None = _variable("FGVR_TOKEN")
    budget: str | None = _variable("FGVR_BUDGET", "MAX_MEMORY_USAGE")
    check_interval: float | None = _variable("FGVR_CHECK_INTERVAL", "MEMORY_CHECK_INTERVAL")
    auto_cleanup: bool | None = _variable("FGVR_AUTO_CLEANUP", "AUTO_CLEANUP_ENABLED")
    host: str | None = _variable("FGVR_HOST")
    port: int | None = _variable("FGVR_PORT")
    max_inflight: int | None = _variable("FGVR_MAX_INFLIGHT")
    deadline: float | None = _variable("FGVR_DEADLINE")
    max_body: str | None = _variable("FGVR_MAX_BODY")

    @classmethod
    def read(cls) -> "Environment":
        """Raises ConfigError naming the variable."""
        try:
            return cls()
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(f"environment or .env: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None

    @property
    def overrides(self) -> dict[str, Any]:
        """Key of the configuration -> value, for those that are set."""
        runtime = {f"runtime.{name}": getattr(self, name) for name in ("budget", "check_interval", "auto_cleanup")}
        server = {f"server.{name}": getattr(self, name) for name in ("host", "port", "max_inflight", "deadline", "max_body")}
        return {key: value for key, value in (runtime | server).items() if value not in (None, "")}


@dataclass(frozen=True)
class Tokens:
    """`admin` lets one change things, `reader` read them; no reader token: reading is free."""

    admin: str = field(repr=False)
    reader: str | None = field(default=None, repr=False)
    made: bool = False  # the admin token was made here: show it once

    @classmethod
    def of(cls, environment: Environment) -> "Tokens":
        given = environment.admin_token.get_secret_value() if environment.admin_token else ""
        reader = environment.token.get_secret_value() if environment.token else ""
        return cls(given or secrets.token_urlsafe(24), reader or None, made=not given)


def _number(value: Any) -> Any:
    """Numbers as text come from the environment; true is not 1."""
    if isinstance(value, bool):
        raise ValueError("a number is needed")
    return int(value) if isinstance(value, str) and value.isdigit() else value


Count = Annotated[int, BeforeValidator(_number), Field(ge=1)]
Bytes = Annotated[int, BeforeValidator(lambda value: (isinstance(value, str) and parse_bytes(value)) or _number(value)), Field(ge=1)]
Seconds = Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)]
Names = tuple[Annotated[str, AfterValidator(str.lower)], ...]


@dataclass(frozen=True)
class Settings:
    """`server.*` of configs/mode/serve.yaml, where each is explained."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, BeforeValidator(_number), Field(ge=0, lt=65536)] = 8000
    allowed_hosts: Names = ()
    max_inflight: Count = 64
    deadline: Seconds = 120.0
    drain: Seconds = 6.0
    batch_wait: Seconds = 0.004
    batch_tokens: Count = 16384
    max_body: Bytes = 32 << 20
    max_images: Count = 16
    max_pixels: Count = 25_000_000
    max_messages: Count = 256
    body_bytes: Bytes = 64 << 20
    decode_bytes: Bytes = 256 << 20
    decode_seconds: Seconds = 5.0
    upload_seconds: Seconds = 30.0
    stall: Seconds = 30.0
    max_connections: Count = 256
    max_prompt_chars: Count = 20_000
    max_new_tokens: Count = 1024
    max_items: Count = 256
    max_n: Count = 8
    image_hosts: Names = ()
    health_model: Literal["mllm", "encoder", "joint"] = "mllm"
    health_seconds: Seconds = 5.0
    logs: Annotated[Path, AfterValidator(user_path)] | None = None
    log_days: Count = 14

    @classmethod
    def of(cls, server: Mapping[str, Any]) -> "Settings":
        """From plain values. Raises ConfigError listing every key that is wrong, with what may stand there."""
        try:
            return cls(**{one.name: server[one.name] for one in fields(cls)})
        except ValidationError as error:
            wrong = {str(one["loc"][0]): one["msg"] for one in error.errors()}
            told = "; ".join(f"server.{name}={server[name]} ({why})" for name, why in wrong.items())
            raise ConfigError(f"not understood: {told}; see configs/mode/serve.yaml") from None
