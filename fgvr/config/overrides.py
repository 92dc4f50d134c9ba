"""Overrides (`key=value`): what people type made safe for Hydra's grammar, and Hydra's complaints made readable.

The command line and `load_config` both go through here, so both accept and answer the same. `--help` needs this file, so it imports
neither Hydra nor pydantic before they are used.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fgvr.config import experiments
from fgvr.errors import ConfigError, causes
from fgvr.utils.paths import config_dir

PATH_KEYS = {
    "image",
    "images",
    "root",
    "predictions",
    "answers",
    "learned",
    "names",
    "run",
    "path",
    "home",
    "source",
    "split_file",
    "cache_dir",
    "logs",
}  # last part of a key whose value is a path
PATHS_KEYS = {"runs"}  # whose value is a path, or a list of them in brackets
OPTIONAL = {"experiment", "local"}  # groups of which none need be chosen
LITERALS = {"", "null", "???"}
RENAMED = {
    "slow.arbitrate": "slow.answer_fusion",
    "knowledge.rehearse": "knowledge.leave_one_out",
    "discover.price": "discover.complexity_penalty",
}  # key of a former version -> its name now
FORMER_VALUES = {("slow.arbitrate", "pool"): "log_linear"}
REFUSED = {
    "models.mllm.device_map": "one model is not laid over several devices, since each device has a pool and a budget of its own. "
    "Write runtime.offload=auto or models.mllm.quantization=nf4, or have an engine spread the model: models/mllm=vllm"
}  # key that other programs have -> why there is none, and what to write


_NO_NAME = re.compile(r"null|true|false|[-+.\d]+", re.IGNORECASE)  # what Hydra reads as something else than an option's name


def groups(tree: Path | None = None) -> dict[str, list[str]]:
    """Every config group with its options, `models/mllm` style; read from file names and the table of experiments."""
    tree = tree or config_dir()
    found = _folders(tree)
    if listed := experiments.names(tree):
        found["experiment"] = listed
    return dict(sorted(found.items()))


def _folders(tree: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for file in sorted(tree.glob("*/**/*.yaml")):
        found.setdefault(file.parent.relative_to(tree).as_posix(), []).append(file.stem)
    return found


# --- before Hydra ------------------------------------------------------------------------------------------------------------


def tidy(words: Sequence[str], tree: Path | None = None, *, sweep: bool = False) -> list[str]:
    """Words as Hydra wants them: path values quoted; ConfigError, with what to write instead, for what cannot be an override.

    Args: sweep: a comma separates values, except in the name of a file or folder that exists, and between quotes.
    """
    known = _folders(tree or config_dir()) | {"experiment": []}  # whose names are in a table, and not needed here
    words = [_tidy(word, before, known, sweep) for before, word in zip(["", *words], words, strict=False)]
    return [*words, *(implied(words) if tree is None else ())]


def implied(words: Sequence[str]) -> list[str]:
    """Options that others imply, where nobody has chosen: photographs get `models=photos`, whose features suit a linear classifier
    and mirrored views, and which has no MLLM, hence `slow=none`.

    Hydra's own defaults cannot say that: an option overrides others of its own group only. Of a sweep's choices nothing follows.
    """
    chosen = {name: value for name, _, value in (word.partition("=") for word in words)}
    images, found = chosen.get("dataset", _BIRDS), []
    if chosen.get("mode") == "replay":  # the recorded run has chosen
        return found
    if not {"models", "experiment"} & chosen.keys() and images != _BIRDS and "," not in images:
        found.append("models=photos")
    if "models=photos" in (*words, *found):
        wanted = {"fusion": "linear", "knowledge.views": "2", "slow": "none"}
        if chosen.get("models/mllm", "none") != "none":
            del wanted["slow"]
        elif chosen.get("mode") not in _PINNED and not any(key.split(".")[0] == "trigger" for key in chosen):
            wanted["trigger.target"] = "slow_rate:0.3"  # so many a person is asked to look at
        found += [f"{key}={value}" for key, value in wanted.items() if key not in chosen]
    return found


_BIRDS = "birds"
_PINNED = ("fastonly", "slowonly")  # modes that choose the trigger


def _tidy(word: str, before: str, known: Mapping[str, list[str]], sweep: bool) -> str:
    name, equals, value = word.partition("=")
    key = name.lstrip("+~").partition("@")[0]
    if not equals and not name.startswith("~"):
        raise ConfigError(f"{word!r} is not key=value; write {_instead(word, before, known)}")
    if key in RENAMED:
        raise ConfigError(f"{key} is {RENAMED[key]} now: write {RENAMED[key]}={FORMER_VALUES.get((key, value), value)}")
    if "." in key and key.replace(".", "/") in known:
        raise ConfigError(f"{key} is a group of configurations: write {name.replace('.', '/')}={value} (slash, not dot)")
    if key in known and _NO_NAME.fullmatch(value) and not (value == "null" and key in OPTIONAL):
        return f"{name}='{value}'"  # which Hydra reads as a name, and does not find
    if key == "hydra.searchpath":
        _check_searched(value)
    if key in PATHS_KEYS or (key.endswith(".source") and value[:1] == "["):  # the addresses of one model
        return f"{name}={_tidy_lists(value, sweep)}"
    return f"{name}={_tidy_path(key, value, sweep)}" if _is_path(key) else word


def _check_searched(value: str) -> None:
    """Raises ConfigError for a folder that is not there, which Hydra passes over with a warning."""
    for path in split_paths(value.strip("[]")):
        place = path.strip("'\"").removeprefix("file://")
        if "://" not in place and not Path(place).is_dir():
            raise ConfigError(f"hydra.searchpath: {place} is no folder; name the one that holds your trigger/NAME.yaml and the like")


def _tidy_path(key: str, value: str, sweep: bool) -> str:
    choices = split_paths(value)
    if sweep and not _FUNCTION.fullmatch(value):
        return ",".join(map(_quoted, choices))
    if len(choices) > 1 and all(_exists(choice) for choice in choices):
        raise ConfigError(f"{key}={value}: no such file or folder, but {' and '.join(choices)} exist; write -m for a job with each of them")
    return value if sweep else _quoted(value)


def _tidy_lists(value: str, sweep: bool) -> str:
    """`[A,B]`; outside of a sweep A,B says the same. In one, a comma outside of brackets begins the next job's list."""
    if value[:1] == "[" and value[-1:] == "]":
        lists = value[1:-1].split("],[") if sweep else [value[1:-1]]
        return ",".join(f"[{','.join(map(_quoted, split_paths(one)))}]" for one in lists)
    paths = [_quoted(path) for path in split_paths(value)]
    return ",".join(paths) if sweep or len(paths) == 1 else f"[{','.join(paths)}]"


