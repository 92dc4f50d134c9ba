"""What may stand behind each key of the configuration: looked at before anything else happens, in every mode, also where it plays no part.

Here is what a value must be by itself. What it means together with others, or on this machine, is judged by the part that uses it.
Imports nothing heavy: `mode=plan` answers in less time than numpy takes to import.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from fgvr.agents.targets import Target
from fgvr.errors import ConfigError
from fgvr.runtime.budget import parse_bytes
from fgvr.runtime.policy import POLICIES
from fgvr.types import ROLES

Rule = Callable[[Any], str]
"""A value -> what it must be; "" when it is that."""


def choice(*values: Any) -> Rule:
    said = f"must be one of {', '.join(_spelled(value) for value in values)}"
    return lambda value: "" if any(value is v or (type(value) is type(v) and value == v) for v in values) else said


def number(least: float = -math.inf, most: float = math.inf, *, also: tuple[Any, ...] = ()) -> Rule:
    """A finite number, or one of `also`."""
    return _number(int | float, "a number", least, most, also)


def whole(least: float = -math.inf, most: float = math.inf, *, also: tuple[Any, ...] = ()) -> Rule:
    """A whole number, or one of `also`."""
    return _number(int, "a whole number", least, most, also)


def _number(kind: Any, name: str, least: float, most: float, also: tuple[Any, ...]) -> Rule:
    if math.isfinite(most):
        name += f" from {least:g} to {most:g}"
    elif math.isfinite(least):
        name += f" from {least:g} up"
    said = "must be " + ", or ".join([name, *map(_spelled, also)])

    def rule(value: Any) -> str:
        fits = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value) and least <= value <= most
        return "" if fits or value in also else said

    return rule


def text(*, null: bool = False) -> Rule:
    said = "must be text" + (", or null" if null else "") + """ (digits alone in two kinds of quotes: '"123"')"""
    return lambda value: "" if (isinstance(value, str) and value) or (null and value is None) else said


def each(rule: Rule, *, least: int = 0, most: float = math.inf) -> Rule:
    """A list whose every entry follows the rule."""
    said = f"must be a list of {least} entries, such as [A,B]" if least == most else "must be a list, such as [A,B]"
    said += ", not empty" if least == 1 else ""

    def judge(value: Any) -> str:
        if not isinstance(value, list) or not least <= len(value) <= most:
            return said
        return next((f"entry {entry!r} {wrong}" for entry in value if (wrong := rule(entry))), "")

    return judge


def target(*, null: bool = False) -> Rule:
    """Of a calibrated trigger; the message is the parser's own."""

    def rule(value: Any) -> str:
        try:
            Target.parse("slow_rate:0" if null and value is None else value)
        except ConfigError as error:
            return str(error).partition(": ")[2]
        return ""

    return rule


def size(*also: Any) -> Rule:
    """Bytes, as a whole number or with a unit; null, where it may stand, means no limit."""
    more = {None: ", or null for no limit", "auto": ", or auto"}
    said = "must be a whole number of bytes, or a size such as 2GiB" + "".join(more[value] for value in also)

    def rule(value: Any) -> str:
        found = parse_bytes(value) if isinstance(value, str) else value
        return "" if value in also or (isinstance(found, int) and not isinstance(found, bool) and found >= 0) else said

    return rule


def pins(value: Any) -> str:
    """Roles that are never evicted."""
    return "" if value is None else each(choice(*ROLES))(value)


def roles(values: Any) -> str:
    """A section with a key for each role of a model."""
    return "" if set(values) <= set(ROLES) else f"has a key for each of {', '.join(ROLES)}, and no other"


def webhook(value: Any) -> str:
    """An address, or the environment variable that holds one."""
    if wrong := text(null=True)(value):
        return wrong
    fits = "://" not in (value or "") or (urlsplit(value).scheme in ("http", "https") and urlsplit(value).hostname)
    return "" if fits else "must be an address that begins with http:// or https://, an environment variable that holds one, or null"


def web_address(value: Any) -> str:
    """Of a server that files are fetched from."""
    parts = urlsplit(value) if isinstance(value, str) else None
    fits = value is None or (parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname))
    return "" if fits else "must be an address that begins with http:// or https://, or null"


def level(value: Any) -> str:
    """Of the log, in any case of letters."""
    return choice("debug", "info", "warning", "error", "critical")(value.lower() if isinstance(value, str) else value)


def learning(value: Any) -> str:
    """YAML reads a bare off as false."""
    return choice("off", "statistics", "prototypes")("off" if value is False else value)


