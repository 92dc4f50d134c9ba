"""mode=discover: unlabelled images -> names -> a knowledge base of what they show."""

from __future__ import annotations

import csv
import io
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fgvr import assembly
from fgvr.agents.discover import Discovered
from fgvr.data.unlabelled import Unlabelled
from fgvr.evaluation import image_gallery
from fgvr.evaluation import report as reports
from fgvr.knowledge.base import KnowledgeBase
from fgvr.modes import naming
from fgvr.modes.runs import recorded_memory, run_folder
from fgvr.pipeline import Recognizer
from fgvr.utils.files import atomic_write, write_json
from fgvr.utils.text import printable

log = logging.getLogger(__name__)

STAGES, NAMES, LABELS = "stages", "names.json", "labels.csv"


@dataclass(frozen=True, slots=True, eq=False)
class Discovery:
    """The kinds that were found, and a recognizer that knows them. `names, recognizer = fgvr.discover(folder)` works, too."""

    found: Discovered
    images: Mapping[str, str]  # path relative to the folder -> name
    base: KnowledgeBase
    recognizer: Recognizer
    notes: tuple[str, ...]
    path: Path  # names.json, labels.csv, report.html

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(kind.name for kind in self.found.kinds)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.names, self.recognizer))

    def __len__(self) -> int:
        return 2

    def __repr__(self) -> str:
        return f"Discovery({len(self.images)} images, {len(self.names)} kinds of {self.found.superclass}, {self.path})"

    def _repr_html_(self) -> str:
        return image_gallery.table(self.found)


def discover(cfg: DictConfig) -> Discovery:
    """Identify, howto, describe, guess, postprocess; then a knowledge base of what was found. The same command goes on where it was."""
    with run_folder(cfg, mode="discover") as folder, recorded_memory(cfg, folder):
        if cfg.run.fresh:
            shutil.rmtree(folder / STAGES, ignore_errors=True)
        images = assembly.open_images(cfg)
        named_by_mllm = "mllm" in assembly.present(cfg)
        found = assembly.find_kinds(cfg, images, folder / STAGES) if named_by_mllm else naming.find_kinds(cfg, images, folder)
        base = assembly.open_knowledge(cfg, assembly.discovered_dataset(cfg, images, found))
        notes = (*([cfg.models.notice] if cfg.models.notice else []), *images.notes, *found.notes)
        discovery = Discovery(found, _named(images, found), base, assembly.build_recognizer(cfg, base), notes, folder)
        _write(discovery, images, folder)
    return discovery


def discover_folder(folder: str | Path, *overrides: str) -> Discovery:
    """Names for the images of a folder, and a recognizer that knows them; `overrides` as on the command line."""
    return discover(assembly.load_config("mode=discover", f"images={folder}", *overrides))


def _named(images: Unlabelled, found: Discovered) -> dict[str, str]:
    owners = found.owners
    return {sample.key: found.kinds[owners[i]].name for i, sample in enumerate(images.samples)}


def _write(discovery: Discovery, images: Unlabelled, folder: Path) -> None:
    """names.json (the kinds), labels.csv (with it the folder is a labelled one: dataset=folder) and report.html."""
    found, keys = discovery.found, [sample.key for sample in images.samples]
    kinds = [
        {
            "name": kind.name,
            "aliases": list(kind.aliases),
            "description": kind.description,
            "votes": kind.votes,
            "images": {keys[i]: certainty for i, certainty in zip(kind.pictures, kind.certainty, strict=True)},
        }
        for kind in found.kinds
    ]
    body = {"superclass": found.superclass, "attributes": list(found.attributes), "guesses": found.guesses, "price": found.price}
    body |= {"notes": list(discovery.notes), "knowledge_base": str(discovery.base.path), "kinds": kinds}
    rows = io.StringIO()
    table = csv.writer(rows, lineterminator="\n")
    table.writerow(("filename", "class_name"))
    table.writerows(sorted(discovery.images.items()))
    atomic_write(folder / LABELS, rows.getvalue().encode("utf-8", "surrogateescape"))  # as the file system has the names
    atomic_write(
        folder / reports.PAGE, printable(image_gallery.render(found, [sample.image for sample in images.samples], discovery.notes))
    )
    write_json(folder / NAMES, body)
