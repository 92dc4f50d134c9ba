"""The fields of every file that a run or a knowledge base leaves, read from the records and functions that write them."""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, get_args, get_origin


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]] | list[tuple[str, ...]]) -> list[str]:
    cells = (" | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows)
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {row} |" for row in cells), ""]


@dataclass(frozen=True, slots=True)
class Part:
    """Fields of a file: those of a record, or of the dictionary that a function returns."""

    source: str  # module:name
    title: str = ""
    prefix: str = ""  # before each field, such as `fast.`
    without: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FileFormat:
    name: str
    about: str
    parts: tuple[Part, ...] = field(default=())


TYPES = "fgvr.types"
PLACES = [
    ("`HOME/runs/MODE/KEY/`", "a run: predictions, report, configuration, memory, `log.txt`"),
    ("`HOME/sweeps/KEY/0/`, `1/`, ...", "the jobs of a sweep, each like a run"),
    ("`HOME/knowledge/DATASET/KEY/`", "a knowledge base: `prototypes.safetensors` and the files below from `manifest.json` on"),
    ("`HOME/store/`", "remembered embeddings and replies"),
    ("`HOME/data/`, or `FGVR_DATA`", "data sets"),
]
FORMATS = (
    FileFormat(
        "predictions.jsonl",
        "In a run's folder, one JSON object per image, with everything that led to the answer. It holds all that `mode=replay` needs.",
        (
            Part("fgvr.evaluation.records:to_row"),
            Part(f"{TYPES}.recognition:FastResult", "System 1", "fast.", ("sha256", "history")),
            Part(f"{TYPES}.recognition:Candidate", "each candidate of System 1", "fast.candidates[]."),
            Part(f"{TYPES}.recognition:History", "history of the class that System 1 names", "history."),
            Part(f"{TYPES}.recognition:Decision", "the trigger", "decision."),
            Part(f"{TYPES}.recognition:SlowResult", "System 2, where it was asked", "slow."),
            Part(f"{TYPES}.recognition:Abstention", "with `trigger.abstain`", "abstention."),
            Part(f"{TYPES}.recognition:Cost", "work computed in this run", "cost.", ("decode_wait", "cache_hits")),
            Part(f"{TYPES}.recognition:Asked", "work asked for, computed or remembered", "cost.asked."),
        ),
    ),
    FileFormat(
        "predictions.csv",
        "Beside it, one line per image for spreadsheets.",
        (Part("fgvr.evaluation.records:COLUMNS"),),
    ),
    FileFormat(
        "report.json",
        "The figures of an evaluation; `report.html` shows them.",
        (
            Part(f"{TYPES}.results:Report", without=("path",)),
            Part("fgvr.evaluation.report:to_json", "what explains them", without=("asked",)),
        ),
    ),
    FileFormat(
        "metrics.jsonl",
        "How a run went, one line per batch, and at its end the report's figures as `final/NAME`.",
        (Part("fgvr.evaluation.trackers:batch"),),
    ),
    FileFormat(
        "memory.jsonl",
        "What happened in the pool of models during a run; the report draws it. Each line has `row` (its kind) and `t` (seconds "
        "since the start row).",
        (
            Part("fgvr.runtime.timeline:Start", "row `start`"),
            Part("fgvr.runtime.timeline:Resident", "each model that was there", "resident[]."),
            Part("fgvr.runtime.events:Event", "row `event`", without=("monotonic",)),
            Part("fgvr.runtime.timeline:MemorySample", "row `sample`", without=("t",)),
            Part("fgvr.runtime.alerts:Alert", "row `alert`"),
        ),
    ),
    FileFormat("config.yaml", "The whole configuration of the run; see [keys](keys.md)."),
    FileFormat("online.jsonl", "What a run learned (`online=`), in order.", (Part("fgvr.agents.online:OnlineUpdate"),)),
    FileFormat(
        "review.json",
        "What a review page asks about; `mode=review` reads it. The page's own `answers.csv`: [a person as System 2](../review.md).",
        (Part("fgvr.evaluation.review_page:Review"),),
    ),
    FileFormat(
        "names.json",
        "The kinds that `mode=discover` found. `labels.csv` beside it has the columns `filename` and `class_name`.",
        (Part("fgvr.modes.discovering:_write"),),
    ),
    FileFormat("manifest.json", "What a knowledge base is made of.", (Part(f"{TYPES}.results:Manifest"),)),
    FileFormat("experience.jsonl", "The rules of a knowledge base, one per line.", (Part(f"{TYPES}.results:Experience"),)),
    FileFormat("classes.parquet", "The classes of a knowledge base.", (Part("fgvr.knowledge.base:_save_classes"),)),
    FileFormat(
        "rehearsal.parquet",
        "System 2's log-likelihoods on left-out support images. The table's metadata name the `target` that was scored.",
        (Part("fgvr.knowledge.base:_save_scores"),),
    ),
    FileFormat("splits.json", "The support images of a knowledge base, below `support`.", (Part("fgvr.knowledge.base:Support"),)),
    FileFormat("server.json", "In the home while a server runs, mode 0600.", (Part("fgvr.utils.running_server:RunningServer"),)),
)


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    type: str
    comment: str


def fields_of(part: Part) -> list[Field]:
    """The fields of a record (its comments beside them), of a function's dictionary, or of a tuple of column names."""
    module, name = part.source.split(":")
    text = inspect.getsource(import_module(module))
    node = next(one for one in ast.walk(ast.parse(text)) if _named(one, name))
    beside = _comments(text)
    match node:
        case ast.ClassDef():
            own = [one for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)]
            kinds = [_spelled(ast.unparse(one.annotation), vars(import_module(module))) for one in own]
            rows = [Field(one.target.id, kind, beside.get(one.end_lineno or 0, "")) for one, kind in zip(own, kinds, strict=True)]  # type: ignore[union-attr]
        case ast.Assign():
            rows = [Field(column, "", "") for column in getattr(import_module(module), name)]
        case _:
            rows = _dictionary(node, beside)
    shown = [row for row in rows if row.name not in part.without]
    return [Field(part.prefix + row.name, row.type.replace("ClassVar", ""), row.comment) for row in shown]


