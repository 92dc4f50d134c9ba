"""A knowledge base on disk. It is saved whole or not at all, and only the models that made it may open it.

The manifest is written last, so its presence means that the base is complete. Readers verify every file against the manifest.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from fgvr.errors import KnowledgeError
from fgvr.knowledge.classes import ClassRecord, Description
from fgvr.knowledge.prototypes import Prototypes
from fgvr.knowledge.statistics import LeaveOneOutScores, Statistics
from fgvr.types import Experience, Manifest
from fgvr.utils.files import atomic_write, sha256_file

SCHEMA = 1
MANIFEST, PROTOTYPES, CLASSES = "manifest.json", "prototypes.safetensors", "classes.parquet"
SLOW_SCORES, EXPERIENCE, SPLITS = "rehearsal.parquet", "experience.jsonl", "splits.json"
FILES = (MANIFEST, PROTOTYPES, CLASSES, SLOW_SCORES, EXPERIENCE, SPLITS)
_LIBRARIES = ("torch", "transformers", "open_clip_torch")


@dataclass(frozen=True, slots=True)
class Support:
    """One support image of the base, in the order of the prototypes' shots."""

    key: str  # the image, relative to the data set
    category: str  # class id
    sha256: str  # of its content


@dataclass(frozen=True, slots=True)
class Origin:
    """What a base is made from. Its key is a hash of these values, so another value means another base."""

    dataset: str
    world: str
    split_hash: str
    shots: int | str  # of each class, or "all"
    split_seed: int
    models: Mapping[str, str]  # role -> fingerprint
    prompts: str
    catalog: str = ""  # hash of the classes' ids, names and superclasses, which the prompts are filled with; "" in older bases
    # For people: role -> source, revision, dtype.
    sources: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict, compare=False)

    @property
    def key(self) -> str:
        """12 hex digits, the base's folder below knowledge/<dataset>/. The place of a model does not count."""
        return hashlib.sha256(json.dumps(asdict(replace(self, sources={})), sort_keys=True).encode()).hexdigest()[:12]

    def model(self, role: str) -> str:
        """For people, such as `encoder ViT-B-32/openai auto (0123456789ab)`."""
        known = self.sources.get(role, {})
        told = [role, *(value for part in ("source", "revision", "dtype") if (value := known.get(part)))]
        return f"{' '.join(told)} ({self.models.get(role)})"


@dataclass(frozen=True, slots=True, eq=False)
class KnowledgeBase:
    """The three libraries and what they were made from."""

    origin: Origin
    classes: tuple[ClassRecord, ...]
    prototypes: Prototypes
    statistics: Statistics
    slow_scores: LeaveOneOutScores
    support: tuple[Support, ...]
    experience: tuple[Experience, ...] = ()
    path: Path | None = None
    manifest: Manifest | None = None

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the classes with a failed description; the next build asks for it again."""
        return tuple(record.name for record in self.classes if record.failed)

    @property
    def described(self) -> int:
        """Classes with a description of their own."""
        return sum(record.description.status == "described" for record in self.classes)

    @property
    def records(self) -> dict[str, ClassRecord]:
        return {record.id: record for record in self.classes}

    def __repr__(self) -> str:
        return (
            f"KnowledgeBase({self.origin.dataset}, {len(self.classes)} classes, {len(self.support)} support images, "
            f"{self.described} described, {len(self.experience)} rules, {self.path})"
        )

    def save(self, folder: Path, *, created: str, seconds: float) -> "KnowledgeBase":
        """Write every file, the manifest last. Returns the base as it now stands in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        _save_prototypes(folder / PROTOTYPES, self.prototypes, self.statistics)
        _save_classes(folder / CLASSES, self)
        _save_scores(folder / SLOW_SCORES, self.slow_scores)
        atomic_write(folder / EXPERIENCE, "".join(json.dumps(asdict(rule), sort_keys=True) + "\n" for rule in self.experience))
        atomic_write(folder / SPLITS, json.dumps({"support": [asdict(s) for s in self.support]}, indent=1, sort_keys=True))
        files = {name: sha256_file(folder / name) for name in (PROTOTYPES, CLASSES, SLOW_SCORES, EXPERIENCE, SPLITS)}
        manifest = _manifest(self, files, created=created, seconds=seconds)
        atomic_write(folder / MANIFEST, json.dumps(asdict(manifest), indent=1, sort_keys=True))
        return replace(self, path=folder, manifest=manifest)


