"""Overrides (`key=value`): what people type made safe for Hydra's grammar, and Hydra's complaints made readable.

The command line and `load_config` both go through here, so both accept and answer the same. Hydra is imported only where it is used.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from fgvr.errors import ConfigError
from fgvr.utils.paths import config_dir

PATH_KEYS = {"image", "images", "root", "predictions", "path", "home", "source"}  # last part of a key whose value is a path
LITERALS = {"", "null", "???"}


def groups(tree: Path | None = None) -> dict[str, list[str]]:
    """Every config group with its options, `models/mllm` style; read from file names, so it costs nothing."""
    tree = tree or config_dir()
    found: dict[str, list[str]] = {}
    for file in sorted(tree.glob("*/**/*.yaml")):
        found.setdefault(file.parent.relative_to(tree).as_posix(), []).append(file.stem)
    return dict(sorted(found.items()))


# --- before Hydra ------------------------------------------------------------------------------------------------------------


def tidy(words: Sequence[str], tree: Path | None = None) -> list[str]:
    """Words as Hydra wants them: path values quoted; ConfigError, with what to write instead, for what cannot be an override."""
    known = groups(tree)
    return [_tidy(word, before, known) for before, word in zip(["", *words], words, strict=False)]


def _tidy(word: str, before: str, known: Mapping[str, list[str]]) -> str:
    name, equals, value = word.partition("=")
    key = name.lstrip("+~").partition("@")[0]
    if not equals and not name.startswith("~"):
        raise ConfigError(f"{word!r} is not key=value; write {_meant(word, before, known)}")
    if "." in key and key.replace(".", "/") in known:
        raise ConfigError(f"{key} is a group of configurations: write {name.replace('.', '/')}={value} (slash, not dot)")
    return f"{name}={_quoted(value)}" if _is_path(key) else word


def _meant(word: str, before: str, known: Mapping[str, list[str]]) -> str:
    if word in known.get("mode", ()):
        return f"mode={word}"
    if _is_path(before.partition("=")[0]):
        return f"'{before} {word}' (in quotes, because of the blank)"
    return f"mode=classify image={word}" if Path(word).exists() else f"{word}=VALUE"


def _is_path(key: str) -> bool:
    return key.startswith("paths.") or key.rpartition(".")[2] in PATH_KEYS


def _quoted(value: str) -> str:
    if value in LITERALS or (len(value) > 1 and value[0] == value[-1] and value[0] in "'\""):
        return value
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(os.path.expanduser(value), Quote.single).with_quotes()


# --- after Hydra -------------------------------------------------------------------------------------------------------------


def explain(error: BaseException, words: Sequence[str], tree: Path | None = None) -> str:
    """What is wrong and what would be right, from an exception of Hydra's or OmegaConf's."""
    from hydra.errors import MissingConfigException
    from omegaconf.errors import MissingMandatoryValue

    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}=VALUE is needed here"
    tree = tree or config_dir()
    known = groups(tree)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if group in known:
            return f"{group}={option}: no such option.{nearest(option, known[group])}\nThe options of {group}: {', '.join(known[group])}"
    return "\n".join(_unknown_keys(words, known, tree)) or "\n".join(dict.fromkeys(_lines(error)))


def nearest(word: str, choices: Iterable[str]) -> str:
    """` Did you mean ...?`, or nothing when nothing is near."""
    choices = list(choices)
    close = difflib.get_close_matches(word, choices)
    tails = [c for c in choices if difflib.get_close_matches(word.rpartition(".")[2], [c.rpartition(".")[2]], cutoff=0.8)]
    return f" Did you mean {' or '.join(list(dict.fromkeys([*close, *tails]))[:4])}?" if close or tails else ""


def _unknown_keys(words: Sequence[str], known: Mapping[str, list[str]], tree: Path) -> Iterator[str]:
    named = [word.partition("=") for word in words if not word.startswith(("+", "~", "hydra."))]
    choices = [f"{name}={value.partition(',')[0]}" for name, _, value in named if name.partition("@")[0] in known]
    keys = _keys(choices, tree)
    for name, _, _ in named:
        key = name.replace("/", ".")
        if keys and name.partition("@")[0] not in known and (key not in keys or "/" in name):
            elsewhere = list(_options_with(key, known, tree))
            only = f" It exists only with {' or '.join(elsewhere)}." if elsewhere else ""
            yield f"{name}: no such key.{only or nearest(key, [*keys, *known]) or _siblings(key, keys)}"


def _keys(choices: Sequence[str], tree: Path) -> set[str]:
    """All keys of the configuration these group choices make; none when they make none."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    def walk(node: object, prefix: str) -> Iterator[str]:
        for key, child in node.items() if isinstance(node, dict) else ():
            yield f"{prefix}{key}"
            yield from walk(child, f"{prefix}{key}.")

    try:
        with initialize_config_dir(str(tree), version_base="1.3"):
            return set(walk(OmegaConf.to_container(compose("config", list(choices))), ""))
    except HydraException:
        return set()


def _options_with(key: str, known: Mapping[str, list[str]], tree: Path) -> Iterator[str]:
    """Choices that would bring the key: an option of its group, or a mode for a key without group."""
    group, _, leaf = key.rpartition(".")
    group = group.replace(".", "/") or "mode"
    for option in known.get(group, ()):
        if re.search(rf"(?m)^{re.escape(leaf)}\s*:", (tree / group / f"{option}.yaml").read_text(encoding="utf-8")):
            yield f"{group}={option}"


def _siblings(key: str, keys: set[str]) -> str:
    parent = key.rpartition(".")[0]
    while parent and parent not in keys:
        parent = parent.rpartition(".")[0]
    start = f"{parent}." if parent else ""
    names = sorted(k for k in keys if k.startswith(start) and "." not in k[len(start) :])
    return f" The keys there: {', '.join(names)}"


def _lines(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        yield from (line.strip() for line in str(error).splitlines() if line.strip() and "object_type=" not in line)
        error = error.__cause__
