"""The reference pages hold what the code has, and nothing else: keys, options, modes, errors, fields of files, addresses."""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import fgvr
from fgvr import cli, modes
from fgvr.config import fields as rules
from fgvr.config.configuration import Config
from fgvr.config.group import Group
from fgvr.runtime.loaders.fake import FakeLoader, FakeMLLM
from fgvr.runtime.pool import close_shared
from fgvr.types import ModelSpec, Reply
from fgvr.utils.paths import PACKAGE, config_dir
from fgvr.utils.running_server import announced
from scripts import docs_reference

SET_BY_CODE = {"mode", "review.of", "published.source", "published.top1", "published.clip_vit_b_32", "published.qwen2_5_vl_7b"}
SET_BY_CODE |= {"published.caution", "published.ours"}  # of a row of experiments.toml
SET_BY_CODE |= {f"models.{role}.{name}" for role in ("encoder", "joint") for name in ("quantization", "max_pixels")}  # no option has them
FREE = {
    "predictions.jsonl": {"decision.terms", "slow.probabilities", "slow.log_likelihoods", "names"},
    "report.json": {"protocols", "protocol_versions", "intervals", "routers", "abstention", "cost", "asked", "computed", "stage_seconds",
                    "model_loads", "classes", "provenance", "config"},
    "memory.jsonl": {"weights"},
    "review.json": {"classes", "images"},
    "names.json": {"kinds[].images"},
}  # fmt: skip
"""Fields whose keys are data: names of classes, protocols, stages, models, images."""
SMALL = ["models=fake", "dataset.genera=[2,2]", "dataset.test_per_class=2", "dataset.calibration=2", "evaluation.record=all"]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {Path(path).stem: text for path, text in docs_reference.pages().items()}


def first_cells(text: str) -> set[str]:
    return set(re.findall(r"(?m)^\| \**`([^`]+)`", text))


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def leaves(group: type[Group], prefix: str = "") -> Iterator[str]:
    for name, info in group.model_fields.items():
        key = prefix + (info.alias or name)
        inner = rules.group_of(info)
        if inner is not None:
            yield from leaves(inner, f"{key}.")
        elif not key.endswith("_target_"):
            yield key


def test_every_key_is_on_the_page_and_every_key_on_the_page_exists(pages: dict[str, str]) -> None:
    shown = first_cells(pages["keys"])
    assert set(leaves(Config)) - SET_BY_CODE - shown == set()
    usual = {key for key in shown if key.startswith(("server.", "runtime.allocator."))}
    config = fgvr.load_config("mode=serve").to_dict()
    held = {f"server.{key}" for key in config["server"]} | {f"runtime.allocator.{key}" for key in config["runtime"]["allocator"]}
    assert usual == held
    assert shown - usual - set(leaves(Config)) == set()


def test_every_option_and_mode_and_command_is_on_its_page(pages: dict[str, str]) -> None:
    options = {str(file.relative_to(config_dir()).with_suffix("")) for file in config_dir().rglob("*.yaml")} - {"config"}
    for option in options:
        group, _, name = option.rpartition("/")
        page = section(pages["commands"], "Keys of single modes") if group == "mode" else section(pages["options"], group)
        assert (f"### {name}" if group == "mode" else f"`{name}`") in page, option
    assert set(re.findall(r"(?m)^\| \[`(\w+)`\]", section(pages["commands"], "Modes"))) == set(modes.MODES)
    assert set(re.findall(r"(?m)^\| `fgvr (\w+)`", pages["commands"])) == set(cli.COMMANDS)


def test_every_option_says_what_it_is() -> None:
    silent = [f"{group}={name}" for group, name, file in docs_reference.option_files() if not cli.summary(file)]
    assert silent == []