def _spelled(annotation: str, known: Mapping[str, Any]) -> str:
    """A choice by its values, such as `lease, return`; any other type as it is written."""
    values = get_args(known.get(annotation)) if get_origin(known.get(annotation)) is Literal else ()
    return ", ".join(map(str, values)) or annotation


def _named(node: ast.AST, name: str) -> bool:
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
    return isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name


def _dictionary(node: ast.AST, beside: Mapping[int, str]) -> list[Field]:
    """Keys of the dictionaries that a function writes down, in the order of its lines; those within a list belong to `kinds[]`."""
    inner = {id(one) for comprehension in ast.walk(node) if isinstance(comprehension, ast.ListComp) for one in ast.walk(comprehension)}
    nested = {id(value) for one in ast.walk(node) if isinstance(one, ast.Dict) for value in one.values if isinstance(value, ast.Dict)}
    found: list[tuple[int, Field]] = []
    for one in ast.walk(node):
        if isinstance(one, ast.Dict) and id(one) not in nested:
            prefix = "kinds[]." if id(one) in inner else ""
            for key, value in zip(one.keys, one.values, strict=True):
                if not (isinstance(key, ast.Constant) and isinstance(key.value, str)):
                    continue
                found.append((key.lineno, Field(prefix + key.value, "", beside.get(value.end_lineno or 0, ""))))
                if isinstance(value, ast.Dict):
                    found += [
                        (key.lineno, Field(f"{prefix}{key.value}.{k.value}", "", "")) for k in value.keys if isinstance(k, ast.Constant)
                    ]
        elif isinstance(one, ast.Subscript) and isinstance(one.ctx, ast.Store) and isinstance(one.slice, ast.Constant):
            found.append((one.lineno, Field(str(one.slice.value), "", beside.get(one.lineno, ""))))
    return [row for _, row in sorted(found, key=lambda pair: pair[0])]


def _comments(text: str) -> dict[int, str]:
    """Line -> the comment at its end."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    found = {
        token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT and token.line.split("#")[0].strip()
    }
    return {line: re.sub(r"\s*(noqa|type: ignore).*", "", comment) for line, comment in found.items()}


def about(part: Part) -> str:
    """What a record's docstring says of its fields beyond the first sentence."""
    module, name = part.source.split(":")
    thing = getattr(import_module(module), name, None)
    if not inspect.isclass(thing):
        return ""
    return re.sub(r"\s*\n\s*", " ", (inspect.getdoc(thing) or "").strip())


def files() -> Iterator[str]:
    yield "# Files\n"
    yield "Where runs, bases and pages keep what they found. Every file is written whole or not at all.\n"
    yield from table(("place", "holds"), PLACES)
    yield "`HOME` is `paths.home`: `FGVR_HOME`, else `fgvr_home` in the working folder.\n"
    for form in FORMATS:
        yield f"## {form.name}\n"
        yield form.about + "\n"
        for part in form.parts:
            if part.title:
                yield f"**{part.title[0].upper()}{part.title[1:]}.** {about(part)}\n"
            rows = fields_of(part)
            if not any(row.type or row.comment for row in rows):
                yield "Fields: " + ", ".join(f"`{row.name}`" for row in rows) + ".\n"
            elif any(row.type for row in rows):
                yield from table(("field", "type", "what it is"), [(f"`{row.name}`", f"`{row.type}`", row.comment) for row in rows])
            else:
                yield from table(("field", "what it is"), [(f"`{row.name}`", row.comment) for row in rows])