def _spelled(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def anything(value: Any) -> str:
    """Judged by the part that uses it, before it uses it."""
    return ""


NEEDED = {
    "image": "an image or a folder of images, such as image='my bird.jpg'",
    "images": "a folder of unlabelled images, such as images=photos",
    "predictions": "a run's folder or the predictions.jsonl in it, such as predictions=fgvr_home/runs/evaluate/1a2b3c4d5e6f",
    "runs": "the folders of two runs, such as runs=[fgvr_home/runs/evaluate/1a2b3c4d5e6f,fgvr_home/runs/evaluate/6f5e4d3c2b1a], "
    "or the folder of one sweep, such as runs=fgvr_home/sweeps/1a2b3c4d5e6f",
    "answers": "the answers.csv that a review page lets one download, such as answers=answers.csv",
    "dataset.root": "the folder that holds the images, such as dataset.root=photos",
}
"""Keys without a default, and what their value is."""


def needed(key: str) -> Rule:
    return lambda value: text()(value) and f"must be {NEEDED[key]}"


def runs(value: Any) -> str:
    """One folder, or a list of them."""
    named = value if isinstance(value, list) else [value]
    return "" if named and not any(map(text(), named)) else f"must be {NEEDED['runs']}"


SWITCH = choice(True, False)
SHARE = number(0, 1)
SECONDS = number(0)
COUNT = whole(1)
NULL = (None,)

RULES: dict[str, Rule] = {
    "mode": text(),
    "pinned_trigger": text(null=True),
    "published": anything,
    "seed": whole(0),
    "online": learning,
    "store.enabled": SWITCH,
    "store.limit": size(None),
    "run.fresh": SWITCH,
    "paths.home": text(),
    "paths.data": text(),
    "logging.level": level,
    "logging.quiet": SWITCH,
    "logging.json": SWITCH,
    "logging.tracker": choice(None, "tensorboard", "wandb", "mlflow", "trackio"),
    # what a mode is asked about
    "image": needed("image"),
    "images": needed("images"),
    "predictions": needed("predictions"),
    "runs": runs,
    "answers": needed("answers"),
    "review.run": text(null=True),
    "review.learn": SWITCH,
    "review.of": text(),
    "fetch.ask": SWITCH,
    "fetch.mirror": web_address,
    "action": text(),
    "limit": anything,
    "baselines.which": anything,
    "baselines.neighbours": COUNT,
    "experience.failures": COUNT,
    "experience.max_new_tokens": COUNT,
    "experience.alike": SHARE,
    "experience.level": SHARE,
    "experience.least": COUNT,
    "discover.superclass": text(null=True),
    "discover.shortlist": COUNT,
    "discover.alike": SHARE,
    "discover.price": number(0, also=NULL),
    "discover.shots": whole(2, also=NULL),
    "discover.max_new_tokens": COUNT,
    "discover.kinds": whole(1, also=NULL),
    "discover.names": text(null=True),
    # images
    "dataset.root": needed("dataset.root"),
    "dataset.name": text(),
    "dataset.shots": whole(1),
    "dataset.tail_shots": whole(1, also=NULL),
    "dataset.test_per_class": whole(0, also=NULL),
    "dataset.calibration": whole(0),
    "dataset.split_seed": whole(0),
    "dataset.partition": COUNT,
    "dataset.split_file": text(null=True),
    "dataset.seed": whole(0),
    "dataset.genera": each(COUNT, least=1),
    "dataset.difficulty": SHARE,
    "dataset.superclass": text(),
    "dataset.cache_dir": text(null=True),
    "dataset.strict": SWITCH,
    "dataset.on_bad_image": choice("skip", "error"),
    # models
    "models.name_prompts": SWITCH,
    "models.description_tokens": COUNT,
    "models.notice": text(null=True),
    "models.force": SWITCH,
    "models.slow_target": choice("description", "name", "letter"),
    **{
        f"models.{role}.{key}": rule
        for role in ROLES
        for key, rule in {
            "role": choice(role),
            "loader": text(),
            "source": text(null=True),
            "revision": text(null=True),
            "dtype": text(),
            "quantization": text(null=True),
            "max_pixels": whole(28 * 28, also=NULL),
            "batch_size": COUNT,
            "patience": SECONDS,
        }.items()
    },
    # System 1, the trigger, System 2
    "fusion.top_k": COUNT,
    "fusion.image_weight": SHARE,
    "fusion.name_weight": SHARE,
    "fusion.rrf_weight": number(0),
    "fusion.temperature": number(1e-6, also=NULL),
    "fusion.joint": choice(None, "score", "rerank"),
    "fusion.joint_weight": SHARE,
    "fusion.joint_top": COUNT,
    "fusion.classifier": choice("prototypes", "linear"),
    "fusion.shrinkage": SHARE,
    "trigger.target": target(),
    "trigger.abstain": target(null=True),
    "trigger.form": choice("joint", "selective"),
    "trigger.eta": number(0),
    "trigger.alpha": number(0),
    "trigger.threshold": number(),
    "trigger.shots": COUNT,
    "trigger.slow_rate": SHARE,
    "trigger.seed": whole(0),
    "trigger.certain": each(number(), least=2, most=2),
    "trigger.agreed": number(),
    "trigger.overlap": number(),
    "trigger.bound": number(),
    "trigger.close": each(number(), least=2, most=2),
    "trigger.temperature": number(1e-6),
    "slow.decoder": choice("score", "reason", "analyse", "person", "none"),
    "slow.target": choice("description", "name", "letter"),
    "slow.candidates": whole(1, also=("all",)),
    "slow.arbitrate": choice("pool", "slow", "mllm"),
    "slow.weight": number(0, 1, also=("fitted",)),
    "slow.max_new_tokens": COUNT,
    "slow.votes": COUNT,
    "slow.rules": whole(0),
    "slow.exemplars": SWITCH,
    # the base, the evaluation
    "knowledge.build": choice("missing", "never", "always"),
    "knowledge.path": text(null=True),
    "knowledge.learned": text(null=True),
    "knowledge.pictures_per_description": COUNT,
    "knowledge.cross_fit": SWITCH,
    "knowledge.split": choice("length", "sentences", "clauses"),
    "knowledge.templates": choice(None, 1, 2, 3),
    "knowledge.views": choice(1, 2, 3, 4),
    "knowledge.rehearse": SWITCH,
    "evaluation.record": choice("needed", "all"),
    "evaluation.allow_overlap": choice(None, True, False),
    "evaluation.on_overlap": choice("error", "drop", "allow"),
    "evaluation.protocols": each(text(), least=1),
    "evaluation.batch_size": COUNT,
    # the runtime; its budget and allocator: runtime/budget.py, allocator.py
    "runtime.reserve": size(),
    "runtime.max_models": whole(1, also=NULL),
    "runtime.max_concurrency": whole(1, also=NULL),
    "runtime.policy": choice(*POLICIES),
    "runtime.lease_timeout": SECONDS,
    "runtime.host_budget": size("auto"),
    "runtime.preallocate": SWITCH,
    "runtime.scratch": text(null=True),
    "runtime.optimize": SWITCH,
    "runtime.ttl": number(0, also=NULL),
    "runtime.min_residency": SECONDS,
    "runtime.pin": pins,
    "runtime.priority": roles,
    **{f"runtime.priority.{role}": whole() for role in ROLES},
    "runtime.auto_cleanup": SWITCH,
    "runtime.check_interval": number(0.1),
    "runtime.cleanup_idle": SECONDS,
    "runtime.cleanup_interval": number(0, also=("auto", None)),
    "runtime.watermarks.low": SHARE,
    "runtime.watermarks.high": SHARE,
    "runtime.watermarks.critical": SHARE,
    "runtime.host_low.free": size(),
    "runtime.host_low.used": SHARE,
    "runtime.alerts.log": SWITCH,
    "runtime.alerts.webhook": webhook,
    "runtime.alerts.timeout": number(0.01),
    "runtime.alerts.repeat": number(0.01),
    "runtime.alerts.lease_seconds": number(0.01),
    "runtime": anything,
    "server": anything,  # server/settings.py, which reads the environment, too
}


SECTIONS = {key[:place] for key in RULES for place, letter in enumerate(key) if letter == "."}


def check(values: Mapping[str, Any]) -> None:
    """Raises ConfigError that lists every wrong value, with what may stand there."""
    wrong = [f"{key}={_spelled(value)}: {what}" for key, value, rule in _judged(values, "") if (what := rule(value))]
    if wrong:
        raise ConfigError("; ".join(wrong))


def _judged(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any, Rule]]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if key in SECTIONS and not isinstance(value, Mapping):
            yield key, value, lambda _, key=key: f"is a section of keys: write {key}.KEY=VALUE"
        elif (rule := RULES.get(key)) and not (isinstance(value, str) and "${" in value):  # a reference: judged where it is resolved
            yield key, value, rule
        if isinstance(value, Mapping):
            yield from _judged(value, f"{key}.")


def rule_of(key: str) -> Rule | None:
    """The rule of a key, or of the section it belongs to."""
    while key not in RULES and "." in key:
        key = key.rpartition(".")[0]
    return RULES.get(key)