def test_every_error_class_of_the_package_is_on_the_page(pages: dict[str, str]) -> None:
    nodes = (node for file in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    classes = {node.name: [ast.unparse(base) for base in node.bases] for node in nodes if isinstance(node, ast.ClassDef)}
    ours = {"FgvrError"}
    while more := {name for name, bases in classes.items() if ours & {base.rpartition(".")[2] for base in bases}} - ours:
        ours |= more
    public = {name for name in ours if name in fgvr.__all__}
    assert set(re.findall(r"(?m)^## (\w+)$", pages["errors"])) == public
    assert {name for name in ours - public if not any(base in public for base in classes[name])} == set()


def paths(value: Any, free: set[str], prefix: str = "") -> Iterator[str]:
    """Every key of a JSON value, as the page spells it."""
    if prefix.rstrip(".") in free:
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{prefix}{key}"
            yield from paths(inner, free, f"{prefix}{key}.")
    elif isinstance(value, list):
        for inner in value:
            yield from paths(inner, free, prefix.removesuffix(".") + "[].")


def written(file: Path) -> set[str]:
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.suffix == ".jsonl" else [json.loads(file.read_text())]
    return {path for row in rows for path in paths(row, FREE.get(file.name, set()))}


def shown_fields(pages: dict[str, str], name: str) -> set[str]:
    text = section(pages["files"], name)
    return first_cells(text) | set(re.findall(r"`([^`]+)`", "".join(re.findall(r"(?m)^Fields: .*$", text))))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run with everything in it: an answer withheld, System 2 asked about every image, what was learned."""
    close_shared()
    home = tmp_path_factory.mktemp("home")
    words = [*SMALL, f"paths.home={home}", "trigger.target=slow_rate:0.6", "trigger.abstain=risk:0.5@0.5"]
    yield fgvr.evaluate(fgvr.load_config(*words)).path
    close_shared()


@pytest.mark.parametrize("name", ["predictions.jsonl", "report.json", "metrics.jsonl", "memory.jsonl"])
def test_every_field_of_a_runs_files_is_on_the_page_and_no_other(name: str, run: Path, pages: dict[str, str]) -> None:
    found, shown = written(run / name), shown_fields(pages, name)
    if name == "metrics.jsonl":
        found = {field for field in found if not field.startswith("final/")} - {"step"}
    if name == "memory.jsonl":
        found -= {"row", "t"}
        rare = {"resident[].key", "resident[].role", "resident[].source", "resident[].bytes", "resident[].last_used", "subject", "text"}
        assert found - shown == set() and shown - found <= rare
        return
    optional = {"review", "workers", "devices"} if name == "report.json" else set()  # of a person, a cluster, several devices
    assert found == shown - optional


def test_every_field_of_a_bases_files_is_on_the_page_and_no_other(run: Path, pages: dict[str, str]) -> None:
    import pyarrow.parquet as parquet

    base = Path((run / ".base").read_text().split("\n")[0])
    manifest = json.loads((base / "manifest.json").read_text())
    assert set(manifest) == shown_fields(pages, "manifest.json")
    assert {key for row in json.loads((base / "splits.json").read_text())["support"] for key in row} == shown_fields(pages, "splits.json")
    assert set(parquet.read_schema(base / "classes.parquet").names) == shown_fields(pages, "classes.parquet")
    assert {*parquet.read_schema(base / "rehearsal.parquet").names, "target"} == shown_fields(pages, "rehearsal.parquet")
    assert sorted(manifest["files"]) == sorted(file.name for file in base.iterdir() if file.name != "manifest.json")


def test_every_column_of_the_table_of_predictions_is_on_the_page(run: Path, pages: dict[str, str]) -> None:
    with open(run / "predictions.csv", newline="") as file:
        assert set(next(csv.reader(file))) == shown_fields(pages, "predictions.csv")


class Rules(FakeMLLM):
    """States a rule when it is shown a mistake."""

    def generate(self, images: Any, prompts: Sequence[str], **settings: Any) -> list[Reply]:
        replies = super().generate(images, prompts, **settings)
        return [Reply("Rule: look twice.") if "was taken for" in prompt else reply for prompt, reply in zip(prompts, replies, strict=True)]


class RuleLoader(FakeLoader):
    def __init__(self) -> None:
        super().__init__()
        self.kinds["mllm"] = Rules

    def fingerprint(self, spec: ModelSpec) -> str:
        return f"rules-{super().fingerprint(spec)}"


def reviewed(folder: Path) -> Path:
    report = fgvr.evaluate(fgvr.load_config("mode=evaluate", *SMALL, f"paths.home={folder}", "slow=person"))
    return report.path / "review.json"


def learned(folder: Path) -> Path:
    report = fgvr.evaluate(fgvr.load_config("mode=evaluate", *SMALL, f"paths.home={folder}", "trigger=always", "online=prototypes"))
    return report.path / "online.jsonl"


def discovered(folder: Path) -> Path:
    (folder / "in").mkdir()
    for shade in range(3):
        Image.new("RGB", (40, 40), (40 * shade, 90, 200)).save(folder / "in" / f"{shade}.png")
    words = ("models=fake", f"paths.home={folder}", "knowledge.leave_one_out=false", "slow.weight=0.5", "discover.superclass=bird")
    return fgvr.discover(folder / "in", *words).path / "names.json"


def experienced(folder: Path) -> Path:
    words = ("mode=build_experience_base", "trigger=always", "models.mllm.loader=tests.docs.test_reference.RuleLoader")
    return modes.perform(fgvr.load_config(*SMALL, *words, f"paths.home={folder}")).path / "experience.jsonl"


def announced_server(folder: Path) -> Path:
    with announced(folder, "http://127.0.0.1:1", "t"):
        (folder / "read.json").write_bytes((folder / "server.json").read_bytes())
    return (folder / "read.json").rename(folder / "server.json")


@pytest.mark.parametrize("made", [reviewed, learned, discovered, experienced, announced_server], ids=lambda made: made.__name__)
def test_every_field_of_what_other_commands_leave_is_on_the_page_and_no_other(
    made: Callable[[Path], Path], tmp_path: Path, pages: dict[str, str]
) -> None:
    close_shared()
    file = made(tmp_path)
    found, shown = written(file), shown_fields(pages, file.name)
    assert found and found == shown
    close_shared()


def test_every_address_of_the_server_is_on_the_page(pages: dict[str, str]) -> None:
    decorated = re.compile(r"@(?:router|app)\.(get|post)\(\"(/[^\"]*)\"")
    hidden = {"/", "/favicon.ico", "/api/v1/bundle", "/docs"}
    found = {path for file in (PACKAGE / "server").glob("*.py") for _, path in decorated.findall(file.read_text())}
    routes = {path.replace(":path", "") for path in found - hidden}
    shown = {path for _, path in re.findall(r"(?m)^## (GET|POST) (\S+)$", pages["http"])}
    assert all(any(one.endswith(path) for one in shown) for path in routes), {
        path for path in routes if not any(one.endswith(path) for one in shown)
    }
    assert len(shown) >= len(routes) > 15
