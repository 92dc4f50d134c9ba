"""The whole configuration as one frozen record, and its complaints."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, PrivateAttr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from fgvr.config import groups
from fgvr.config.factories import locate
from fgvr.config.fields import (
    ABSENT,
    NEEDED,
    OWN,
    Learning,
    Must,
    Natural,
    Text,
    complaint,
    entries_must_be,
    group_of,
    must_be,
    needed,
    spelled,
)
from fgvr.config.group import Group
from fgvr.config.overrides import REFUSED
from fgvr.errors import ConfigError
from fgvr.utils.files import short_hash
from fgvr.utils.text import nearest

ORACLE = (
    "trigger=oracle decides by the labels, so it exists in evaluations only: write trigger=calibrated, or trigger=always to send "
    "every image to System 2"
)
_UNLABELLED = ("classify", "discover", "serve")  # modes whose pictures have no label
_NO_ANSWERS = ("replay", "compare", "memory", "cache", "plan")  # modes that ask no model
_ALONE = ("serve", "build_experience_base")  # modes that ask models, and have nothing to share among workers
_RENDERED = "fgvr.data.datasets.open_birds"
_NO_RESULT = ("run", "server", "logging", "paths", "pinned_trigger", "store", "runtime", "engine", "published")
"""Keys that change no result."""


class Config(Group):
    """What one command means. `load_config` makes it from words; `derive` makes another one from it."""

    mode: Text
    seed: Natural
    online: Learning
    store: groups.Store
    server: groups.Server
    run: groups.Run
    paths: groups.Paths
    logging: groups.Logging
    runtime: groups.Runtime
    engine: groups.Engine
    dataset: groups.Dataset
    models: groups.Models
    fusion: groups.Fusion
    trigger: groups.Trigger
    slow: groups.Slow
    knowledge: groups.Knowledge
    evaluation: groups.Evaluation
    published: groups.Published = ABSENT
    # of single modes
    pinned_trigger: Text | None = ABSENT
    image: Annotated[Text, Must(NEEDED["image"])] = ABSENT
    images: Annotated[Text, Must(NEEDED["images"])] = ABSENT
    predictions: Annotated[Text, Must(NEEDED["predictions"])] = ABSENT
    answers: Annotated[Text, Must(NEEDED["answers"])] = ABSENT
    fetch: groups.Fetch = ABSENT
    review: groups.Review = ABSENT
    runs: Annotated[Text | list[Text], Must(NEEDED["runs"])] = ABSENT
    action: Text = ABSENT
    limit: Any = ABSENT
    baselines: groups.Baselines = ABSENT
    experience: groups.Experience = ABSENT
    discover: groups.Discover = ABSENT

    _words: tuple[str, ...] = PrivateAttr(())

    @classmethod
    def of(cls, values: Mapping[str, Any], words: Sequence[str] = ()) -> Config:
        """From dicts and lists. Raises ConfigError with a line for each wrong key.

        Args: words: the command that it comes from, for messages.
        """
        try:
            config = cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigError("\n".join(dict.fromkeys(_complaint(one, values) for one in error.errors(include_url=False)))) from None
        config._words = tuple(words)
        return config

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.to_dict() == other.to_dict()

    def derive(self, changes: Mapping[str, Any]) -> Config:
        """With other values for some dotted keys; a dict replaces a section as a whole. Raises ConfigError."""
        values = self.to_dict()
        for key, value in changes.items():
            *parents, name = key.split(".")
            section = values
            for parent in parents:
                section = section[parent]
            section[name] = value
        return Config.of(values, self._words)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a dotted key."""
        node: Any = self
        for name in key.split("."):
            if not (isinstance(node, Group) and name in node):
                return default
            node = node[name]
        return node

    @property
    def key(self) -> str:
        """12 hex digits over everything that can change a run's results."""
        return short_hash({key: value for key, value in self.to_dict().items() if key not in _NO_RESULT})

    @property
    def building_command(self) -> str:
        """How a person builds the knowledge base that this configuration means."""
        return building_command(self._words, self.mode)

    @property
    def trigger_name(self) -> str:
        """What reports call the trigger."""
        return str(getattr(locate(self.trigger.factory, "trigger"), "name", self.trigger.factory))

    @property
    def asks_mllm(self) -> bool:
        """Whether System 2 is an MLLM; a person answers later, and `none` never."""
        return self.slow.decoder not in ("none", "person")

    @property
    def answers_support(self) -> bool:
        """Whether an MLLM answers every support image while the base is built."""
        return self.knowledge.leave_one_out and self.asks_mllm

    @property
    def thinks(self) -> bool:
        """Whether the MLLM may be asked at all."""
        return self.asks_mllm and (self.trigger_name != "never" or self.evaluation.record == "all")

    @property
    def learning(self) -> Literal["statistics", "prototypes"] | None:
        """What System 1 learns while it runs."""
        return None if self.online == "off" else self.online

    # --- what values mean together -------------------------------------------------------------------------------------------

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Config:
        for contradiction in self._contradictions():
            raise complaint(contradiction)
        return self

    def _contradictions(self) -> Iterator[str]:
        """Each with the way out. The first one is told."""
        if self.pinned_trigger and (given := self.trigger_name) != self.pinned_trigger:
            pinned = f"mode={self.mode} means trigger={self.pinned_trigger}"
            yield f"{pinned}, but trigger={given} was given; write mode=evaluate trigger={given}"
        if self.mode in _UNLABELLED and self.trigger_name == "oracle":
            yield ORACLE
        # The shipped tiny models have learned rendered birds and nothing else; a replay asks no model.
        tiny = [role for role in ("encoder", "mllm") if self.models[role].source == "tiny"]
        if tiny and not self.models.force and self.dataset.factory != _RENDERED and self.mode not in _NO_ANSWERS:
            yield (
                f"models=tiny ({' and '.join(tiny)}) knows rendered birds only, and dataset={self.dataset.name or 'folder'} holds other "
                "images: write models=photos, or models.force=true to see meaningless answers"
            )
        if self.mode == "slowonly" and self.slow.decoder == "none":
            yield "mode=slowonly asks System 2 about every image, and slow=none has none: choose an MLLM, or write mode=fastonly"
        if self.slow.weight == "fitted" and self.slow.answer_fusion == "log_linear" and not self.knowledge.leave_one_out:
            yield "slow.weight=fitted is fitted on what knowledge.leave_one_out=false leaves out; write slow.weight=0.5, say"
        if self.mode in _ALONE and self.engine.name == "ray":
            yield f"mode={self.mode} asks its models itself, without workers: write engine=local"
        if not self.learning:
            return
        if self.trigger.guarantees_risk:
            yield f"online={self.online} changes System 1 while it runs, so no risk can be promised: write online=off, or another target"
        if self.trigger.abstain:
            yield "what a run learns changes its answers, so no risk of theirs can be promised: write online=off"
        if self.fusion.classifier == "linear":
            yield f"online={self.online} learns prototypes and their histories: write online=off, or fusion=prototypes"
        if self.fusion.joint:
            yield f"online={self.online} learns prototypes and histories of retrieval alone: write online=off, or fusion=prototypes"
        if self.engine.name == "ray":
            yield f"online={self.online} learns from one image after the other, which workers cannot share: write engine=local"


