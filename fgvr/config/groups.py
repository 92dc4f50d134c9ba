"""The configuration, one model per group: a key's type is its whole rule, and it stands here once.

Values have their defaults in `configs/`, never here. What a key is for, its YAML file says.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from fgvr.agents.targets import Target
from fgvr.config.fields import (
    ABSENT,
    NEEDED,
    Addresses,
    Count,
    Level,
    Must,
    Natural,
    NotNegative,
    Number,
    Positive,
    Quantization,
    Share,
    Size,
    Temperature,
    Text,
    WebAddress,
    Webhook,
    complaint,
    judge,
    judged,
    satisfies,
)
from fgvr.config.group import Group, Leaf
from fgvr.runtime import allocator
from fgvr.runtime.budget import parse_budget
from fgvr.runtime.devices import device_names
from fgvr.runtime.pressure import MonitorSettings
from fgvr.types.memory import ROLES, Role

# --- files, logs -------------------------------------------------------------------------------------------------------------


class Paths(Group):
    home: Text
    data: Text


class Store(Group):
    enabled: bool
    limit: Size | None


class Run(Group):
    fresh: bool


class Logging(Group):
    level: Level
    quiet: bool
    as_json: bool = Field(alias="json")
    tracker: Literal["tensorboard", "wandb", "mlflow", "trackio"] | None


def _is_cluster(value: str | None) -> bool:
    host, _, port = (value or "").removeprefix("ray://").rpartition(":")
    return value in (None, "auto") or bool(host and port.isdigit())


class Engine(Group):
    """Who does the work; the other keys come with engine=ray."""

    name: Literal["local", "ray"]
    workers: Count | None = ABSENT
    cpus: Count = ABSENT
    address: Annotated[Text | None, satisfies(_is_cluster), Must("HOST:PORT, ray://HOST:PORT, auto, or null")] = ABSENT
    object_store: Size = ABSENT
    patience: Positive = ABSENT


class Server(Group):
    """`url` of a server to ask; the other keys come with mode=serve, and `fgvr.server.settings` judges them with its environment."""

    model_config = ConfigDict(extra="allow")

    url: str | None = None


class Published(Group):
    """What the literature reports of an experiment."""

    source: Text
    top1: Number
    clip_vit_b_32: Number
    qwen2_5_vl_7b: Number
    caution: Text
    ours: Number | None


# --- modes -------------------------------------------------------------------------------------------------------------------


class Baselines(Group):
    which: str | list[Text]
    neighbours: Count


class Experience(Group):
    failures: Count
    max_new_tokens: Count
    alike: Share
    level: Share
    least: Count


class Fetch(Group):
    ask: bool
    mirror: WebAddress | None


class Review(Group):
    run: Text | None
    learn: bool
    of: Text = ABSENT  # set by the mode: whether the run was of `image` or of the dataset


class Discover(Group):
    superclass: Text | None
    shortlist: Count
    alike: Annotated[int | float, Field(gt=0, le=1), Must("a cosine above 0, up to 1")]
    complexity_penalty: NotNegative | None
    shots: Annotated[int, Field(ge=2)] | None
    max_new_tokens: Count
    kinds: Count | None
    names: Text | None


# --- images, models ----------------------------------------------------------------------------------------------------------


class Dataset(Leaf):
    root: Annotated[Text, Must(NEEDED["dataset.root"])] = ABSENT
    name: Text = ABSENT
    shots: Count | Literal["all"] = ABSENT
    tail_shots: Count | None = ABSENT
    test_per_class: Natural | None = ABSENT
    calibration: Natural = ABSENT
    split_seed: Natural = ABSENT
    partition: Count = ABSENT
    split_file: Text | None = ABSENT
    strict: bool = ABSENT
    seed: Natural = ABSENT
    genera: Annotated[list[Count], Field(min_length=1)] = ABSENT
    difficulty: Share = ABSENT
    superclass: Text = ABSENT
    names: Text | None = ABSENT
    image: Text = ABSENT
    label: Text | None = ABSENT
    cache_dir: Text | None = ABSENT
    on_bad_image: Literal["skip", "error"] = ABSENT


class Model(Leaf):
    model_config = ConfigDict(extra="forbid")  # always a ModelSpec

    role: Role
    loader: Text
    source: Addresses | None
    revision: Text | None = ABSENT
    dtype: Literal["auto", "fastest", "float32", "bfloat16", "float16"] = ABSENT
    quantization: Quantization | None = ABSENT
    max_pixels: Annotated[int, Field(ge=28 * 28)] | None = ABSENT
    batch_size: Count
    patience: NotNegative = ABSENT
    model: Text | None = ABSENT


class MLLM(Model):
    role: Literal["mllm"]


class Encoder(Model):
    role: Literal["encoder"]
    quantization: Annotated[None, Must("null: only models.mllm can be quantised")] = ABSENT


class Joint(Model):
    role: Literal["joint"]
    quantization: Annotated[None, Must("null: only models.mllm can be quantised")] = ABSENT


class Models(Group):
    mllm: MLLM
    encoder: Encoder
    joint: Joint
    name_prompts: bool
    description_tokens: Count
    notice: Text | None
    slow_target: Literal["description", "name", "letter"]
    force: bool

    @property
    def present(self) -> tuple[str, ...]:
        """The roles that have a model; `models/mllm=none` has none."""
        return tuple(role for role in ROLES if self[role].loader != "none")


# --- System 1, the trigger, System 2 -----------------------------------------------------------------------------------------


class Fusion(Leaf):
    top_k: Count = ABSENT
    image_weight: Share = ABSENT
    name_weight: Share = ABSENT
    rrf_weight: NotNegative = ABSENT
    temperature: Temperature | None = ABSENT
    joint: Literal["score", "rerank"] | None = ABSENT
    joint_weight: Share = ABSENT
    joint_top: Count = ABSENT
    classifier: Literal["prototypes", "linear"] = ABSENT
    shrinkage: Share = ABSENT


class Trigger(Leaf):
    target: Annotated[Any, judged(Target.parse)] = ABSENT
    abstain: Annotated[Any, judged(lambda value: value is None or Target.parse(value, key="trigger.abstain"))] = ABSENT
    form: Literal["joint", "selective"] = ABSENT
    eta: NotNegative = ABSENT
    alpha: NotNegative = ABSENT
    threshold: Number = ABSENT
    shots: Count = ABSENT
    slow_rate: Share = ABSENT
    seed: Natural = ABSENT
    certain: Annotated[list[Number], Field(min_length=2, max_length=2)] = ABSENT
    agreed: Number = ABSENT
    overlap: Number = ABSENT
    bound: Number = ABSENT
    close: Annotated[list[Number], Field(min_length=2, max_length=2)] = ABSENT
    temperature: Temperature = ABSENT

    @property
    def guarantees_risk(self) -> bool:
        """Whether the threshold is a promise about risk."""
        return "target" in self and Target.parse(self.target).kind == "risk"

    @model_validator(mode="after")
    def _one_guarantee(self) -> Trigger:
        if not self.abstain:
            return self
        if Target.parse(self.abstain).kind != "risk":
            raise complaint(f"trigger.abstain={self.abstain!r}: a promise about final answers is a risk, e.g. risk:0.1@0.1")
        if self.guarantees_risk:
            raise complaint(
                f"trigger.target={self.target!r} and trigger.abstain={self.abstain!r} would learn from the same calibration images, and "
                "neither promise would hold: write trigger.target=slow_rate:0.6"
            )
        return self


class Slow(Group):
    decoder: Literal["score", "reason", "analyse", "person", "none"]
    target: Literal["description", "name", "letter"]
    candidates: Count | Literal["all"]
    answer_fusion: Literal["log_linear", "slow", "mllm"]
    weight: Share | Literal["fitted"]
    max_new_tokens: Count
    votes: Count
    rules: Natural
    exemplars: bool

    @model_validator(mode="after")
    def _exemplars_have_a_place(self) -> Slow:
        if self.exemplars and self.decoder == "score" and self.target == "description":
            raise complaint("slow.exemplars=true needs the candidates in the question: write slow.target=name or letter, or slow=reason")
        return self


# --- the base, the evaluation ------------------------------------------------------------------------------------------------


class Knowledge(Group):
    build: Literal["missing", "never", "always"]
    path: Text | None
    learned: Text | None
    pictures_per_description: Count
    cross_fit: bool
    split: Literal["length", "sentences", "clauses"]
    templates: Literal[1, 2, 3] | None
    views: Literal[1, 2, 3, 4]
    leave_one_out: bool


def _protocol(name: str) -> None:
    if name not in ("exact", "top5", "macro"):  # the usual ones are known without the registry, which brings numpy
        from fgvr.evaluation import scoring_protocols

        scoring_protocols.get(name)


class Evaluation(Group):
    record: Literal["needed", "all"]
    on_overlap: Literal["error", "drop", "allow"]
    allow_overlap: bool | None
    protocols: Annotated[list[Annotated[Text, judged(_protocol)]], Field(min_length=1)]
    batch_size: Count

    @property
    def overlap_policy(self) -> Literal["error", "drop", "allow"]:
        """`on_overlap`, or what its former name `allow_overlap` means."""
        return self.on_overlap if self.allow_overlap is None else "allow" if self.allow_overlap else "error"


# --- the runtime -------------------------------------------------------------------------------------------------------------


class Priority(Group):
    mllm: int
    encoder: int
    joint: int


class Watermarks(Group):
    low: Share
    high: Share
    critical: Share


class HostLow(Group):
    free: Size
    used: Share


class Alerts(Group):
    log: bool
    webhook: Webhook
    timeout: Positive
    repeat: Positive
    lease_seconds: Positive


class Runtime(Group):
    device: Annotated[Any, judged(device_names)]
    budget: Annotated[Any, judged(lambda value: parse_budget(value, total=1 << 40))]
    reserve: Size
    max_models: Count | None
    max_concurrency: Count | None
    policy: Literal["lru", "cost_aware"]
    lease_timeout: NotNegative
    offload: Literal["none", "auto"] | Annotated[int | float, Field(ge=0.01, le=1)]
    probe: bool | Literal["auto"]
    host_budget: Annotated[Size, Must("a whole number of bytes, or a size such as 2GiB, or auto")] | Literal["auto"]
    preallocate: bool
    optimize: bool
    ttl: NotNegative | None
    min_residency: NotNegative
    pin: list[Role] | None
    priority: Priority
    auto_cleanup: bool
    check_interval: Annotated[int | float, Field(ge=0.1)]
    cleanup_idle: NotNegative
    cleanup_interval: NotNegative | Literal["auto"] | None
    watermarks: Watermarks
    host_low: HostLow
    alerts: Alerts
    allocator: Annotated[dict[str, Any], judged(allocator.check)]

    @model_validator(mode="after")
    def _marks_agree(self) -> Runtime:
        judge(MonitorSettings.of, self.to_dict())
        return self

    @field_validator("priority", mode="before")
    @classmethod
    def _no_priorities(cls, value: Any) -> Any:
        return dict.fromkeys(Priority.model_fields, 0) if value is None else value