_FUNCTION = re.compile(r"(choice|shuffle|sort|glob)\(.*\)")  # of Hydra's grammar for sweeps
_BETWEEN_COMMAS = re.compile(r"""(?:'[^']*'|"[^"]*"|[^,])+""")


def split_paths(value: str) -> list[str]:
    """The paths between commas. A comma within quotes separates none, nor does one in the name of something that exists."""
    pieces = _BETWEEN_COMMAS.findall(value)
    paths = []
    while pieces:
        count = next((n for n in range(len(pieces), 1, -1) if _exists(",".join(pieces[:n]))), 1)
        paths.append(",".join(pieces[:count]).strip())
        del pieces[:count]
    return paths or [value]


def _exists(path: str) -> bool:
    try:
        return Path(path.strip().strip("'\"")).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, no such user: no path of this machine
        return False


def _instead(word: str, before: str, known: Mapping[str, list[str]]) -> str:
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


def explain(error: Any, words: Sequence[str], tree: Path | None = None) -> str:
    """What is wrong and what would be right, from an exception of Hydra's or OmegaConf's."""
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf.errors import MissingMandatoryValue

    if isinstance(error, MissingMandatoryValue):
        from fgvr.config.fields import needed

        return needed(str(error.full_key))
    tree = tree or config_dir()
    known = groups(tree)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {error.message.splitlines()[0]}\nA value with such characters needs quotes of its own: \"key='value'\""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if error.options:  # also those in the folders of hydra.searchpath
            return _no_such_option(group, option, error.options)
    return "\n".join(_unknown_keys(words, known, tree, error)) or "\n".join(dict.fromkeys(_lines(error)))