def _complaint(error: ErrorDetails, values: Mapping[str, Any]) -> str:
    """One line: the key, its value, and what may stand there."""
    if error["type"] == OWN:
        return error["msg"]
    path: list[str] = []
    model: type[BaseModel] | None = Config
    field: FieldInfo | None = None
    value: Any = values
    for name in map(str, error["loc"]):
        if model is None:
            break
        path.append(name)
        field = next((one for key, one in model.model_fields.items() if name in (key, one.alias)), None)
        model, parent = (group_of(field) if field else None), model
        value = value.get(name) if isinstance(value, Mapping) else None
        if field is None:
            key, near = ".".join(path), nearest(name, parent.model_fields)
            return f"{key}: " + (REFUSED.get(key) or "no such key here" + (f". Nearest: {', '.join(near)}" if near else ""))
    key = ".".join(path)
    if error["type"] == "missing":
        return needed(key)
    if field is None or model is not None:
        return f"{key}={spelled(value)}: is a section of keys: write {key}.KEY=VALUE"
    entry = next((part for part in error["loc"][len(path) :] if isinstance(part, int)), None)
    return f"{key}={spelled(value)}: {must_be(field) if entry is None else f'entry {value[entry]!r} {entries_must_be(field)}'}"


_OF_A_BASE = ("dataset", "models", "slow", "knowledge", "paths", "server", "store", "runtime", "experiment")  # first parts of keys


def building_command(words: Sequence[str], mode: str) -> str:
    """For a shell; its words make a configuration whose base has the same key and lies in the same place."""
    if mode == "discover":
        return "the same command without knowledge.build=never and knowledge.path"
    kept = [word for word in words if re.split(r"[.=/@]", word.lstrip("+~"))[0] in _OF_A_BASE and word != "knowledge.build=never"]
    return shlex.join(["fgvr", "build_knowledge_base", *kept])