def is_complete(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def strange_files(folder: Path) -> tuple[str, ...]:
    """Names of the files in the folder that belong to no base, so that a build must not replace them."""
    if not folder.is_dir():
        return (folder.name,) if folder.exists() else ()
    return tuple(sorted(file.name for file in folder.iterdir() if file.name not in FILES and file.suffix != ".tmp"))


def content_hash(folder: Path) -> str | None:
    """The content hash of the base in the folder; None when there is none."""
    return _read_manifest(folder).content_hash if is_complete(folder) else None


def load(folder: Path, *, expected: Origin | None = None) -> KnowledgeBase:
    """Open a complete base.

    Args:
        expected: the origin that the caller's configuration would build. A base of other models or prompts, or of the same images under
            other names, is an error that names both.

    Raises:
        KnowledgeError: absent, incomplete, of another schema, damaged, or made by other models.
    """
    from safetensors.numpy import load_file

    manifest = _read_manifest(folder)
    if expected is not None:
        _check_origin(folder, manifest, expected)
    for name, sha256 in manifest.files.items():
        if not (folder / name).is_file() or sha256_file(folder / name) != sha256:
            raise KnowledgeError(f"{folder / name} is missing or damaged; rebuild with: mode=build_knowledge_base knowledge.build=always")
    arrays = load_file(folder / PROTOTYPES)
    statistics, temperature = arrays.pop("confusion"), float(arrays.pop("temperature")[0])
    classes = tuple(_class_record(row) for row in _read_parquet(folder / CLASSES))
    ids = tuple(record.id for record in classes)
    rules = map(json.loads, (folder / EXPERIENCE).read_text().splitlines())
    return KnowledgeBase(
        origin=_origin(manifest),
        classes=classes,
        prototypes=Prototypes(ids, temperature=temperature, **arrays),
        statistics=Statistics(ids, statistics),
        slow_scores=_load_scores(folder / SLOW_SCORES),
        support=tuple(Support(**row) for row in json.loads((folder / SPLITS).read_text())["support"]),
        experience=tuple(Experience(**row | {"pair": tuple(row["pair"]), "sources": tuple(row["sources"])}) for row in rules),
        path=folder,
        manifest=manifest,
    )


# --- the manifest ------------------------------------------------------------------------------------------------------------


def _manifest(base: KnowledgeBase, files: Mapping[str, str], *, created: str, seconds: float) -> Manifest:
    counts = {"classes": len(base.classes), "support": len(base.support), "described": base.described, "rules": len(base.experience)}
    libraries = {name: version(name) for name in _LIBRARIES}
    origin = asdict(base.origin)
    blank = Manifest(SCHEMA, base.origin.key, counts=counts, libraries=libraries, files=files, content_hash="", **origin)
    content_hash = hashlib.sha256(json.dumps(asdict(replace(blank, sources={})), sort_keys=True).encode()).hexdigest()
    return replace(blank, content_hash=content_hash, created=created, seconds=seconds)


def _read_manifest(folder: Path) -> Manifest:
    if not is_complete(folder):
        raise KnowledgeError(f"no complete knowledge base in {folder}; build one with: fgvr build_knowledge_base")
    try:
        fields = json.loads((folder / MANIFEST).read_text())
        if fields["schema"] != SCHEMA:
            raise KnowledgeError(
                f"{folder} has schema {fields['schema']}, this version reads {SCHEMA}; rebuild with: "
                "fgvr build_knowledge_base knowledge.build=always"
            )
        return Manifest(**fields)
    except (ValueError, KeyError, TypeError) as exc:
        raise KnowledgeError(f"{folder / MANIFEST} cannot be read ({exc}); rebuild with knowledge.build=always") from exc


def _origin(manifest: Manifest) -> Origin:
    return Origin(**{part.name: getattr(manifest, part.name) for part in fields(Origin)})


def _check_origin(folder: Path, manifest: Manifest, expected: Origin) -> None:
    for role, fingerprint in expected.models.items():
        if manifest.models.get(role) != fingerprint:
            raise KnowledgeError(
                f"{folder} was built with {_origin(manifest).model(role)}, this configuration has {expected.model(role)}; "
                "use the models it was built with, or build another: mode=build_knowledge_base"
            )
    if manifest.prompts != expected.prompts:
        raise KnowledgeError(f"{folder} was built with prompts {manifest.prompts}, this version has {expected.prompts}; rebuild it")
    # A base of other images is the user's choice, and it brings its own names.
    if manifest.split_hash == expected.split_hash and manifest.catalog != expected.catalog:
        raise KnowledgeError(
            f"{folder} was built from these images under other names or another superclass (catalogue {manifest.catalog or 'unknown'}; "
            f"here {expected.catalog}); use those it was built with, or build another: mode=build_knowledge_base"
        )


# --- files -------------------------------------------------------------------------------------------------------------------


def _save_prototypes(path: Path, prototypes: Prototypes, statistics: Statistics) -> None:
    """Every array of the record under the name of its field; one that is None is absent."""
    from safetensors.numpy import save

    stored = {part.name: getattr(prototypes, part.name) for part in fields(Prototypes) if part.name != "ids"}
    stored |= {"confusion": statistics.confusion, "temperature": np.array([prototypes.temperature])}
    atomic_write(path, save({name: np.ascontiguousarray(array) for name, array in stored.items() if array is not None}))


def _save_classes(path: Path, base: KnowledgeBase) -> None:
    known = base.statistics
    counts = zip([r.shots for r in base.classes], *(c.tolist() for c in (known.predicted, known.correct, known.occurred)), strict=True)
    columns: dict[str, Sequence[object]] = {
        "id": [r.id for r in base.classes],  # class id
        "name": [r.name for r in base.classes],  # for people and prompts
        "superclass": [r.superclass for r in base.classes],  # what it is a kind of
        "aliases": [list(r.aliases) for r in base.classes],  # other names
        "description": [r.description.text for r in base.classes],  # the MLLM's
        "status": [r.description.status for r in base.classes],  # described, failed, absent
        "fold_descriptions": [[d.text for d in r.fold_descriptions] for r in base.classes],  # without fold 0, without fold 1
        "fold_status": [[d.status for d in r.fold_descriptions] for r in base.classes],  # of these
        "counts": [dict(zip(("shots", "predicted", "correct", "occurred"), row, strict=True)) for row in counts],  # in leave-one-out
    }
    _write_parquet(path, columns)


def _class_record(row: dict) -> ClassRecord:
    """Older bases have the shots in a column of their own, and do not say why a fold's description is absent."""
    texts = row["fold_descriptions"]
    first, second = map(Description, texts, row.get("fold_status") or ["described" if text else "absent" for text in texts])
    return ClassRecord(
        id=row["id"],
        name=row["name"],
        superclass=row["superclass"],
        aliases=tuple(row["aliases"]),
        description=Description(row["description"], row["status"]),
        fold_descriptions=(first, second),
        shots=row.get("counts", row)["shots"],
    )


def _save_scores(path: Path, slow: LeaveOneOutScores) -> None:
    rows = [(image, category, nats) for image, scores in slow.scores.items() for category, nats in scores.items()]
    columns = {"image": [r[0] for r in rows], "category": [r[1] for r in rows], "log_likelihood": [r[2] for r in rows]}
    _write_parquet(path, columns, {"target": slow.target})


def _load_scores(path: Path) -> LeaveOneOutScores:
    import pyarrow.parquet as parquet

    target = (parquet.read_schema(path).metadata or {}).get(b"target", b"").decode()
    scores: dict[str, dict[str, float]] = {}
    for row in _read_parquet(path):
        scores.setdefault(row["image"], {})[row["category"]] = row["log_likelihood"]
    return LeaveOneOutScores(target, scores)


def _write_parquet(path: Path, columns: Mapping[str, Sequence[object]], metadata: Mapping[str, str] | None = None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(dict(columns)).replace_schema_metadata(dict(metadata or {})), sink)
    atomic_write(path, sink.getvalue().to_pybytes())


def _read_parquet(path: Path) -> list[dict]:
    import pyarrow.parquet as parquet

    # Not memory-mapped: a reader must survive the base being rebuilt under it. Not `read_table`: it brings in pandas, a second and a half.
    with parquet.ParquetFile(path, memory_map=False) as file:
        return file.read().to_pylist()