def _no_such_option(group: str, option: str, options: Sequence[str]) -> str:
    near = _list("Nearest", nearest(option, options))
    return f"{group}={option}: no such option. {near}".rstrip() + f"\nThe options of {group}: {', '.join(sorted(options))}"


def nearest(word: str, choices: Iterable[str]) -> list[str]:
    """Up to three choices like the word: as a whole, in the last part of a dotted key, or in one part of a compound name."""

    def likeness(choice: str) -> float:
        pairs = [(word, choice), (tail(word), tail(choice)), *((word, part) for part in choice.split("_"))]
        return max(difflib.SequenceMatcher(None, *pair).ratio() - 0.1 * (pair[1] != choice) for pair in pairs)

    def tail(name: str) -> str:
        return name.rpartition(".")[2]

    ranked = sorted(((likeness(choice), choice) for choice in dict.fromkeys(choices)), key=lambda pair: (-pair[0], pair[1]))
    return [choice for score, choice in ranked if score > 0.7 and score > ranked[0][0] - 0.15][:3]


def _unknown_keys(words: Sequence[str], known: Mapping[str, list[str]], tree: Path, error: BaseException) -> Iterator[str]:
    named = [word.partition("=") for word in words if not word.startswith(("+", "~", "hydra."))]
    here = _seen(error) or _keys([f"{name}={value.partition(',')[0]}" for name, _, value in named if name.partition("@")[0] in known], tree)
    brought = {key: f"{key} (with {' or '.join(choices)})" for key, choices in _brought(known, tree).items() if key not in here}
    for name, _, _ in named:
        if not here or name in here or name.partition("@")[0] in known:
            continue
        if name in REFUSED:
            yield f"{name}: {REFUSED[name]}"
            continue
        choices = [key for key in (*here, *brought) if key.replace(".", "/") not in known]
        close = [name] if name in brought else nearest(name.replace("/", "."), [*choices, *known])
        yield f"{name}: no such key here. " + (_list("Nearest", [brought.get(key, key) for key in close]) or _siblings(name, here))


def _list(title: str, names: Sequence[str]) -> str:
    return f"{title}: {', '.join(names)}" if names else ""


def _keys(choices: Sequence[str], tree: Path) -> set[str]:
    """All keys of the configuration these group choices make; none when they make none."""
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    from fgvr.config.hydra_tree import composed

    try:
        return set(_walk(OmegaConf.to_container(composed(choices, tree))))
    except HydraException:
        return set()


def _seen(error: BaseException | None) -> set[str]:
    """All keys of the configuration in which OmegaConf looked for the one that is not there: to compose it again takes .2 s."""
    from omegaconf import OmegaConf

    node = next((node for cause in causes(error, meanwhile=False) if (node := getattr(cause, "parent_node", None)) is not None), None)
    found = () if node is None else _walk(OmegaConf.to_container(node._get_root()))
    return {key for key in found if key.partition(".")[0] != "hydra"}


def _walk(node: object, prefix: str = "") -> Iterator[str]:
    for key, child in node.items() if isinstance(node, dict) else ():
        if key != "_target_":
            yield f"{prefix}{key}"
        yield from _walk(child, f"{prefix}{key}.")


def _brought(known: Mapping[str, list[str]], tree: Path) -> dict[str, list[str]]:
    """Keys with the choices that bring them: `image` comes with mode=classify."""
    found: dict[str, list[str]] = {}
    for group, options in known.items():
        start = "" if group == "mode" else group.replace("/", ".") + "."
        for option in options if group != "experiment" else ():
            text = (tree / group / f"{option}.yaml").read_text(encoding="utf-8")
            for leaf in re.findall(r"(?m)^([a-z]\w*):", text):
                if leaf != "defaults":
                    found.setdefault(f"{start}{leaf}", []).append(f"{group}={option}")
    return found


def _siblings(key: str, keys: set[str]) -> str:
    parent = key.rpartition(".")[0]
    while parent and parent not in keys:
        parent = parent.rpartition(".")[0]
    return _list("The keys there", sorted(k for k in keys if k.rpartition(".")[0] == parent))


def _lines(error: BaseException | None) -> Iterator[str]:
    for cause in causes(error, meanwhile=False):
        yield from (line.strip() for line in str(cause).splitlines() if line.strip() and "object_type=" not in line)
