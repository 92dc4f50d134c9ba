"""mode=baselines: what simpler methods reach on the same images, each a run of its own, in one table."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from fgvr.agents import baselines as rules
from fgvr.agents import prompts
from fgvr.agents.answer_fusion import LogLinearFusion
from fgvr.data.pictures import open_picture
from fgvr.errors import ConfigError
from fgvr.evaluation import records, uncertainty
from fgvr.knowledge.prototypes import unit
from fgvr.modes.evaluating import evaluate, images_of
from fgvr.modes.runs import PREDICTIONS, run_folder
from fgvr.modes.showing import to_json, to_text
from fgvr.pipeline import Recognizer
from fgvr.protocols import reads_text
from fgvr.scale import working
from fgvr.session import Session
from fgvr.types import Report
from fgvr.utils.files import write_json

log = logging.getLogger(__name__)

TABLE = "baselines.json"


@dataclass(frozen=True, slots=True)
class Baselines:
    """Reports by name, the configuration itself last, and p of each against it (McNemar, exact, two-sided)."""

    reports: Mapping[str, Report]
    p: Mapping[str, float]
    path: Path

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "title": BASELINES[name].title,
                "top1": report.top1,
                "top1_interval": list(report.top1_interval),
                "macro": report.macro,
                "mllm_calls_asked": report.asked["mllm_calls"] / report.n if report.asked else None,
                "mllm_calls_computed": report.cost["mllm_calls"] / report.n,
                "seconds": report.cost["seconds"] / report.n,
                "p": self.p.get(name),
                "path": str(report.path),
            }
            for name, report in self.reports.items()
        ]

    def __repr__(self) -> str:
        shown = [(row["title"], row["top1"], *row["top1_interval"]) for row in self.rows()]
        return "\n".join(f"{title}: {top1:.3f} [{low:.3f}, {high:.3f}]" for title, top1, low, high in shown)


def baselines(session: Session) -> Baselines:
    """Every baseline is evaluated like any run, so that each can be resumed, shown, compared and replayed."""
    names = chosen_baselines(session)
    for name, reason in unavailable_baselines(session).items():
        log.info("left out: %s, since %s", BASELINES[name].title, reason)
    with run_folder(session, mode="baselines") as folder:
        reports = {}
        with working(session, images_of) as at_work:
            for name in names:
                chosen, alone = BASELINES[name], {"mode": f"baselines/{name}", "online": "off", "trigger": _NEVER}
                log.info("%s", chosen.title)
                changes = {"mode": "baselines/ours"} if name == OURS else {**alone, **chosen.changes}
                reports[name] = evaluate(at_work.derive(changes), partial(_ranking, name) if chosen.by_rule else None)
        ours = _right(reports[OURS])
        others = {name: _right(report) for name, report in reports.items() if name != OURS}
        p = {name: uncertainty.mcnemar(*_paired(ours, theirs)) for name, theirs in others.items()}
        found = Baselines(reports, p, folder)
        write_json(folder / TABLE, found.rows())
        return found


@to_text.register
def tables(found: Baselines) -> list[RenderableType]:
    first, last = next(iter(found.reports.values())), found.reports[OURS]
    table = Table(title=f"{last.dataset}, {last.n} images", title_justify="left")
    heads = "method,top-1 accuracy,95 % (images),macro accuracy,MLLM calls/image asked,computed,s/image,p against the last"
    for head in heads.split(","):
        table.add_column(head, justify="left" if head == "method" else "right")
    for row in found.rows():
        low, high = row["top1_interval"]
        p = "" if row["p"] is None else f"{row['p']:.2g}"
        cells = (
            f"{row['top1']:.3f}",
            f"[{low:.3f}, {high:.3f}]",
            f"{row['macro']:.3f}",
            "not recorded" if row["mllm_calls_asked"] is None else f"{row['mllm_calls_asked']:.2f}",
            f"{row['mllm_calls_computed']:.2f}",
            f"{row['seconds']:.3f}",
            p,
        )
        table.add_row(row["title"], *cells)
    notes = dict.fromkeys(note for report in found.reports.values() for note in report.notes)
    lines = (
        "asked: what the method asks of the MLLM; computed, and the seconds: what the store did not remember already",
        f"in detail: mode=compare runs=[{first.path},{last.path}]",
        f"{found.path}/{TABLE}",
    )
    return [*(Text(note, style="yellow") for note in notes), table, *(Text(line, overflow="fold") for line in lines)]


to_json.register(Baselines, lambda found: json.loads((found.path / TABLE).read_text()))


def _right(report: Report) -> dict[str, bool]:
    return {p.image: p.category == p.label for p in records.read(report.path / PREDICTIONS) if p.label is not None}


def _paired(a: Mapping[str, bool], b: Mapping[str, bool]) -> tuple[np.ndarray, np.ndarray]:
    both = sorted(a.keys() & b.keys())
    return np.array([a[image] for image in both], bool), np.array([b[image] for image in both], bool)


# --- what each changes in the configuration, and by what rule it ranks where that is not the pipeline's own --------------------


@dataclass(frozen=True, slots=True)
class Baseline:
    """One of them; each is an evaluation, in which System 1 alone answers if nothing else is said."""

    title: str
    changes: Mapping[str, object] = field(default_factory=dict)  # of the configuration, by dotted key
    by_rule: bool = False  # it ranks by a rule of its own; the others use the pipeline's own recognizer


OURS = "this configuration"
_NEVER, _ALWAYS = ({"_target_": f"fgvr.agents.trigger.{name}"} for name in ("Never", "Always"))
_ALONE = {"trigger": _ALWAYS, "slow.answer_fusion": "slow"}
BASELINES = {
    "zero_shot": Baseline("zero-shot: image against class-name prompts", by_rule=True),
    "image_prototypes": Baseline("image prototypes: mean of the shots", {"fusion.image_weight": 1.0, "fusion.classifier": "prototypes"}),
    "linear_discriminant": Baseline(
        "shrunken linear discriminant on the shots", {"fusion.image_weight": 1.0, "fusion.classifier": "linear"}
    ),
    "text_prototypes": Baseline("text prototypes: the MLLM's descriptions", {"fusion.image_weight": 0.0, "fusion.name_weight": 0.0}),
    "fused_prototypes": Baseline("fused prototypes: System 1", {"fusion.classifier": "prototypes"}),
    "knn": Baseline("k nearest shots", by_rule=True),
    "cache": Baseline("cache of shots beside text, untrained (Tip-Adapter)", by_rule=True),
    "linear_probe": Baseline("linear probe on the shots", by_rule=True),
    "mllm": Baseline("MLLM alone, over all classes", {**_ALONE, "slow.candidates": "all"}),
    "mllm_topk": Baseline("MLLM alone, over System 1's shortlist", _ALONE),
    OURS: Baseline("this configuration"),
}


def chosen_baselines(session: Session) -> list[str]:
    """Those asked for, and the configuration itself last."""
    which, known, without = session.config.baselines.which, [name for name in BASELINES if name != OURS], unavailable_baselines(session)
    names = [name for name in known if name not in without] if which == "all" else [which] if isinstance(which, str) else which
    if absent := [f"{name} ({without[name]})" for name in names if name in without]:
        raise ConfigError(f"baselines.which={which}: this configuration cannot run {', '.join(absent)}")
    if not names or not set(names) <= set(known):
        raise ConfigError(f"baselines.which={which}: must be all, or some of {', '.join(known)}")
    return [*dict.fromkeys(names), OURS]


def unavailable_baselines(session: Session) -> dict[str, str]:
    """Baselines that need a model which is not there, each with what is missing."""
    config, found = session.config, {}
    if not reads_text(session.encoder):
        found |= dict.fromkeys(("zero_shot", "text_prototypes", "fused_prototypes"), f"{config.models.encoder.source} reads no text")
    if not config.asks_mllm or "mllm" not in config.models.present:
        found |= dict.fromkeys(("mllm", "mllm_topk"), f"slow={config.slow.decoder} asks no MLLM")
    if "mllm" not in config.models.present:
        found["text_prototypes"] = "no MLLM writes descriptions"
    return found


def _ranking(name: str, session: Session) -> Recognizer:
    notes = []
    if name == "zero_shot" and not session.config.models.name_prompts:
        notes = ["zero-shot with an encoder that has never read these names: chance is what to expect"]
    base = session.knowledge
    return Recognizer(
        look=open_picture,
        fast=rules.Ranking(session.encoder, base.prototypes.ids, _rule(name, session)),
        trigger=session.trigger,
        slow=None,
        answer_fusion=LogLinearFusion(weight=0.0),
        names={record.id: record.name for record in base.classes},
        remarks=lambda: notes,
        batch_size=session.config.evaluation.batch_size,
    )


def _rule(name: str, session: Session) -> rules.Rule:
    known, config, encoder = session.knowledge.prototypes, session.config, session.encoder
    if name == "knn":
        return rules.nearest(known, config.baselines.neighbours)
    if name == "linear_probe":
        return rules.linear_probe(known, config.seed)
    if name == "cache" and not (config.models.name_prompts and reads_text(encoder)):
        return rules.cache(known, known.text)  # what this encoder can read; zero vectors where it reads nothing
    prompted = [prompts.name_prompts(record.name, record.superclass) for record in session.knowledge.classes]
    names = np.stack([encoder.encode_text(list(texts)).mean(axis=0) for texts in prompted])
    return rules.cache(known, unit(names)) if name == "cache" else rules.by_text(unit(names), known.temperature)
