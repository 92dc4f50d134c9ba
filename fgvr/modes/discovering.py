"""mode=discover: unlabelled images -> names -> a knowledge base of what they show."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fgvr.agents import discover_prompts
from fgvr.agents.cluster_kinds import cluster_kinds, from_json, name_kinds
from fgvr.agents.discover import Discovered, Discoverer
from fgvr.data.catalog import Catalog
from fgvr.data.datasets import Dataset
from fgvr.data.splits import Split
from fgvr.data.unlabelled import Unlabelled, open_unlabelled
from fgvr.errors import ConfigError
from fgvr.evaluation import image_gallery, review_page
from fgvr.evaluation import report as reports
from fgvr.knowledge.base import KnowledgeBase
from fgvr.knowledge.build import JOURNAL
from fgvr.modes.runs import recorded_memory, run_folder
from fgvr.modes.showing import to_json, to_text
from fgvr.pipeline import Recognizer
from fgvr.protocols import reads_text
from fgvr.scale import some_files, working
from fgvr.session import Session
from fgvr.store.cache import LayeredCache, SqliteCache
from fgvr.store.journal import StageCache
from fgvr.types import Category
from fgvr.utils.batches import batches
from fgvr.utils.files import atomic_write, short_hash, write_json
from fgvr.utils.paths import user_path
from fgvr.utils.progress import track
from fgvr.utils.text import printable

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


def discover(session: Session) -> Discovery:
    """Identify, howto, describe, guess, postprocess; then a knowledge base of what was found. The same command goes on where it was."""
    config = session.config
    with run_folder(session, mode="discover") as folder, recorded_memory(session, folder):
        if config.run.fresh:
            shutil.rmtree(folder / STAGES, ignore_errors=True)
        images = open_unlabelled(Path(config.images), cache_dir=session.home / "store")
        named_by_mllm = "mllm" in config.models.present
        with working(session, lambda _: some_files(images.samples)) as at_work:
            found = _find_kinds(at_work, images, folder / STAGES) if named_by_mllm else find_groups(at_work, images, folder)
            changes = {"dataset": _as_dataset(images, found, shots=config.discover.shots)}
            base = at_work.derive({}, **changes).knowledge
        named = session.derive({}, knowledge=base, **changes)  # whose recognizer outlives the workers
        notes = (*([config.models.notice] if config.models.notice else []), *images.notes, *found.notes)
        discovery = Discovery(found, _named(images, found), base, named.recognizer_of_pictures(), notes, folder)
        _write(discovery, images, folder)
    return discovery


def _find_kinds(session: Session, images: Unlabelled, folder: Path) -> Discovered:
    """The stages of discovery, each kept in `folder`. Only the picture_set, pictures without paths, is handed over."""
    models = session.config.models
    if not reads_text(session.encoder):
        raise ConfigError(
            f"mode=discover names kinds by comparing words, and {models.encoder.source} reads no text: choose an encoder with a text side, "
            "such as models=qwen2_5_vl_3b, or write models/mllm=none, so that a person names them"
        )
    if (can := session.abilities) is not None and not can.scores:
        raise ConfigError(
            f"mode=discover compares its guesses by log-likelihoods of given text, and {models.mllm.source} gives none: "
            "have a server of fgvr (fgvr serve) or vLLM hold the model, or take one that runs here (models/mllm=tiny)"
        )
    wishes = session.config.discover.to_dict()
    for key in ("shots", "kinds", "names"):  # not of this way
        del wishes[key]
    folder.mkdir(parents=True, exist_ok=True)
    with SqliteCache(folder / JOURNAL) as journal:
        session = session.derive({}, store=LayeredCache(journal, session.store))
        stages = StageCache(folder, [images.content, session.fingerprints, models.slow_target, discover_prompts.fingerprint(), wishes])
        discoverer = Discoverer(
            session.mllm,
            session.encoder,
            target="name" if models.slow_target == "name" else "description",
            stage=stages,
            mllm_batch=models.mllm.batch_size,
            encode_batch=models.encoder.batch_size,
            each=session.engine.map,
            **wishes,
        )
        return discoverer(images.seen_by(session.engine.look))


def _as_dataset(images: Unlabelled, found: Discovered, *, shots: int | None) -> Dataset:
    """What was found, as a dataset: its kinds are the classes, their most certain images the support. It has no test images."""
    ids = [f"{place:03d}" for place in range(len(found.kinds))]
    categories = (Category(id, kind.name, found.superclass, kind.aliases) for id, kind in zip(ids, found.kinds, strict=True))
    support = tuple(
        replace(images.samples[picture], label=id) for id, kind in zip(ids, found.kinds, strict=True) for picture in kind.pictures[:shots]
    )
    root = images.root.resolve()
    name = re.sub(r"[^\w.-]+", "_", root.name) or "folder"
    return Dataset(f"discovered-{name}", root.name, Catalog(tuple(categories)), found.superclass, Split(support, ()), images.root)


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
    body = {
        "superclass": found.superclass,
        "attributes": list(found.attributes),
        "guesses": found.guesses,
        "complexity_penalty": found.complexity_penalty,
    }
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


to_json.register(Discovery, lambda result: json.loads((result.path / NAMES).read_text()))


@to_text.register
def _(result: Discovery) -> list[Any]:
    lines = (f"classify others with it: mode=classify image=... knowledge.path={result.base.path}", f"{result.path}/{reports.PAGE}")
    return image_gallery.terminal(result.found, result.notes, lines)


def find_groups(session: Session, images: Unlabelled, folder: Path) -> Discovered:
    """Without an MLLM: The kinds as groups of vectors, with the names of `discover.names`, or with a page that asks for them."""
    encoder, picture_set, asked = session.encoder, images.seen_by(session.engine.look), session.config.discover

    def grouped() -> dict[str, Any]:
        seen = batches(len(picture_set), session.config.models.encoder.batch_size)
        encoded = session.engine.map(lambda batch: encoder.encode(picture_set(batch)), seen)
        vectors = np.concatenate(list(track(encoded, "images", len(picture_set), weigh=len)))
        return asdict(cluster_kinds(vectors, scale=encoder.logit_scale, count=asked.kinds, superclass=asked.superclass))

    # Kept, so that names are never those of groups that another number of threads would make a little otherwise.
    inputs = [images.content, encoder.fingerprint, asked.kinds, asked.superclass]
    found = from_json(StageCache(session.home / "kinds", inputs)(short_hash(inputs), grouped))
    run = image_gallery.run_of(found, [sample.sha256 for sample in images.samples])
    if asked.names is not None:
        return name_kinds(found, image_gallery.read_names(user_path(asked.names), found, run))
    title = image_gallery.headline(found)
    page = image_gallery.render_naming(found, run, [sample.image for sample in images.samples], title=title, notes=images.notes)
    atomic_write(folder / review_page.PAGE, printable(page))
    return found
