"""mode=replay: a finished run, decided and scored again. No model is asked."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from fgvr.agents.calibration import Calibrator
from fgvr.agents.fusion import Fusion
from fgvr.agents.slow import Shortlist
from fgvr.config.composing import load_config, recorded_config
from fgvr.config.configuration import Config
from fgvr.config.factories import instantiate
from fgvr.config.group import to_dict
from fgvr.data import leaks
from fgvr.errors import ConfigError, KnowledgeError, StoreError
from fgvr.evaluation import records
from fgvr.evaluation import replay as replays
from fgvr.evaluation import report as reports
from fgvr.evaluation.oracle_trigger import Oracle
from fgvr.evaluation.replay import Replay
from fgvr.knowledge import base as knowledge_base
from fgvr.knowledge.base import KnowledgeBase
from fgvr.knowledge.experience import Library
from fgvr.modes.runs import BASE, CONFIG, PREDICTIONS, make_report, run_folder, write_predictions
from fgvr.session import Session
from fgvr.types import Report
from fgvr.utils.files import read_json
from fgvr.utils.paths import user_path

MARK = "imported.json"
"""Beside imported predictions: where they come from."""


def replay(session: Session) -> Report:
    """Decide and score a recorded run again with other settings; no model is asked, and torch is not even imported."""
    file = _recorded(user_path(session.config.predictions))
    if file.with_name(MARK).exists():
        return _rescore(session, file)
    run = recorded_config(file.parent / CONFIG)
    config = replayed(session.config, run, file.parent / CONFIG)
    base = _base_of(file)
    session = Session(config, knowledge=base)
    with run_folder(session, mode="replay") as folder:
        decide = _replay(session, run)
        predictions = [records.as_recorded(p) for p in decide(records.read(file, decide.names))]
        write_predictions(folder, predictions)
        notes = (*_leaked(file.parent), f"replay of {file}", replays.COSTS, *([config.models.notice] if config.models.notice else []))
        of = (base.origin.dataset, base.origin.world)
        report = make_report(session, predictions, folder, dataset=of, notes=notes, classes=decide.names)
        reports.write(report, folder)
        return report


def _recorded(path: Path) -> Path:
    """The predictions a user means. StoreError that says what to give where there are none."""
    takes = f"predictions= takes a run's folder, or the {PREDICTIONS} in it"
    file = path / PREDICTIONS if path.is_dir() else path
    if not path.exists():
        raise StoreError(f"{path} does not exist; {takes}")
    if path.suffix.lower() == ".json" or (not file.exists() and not (path / CONFIG).exists() and any(path.glob("*.json"))):
        raise StoreError(f"{path} is no {PREDICTIONS} of fgvr; {_imported(path)}, and give the folder that it writes")
    if not file.exists():
        raise StoreError(f"{path} holds no {PREDICTIONS}; {takes}, as mode=evaluate writes them")
    if not file.with_name(CONFIG).exists() and not file.with_name(MARK).exists():
        raise StoreError(f"no {CONFIG} beside {file}: {takes}. Results of another program: {_imported(path)}")
    if file.stat().st_size == 0:
        raise StoreError(f"{file} is empty: the run answered no image yet; the same mode=evaluate again goes on")
    return file


def _imported(path: Path) -> str:
    return f"convert results of SARE or FineR with: python scripts/import_results.py {shlex.quote(str(path))}"


_OBSERVED = "dataset models knowledge online slow.decoder slow.target slow.max_new_tokens slow.exemplars slow.votes".split()


def replayed(config: Config, run: Config, path: Path) -> Config:
    """This configuration with what a recorded run has observed: its dataset, its models, how its System 2 was asked.

    Args: run: the recorded configuration, of `path`. A setting of these that was given and is another one is a ConfigError.
    """
    usual = load_config("mode=replay", "predictions=-")
    for key in _OBSERVED:
        ours, theirs, default = (_placeless(c.get(key)) for c in (config, run, usual))
        if ours not in (theirs, default):
            raise ConfigError(
                f"{key} is another one in the recorded run ({path}), and a replay cannot change it: leave it out, or run again"
            )
    observed = {key: to_dict(run.get(key)) for key in _OBSERVED}
    if config.get("trigger.shots") is not None and config.get("trigger.shots") == config.get("dataset.shots"):  # written as a reference
        observed["trigger.shots"] = run.dataset.shots
    return config.derive(observed)


def _replay(session: Session, run: Config) -> Replay:
    """What a recognizer of this configuration would decide, over a record. Loads nothing, and needs no device."""
    config, base, chosen = session.config, session.knowledge, session.policy
    if isinstance(chosen, Calibrator) and chosen.target.kind == "risk":
        raise ConfigError("a risk is promised on calibration images, which a record does not hold: use mode=evaluate, or another target")
    if isinstance(chosen, Calibrator) and chosen.abstain is not None:
        raise ConfigError("trigger.abstain is promised on calibration images, which a record does not hold: use mode=evaluate")
    if config.learning:
        raise ConfigError("a run that learns while it runs cannot be replayed: what it learned depends on its own answers")
    before: Fusion = instantiate(run.fusion, "fusion", Fusion)
    if session.fusion.joint or before.joint:
        raise ConfigError("fusion.joint is calibrated on its scores of the support images, which no record holds: run again")
    changed = session.fusion != before or config.slow.candidates != run.slow.candidates
    _check_asked_again(config.slow.answer_fusion, run.slow.answer_fusion, changed=changed)
    return Replay(
        ids=base.prototypes.ids,
        histories=session.left_out()[1].histories(),
        temperature=base.prototypes.temperature,
        fusion=session.fusion,
        recorded=before,
        trigger=session.trigger,
        oracle=chosen if isinstance(chosen, Oracle) else None,
        shortlist=Shortlist(base.records, candidates=config.slow.candidates),
        library=Library(base.experience, most=config.slow.rules),
        independent=config.slow.decoder == "score" and config.slow.target == "description",
        same_shortlists=not changed,
        answer_fusion=session.answer_fusion,
        names={record.id: record.name for record in base.classes},
    )


def _check_asked_again(ours: str, theirs: str, *, changed: bool) -> None:
    """`slow.answer_fusion=mllm` overwrites System 2's first answer with its last, and asks by both systems' answers."""
    if ours != theirs and "mllm" in (ours, theirs):
        raise ConfigError(
            f"slow.answer_fusion={ours}, but the run was recorded with slow.answer_fusion={theirs}: a replay can neither ask again "
            f"nor undo that it was asked. Write slow.answer_fusion={theirs}, or run again"
        )
    if ours == "mllm" and changed:
        raise ConfigError(
            "slow.answer_fusion=mllm asks again by what both systems answered, so fusion and slow.candidates cannot change: run again"
        )


def _placeless(value: Any) -> Any:
    """Without where things lie: a replay opens no image."""
    value = to_dict(value)
    if isinstance(value, dict):
        return {key: _placeless(item) for key, item in value.items() if key not in ("root", "cache_dir", "path", "build")}
    return value


def _rescore(session: Session, file: Path) -> Report:
    """Imported answers hold no evidence to decide again; every protocol that needs no model scores them."""
    try:
        mark = read_json(file.with_name(MARK))
        classes, names, notes, claimed, source = mark["classes"], mark["names"], mark["notes"], mark["claimed"], mark["from"]
        kind = mark["kind"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{file.with_name(MARK)} cannot be read ({error!r}); import the results again") from error
    predictions = records.read(file, names)
    with run_folder(session, mode="replay") as folder:
        write_predictions(folder, predictions)
        right = sum(prediction.correct is True for prediction in predictions) / len(predictions)
        claim = [] if claimed is None else [f"the file claims an accuracy of {claimed:.3f}; by class identity it is {right:.3f}"]
        notes = (f"imported from {source} ({kind})", *claim, *notes)
        of = [Path(source).name]
        report = make_report(session, predictions, folder, dataset=of, notes=notes, trigger=kind, classes=classes)
        reports.write(report, folder)
        return report


def _leaked(run: Path) -> list[str]:
    """What a report of the recorded run must say before any number: who replays it looks at no image."""
    if (run / reports.FILE).exists():
        return leaks.told(reports.load(run).notes)
    allowed = recorded_config(run / CONFIG).evaluation.overlap_policy == "allow"
    return ["test images may resemble the base's own: the recorded run allowed it, and did not finish"] if allowed else []


def _base_of(file: Path) -> KnowledgeBase:
    """The knowledge base a recorded run was made with, as it was then."""
    note = file.with_name(BASE)
    if not note.exists():
        raise StoreError(f"nothing beside {file} says which knowledge base it was made with; replay takes the folder of mode=evaluate")
    path, _, content = note.read_text().rpartition("\n")
    base = knowledge_base.load(Path(path))
    if base.manifest is None or base.manifest.content_hash != content:
        raise KnowledgeError(f"the knowledge base at {path} has changed since this run: evaluate again, then replay that")
    return base
