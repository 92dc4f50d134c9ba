"""Millions of rows are listed, hashed and guarded; the listing process is killed with -9 in the middle, and another one goes on.

Peaks are of the second process: USS and RSS, looked at ten times a second. `--size` is the number of rows. Shards are made below the
system's temporary folder.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.measure import ROOT
from benchmarks.race import Races
from fgvr.data.streams.opening import listed
from fgvr.data.streams.webdataset import WebDataset
from fgvr.errors import FgvrError

PER_SHARD, CLASSES, COPIES = 20_000, 1_000, 1_000  # every thousandth row is a copy of the first of its shard
TAR_ROWS = 5_000
_LIST = """
import json, sys, time
from pathlib import Path
from fgvr.data import leaks
from fgvr.data.streams.parquet import Parquet
from fgvr.data.streams.opening import listed
from fgvr.data.streams.samples import StreamSamples
began = time.perf_counter()
stream = Parquet(Path(sys.argv[1]))
index = listed(stream, sys.argv[2], strict=False)
done = time.perf_counter()
copies, contradictions = index.repeated()
sorted_at = time.perf_counter()
samples = StreamSamples(index, stream, index.ids())
used = {samples[i].sha256: str(i) for i in range(0, len(samples), max(1, len(samples) // 1000))}
overlaps = leaks.exact_overlaps(samples, used)
guarded = time.perf_counter()
digest = index.digest
ended = time.perf_counter()
seconds = {
    "list and hash": done - began,
    "sort for copies": sorted_at - done,
    "leak guard": guarded - sorted_at,
    "digest": ended - guarded,
}
counts = {"rows": len(samples), "copies": len(copies), "contradictions": len(contradictions), "used": len(used), "overlaps": len(overlaps)}
print(json.dumps(counts | {"digest": digest, "cpu": time.process_time(), "seconds": seconds}))
"""


def measure(*, models: str, repeat: int, size: int = 100_000) -> Races:
    """`size`: rows."""
    with tempfile.TemporaryDirectory(prefix="fgvr-rows-") as folder:
        shards = Path(folder) / "shards"
        began = time.perf_counter()
        make_shards(shards, size)
        made = time.perf_counter() - began
        killed = _listing(shards, Path(folder) / "store", kill_at=0.5)
        found = _listing(shards, Path(folder) / "store")
        tar_shard(Path(folder) / "rows.tar", TAR_ROWS)
        tar = WebDataset(Path(folder) / "rows.tar")
        began = time.process_time()
        listed(tar, Path(folder) / "tar", strict=True)
        of_tar = TAR_ROWS / (time.process_time() - began)
        whole = found["answer"]
        kept = killed["rows_kept"]
    seconds = whole["seconds"]
    cpu = whole["cpu"] / (size - kept) * 1e6
    rate = (size - kept) / seconds["list and hash"]
    if whole["rows"] != size or whole["copies"] != size // COPIES - -(-size // PER_SHARD) * (size >= COPIES) or whole["contradictions"]:
        raise FgvrError(f"{size:,} rows were made, the index says {whole}")
    notes = [
        f"{size:,} rows in {-(-size // PER_SHARD):,} shards, made in {made:.0f} s",
        f"killed with -9 after {kept:,} rows; the next process listed the other {size - kept:,} at {rate:,.0f} rows/s "
        f"({cpu:.0f} us of processor time a row, sort and guard included)",
        f"a tar shard: {of_tar:,.0f} rows in a second of processor time",
        f"copies by a sort on the disk: {whole['copies']:,} in {seconds['sort for copies']:.1f} s; "
        f"leak guard of {whole['used']:,} hashes against all rows: {whole['overlaps']:,} overlaps in {seconds['leak guard']:.1f} s",
        f"peak memory of the process: {found['uss'] >> 20:,} MiB of its own, {found['rss'] >> 20:,} MiB resident; "
        f"index {found['disk'] / size:.0f} bytes a row on the disk",
    ]
    return Races({}, notes, {"rows": size, "kept": kept, "rows_per_second": rate, "tar_rows_per_cpu_second": of_tar, **found})


def make_shards(folder: Path, size: int) -> None:
    """Parquet files of rows with an "image" of 64 bytes and a class: the cost is that of rows, not of pictures."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    for first in range(0, size, PER_SHARD):
        rows = range(first, min(first + PER_SHARD, size))
        copied = [first if row % COPIES == 0 else row for row in rows]
        columns = {"image": [b"%064d" % row for row in copied], "label": [str(row % CLASSES) for row in copied]}
        pq.write_table(pa.table(columns), folder / f"{first // PER_SHARD:06d}.parquet", row_group_size=10_000)


def tar_shard(file: Path, size: int) -> None:
    """The same rows as members of a tar file."""
    with tarfile.open(file, "w") as archive:
        for row in range(size):
            for name, data in ((f"{row:09d}.jpg", b"%064d" % row), (f"{row:09d}.cls", b"%d" % (row % CLASSES))):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def _listing(shards: Path, store: Path, *, kill_at: float | None = None) -> dict[str, Any]:
    """One process that lists; `kill_at`: kill it when so large a share of the bytes has been read, and say how many rows were kept."""
    words = [sys.executable, "-c", _LIST, str(shards), str(store)]
    process = subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | {"FGVR_PROGRESS": "0"}
    )
    watched, uss, rss = psutil.Process(process.pid), 0, 0
    count = len(list(shards.iterdir()))
    while process.poll() is None:
        try:
            memory = watched.memory_full_info()
            uss, rss = max(uss, memory.uss), max(rss, memory.rss)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            break
        if kill_at is not None and _shards_done(store) >= max(1, int(kill_at * count)):
            process.send_signal(signal.SIGKILL)
            process.wait()
            return {"rows_kept": _rows(store)}
        time.sleep(0.1 if count > 50 else 0.002)
    out = process.communicate()[0]
    if process.returncode:
        raise FgvrError(f"the listing process ended with {process.returncode}")
    disk = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
    return {"answer": json.loads(out), "uss": uss, "rss": rss, "disk": disk, "rows_kept": _rows(store)}


def _ask(store: Path, query: str) -> int:
    import sqlite3

    for file in store.rglob("*.sqlite"):
        base = sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10)
        try:
            return base.execute(query).fetchone()[0]
        except sqlite3.OperationalError:
            return 0
        finally:
            base.close()
    return 0


def _shards_done(store: Path) -> int:
    return _ask(store, "SELECT COUNT(*) FROM shards WHERE done")


def _rows(store: Path) -> int:
    return _ask(store, "SELECT COUNT(*) FROM rows")
