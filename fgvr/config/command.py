"""The command that builds the knowledge base a configuration means, for errors to name: what differs from the defaults, and little more."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import OmegaConf

from fgvr.config.configuration import Config
from fgvr.config.overrides import PATH_KEYS, groups
from fgvr.types import ROLES
from fgvr.utils.paths import config_dir

_SLOW = ("decoder", "target", "exemplars", "max_new_tokens", "weight", "arbitrate")  # the last two go with knowledge.rehearse=false
_BASE = ("pictures_per_description", "cross_fit", "split", "templates", "views", "rehearse", "path", "learned")
_SIMPLE = re.compile(r"[A-Za-z_./][\w./-]*")

Values = Mapping[str, Any]


def building_command(cfg: Config) -> str:
    """For a shell; its words make a configuration whose base has the same key and lies in the same place."""
    if cfg.mode == "discover":
        return "the same command without knowledge.build=never and knowledge.path"
    values = cfg.to_dict()
    words = ["mode=build_knowledge_base", *_words(values, "paths", values["paths"], default="default")]
    words += _words(values, "dataset", values["dataset"], default="birds")
    words += _models(values)
    words += _words(values, "slow", values["slow"], default="score", only=_SLOW)
    words += _words(values, "knowledge", values["knowledge"], default="default", only=_BASE)
    return shlex.join(["python", "discovering.py", *words])


def _models(values: Values) -> list[str]:
    """A bundle, then what in its parts is not the bundle's. The joint encoder has no share in a base."""
    node = values["models"]
    parts = {role: _nearest(f"models/{role}", node[role]) for role in ROLES}
    bundle = _nearest("models", {**node, **parts})
    words = [_word("server.url", values["server"]["url"])] if "remote" in (bundle, *parts.values()) else []
    words += _words(values, "models", {**node, **parts}, default="tiny", only=tuple(key for key in node if key not in parts))
    for role in ("mllm", "encoder"):
        words += _words(values, f"models/{role}", node[role], default=_option("models", bundle)[role])
    return words


def _words(values: Values, group: str, node: Values, *, default: str, only: Sequence[str] | None = None) -> list[str]:
    """The nearest option of a group, unless it is the default, and the keys in which the configuration differs from it."""
    option = _nearest(group, node)
    whole = OmegaConf.create({**values, "there": _option(group, option)})
    there: Any = OmegaConf.to_container(whole.there, resolve=True)
    changed = {key: value for key, value in node.items() if (only is None or key in only) and (key not in there or there[key] != value)}
    chosen = [f"{group}={option}"] if option != default else []
    return chosen + [_word(f"{'' if key in there else '+'}{group.replace('/', '.')}.{key}", value) for key, value in changed.items()]


def _nearest(group: str, node: Values) -> str:
    """The option that has most values in common with a node, and the same target."""

    def likeness(option: str) -> tuple[bool, int]:
        written = _option(group, option)
        return written.get("_target_") == node.get("_target_"), sum(node.get(key, ...) == value for key, value in written.items())

    return max(groups()[group], key=likeness)


def _option(group: str, option: str) -> dict[str, Any]:
    """As it is written: references stand for themselves, a part of a bundle for its name."""
    written: Any = OmegaConf.to_container(OmegaConf.load(config_dir() / group / f"{option}.yaml"))
    for part in written.pop("defaults", ()):
        written = {**_option(group, part), **written} if isinstance(part, str) else {**written, **part}
    return written


def _word(key: str, value: object) -> str:
    path = key.startswith("paths.") or key.rpartition(".")[2] in PATH_KEYS  # quoted by whoever reads the command
    return f"{key}={value if path and isinstance(value, str) else _written(value)}"


def _written(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, str) and not (_SIMPLE.fullmatch(value) and value.lower() not in ("null", "true", "false", "nan", "inf")):
        return QuotedString(value, Quote.single).with_quotes()
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
