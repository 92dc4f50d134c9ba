"""python -m benchmarks NAME: prints a table, and with --json writes every figure with the machine it was measured on."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from functools import partial
from pathlib import Path

from benchmarks.measure import machine
from fgvr.errors import FgvrError
from fgvr.utils.files import atomic_write

NAMES = (
    "floors",
    "startup",
    "load",
    "runtime",
    "tricks",
    "encode",
    "prefix",
    "batching",
    "slow",
    "fastslow",
    "kb",
    "retrieval",
    "sweep",
    "stream",
    "photos",
    "rows",
    "scale",
    "families",
)
STDOUT = Path("-")
APART = ("batching", "stream", "photos", "scale", "families")  # not in `all`: emulated bfloat16, half an hour, other models


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=[*NAMES, "all"])
    parser.add_argument("--models", default="tiny", help="a bundle: tiny, random-150m, random-7b (made by scripts/make_random_models.py)")
    parser.add_argument("--repeat", type=int, default=5, help="measurements of each figure, at least 2")
    parser.add_argument("--size", type=int, help="how much work: images, classes, rows, as the benchmark says; default: its own")
    parser.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const=STDOUT,
        help="write the figures to this file (`all`: a file per benchmark in this folder); no name: a line on stdout",
    )
    args = parser.parse_args()
    if args.repeat < 2:
        parser.error("--repeat: at least 2")
    if args.name == "all" and args.size is not None:
        parser.error("--size: not with all, it means something else to each")
    try:
        for name in [n for n in NAMES if n not in APART] if args.name == "all" else (args.name,):
            folder = args.name == "all" and args.json not in (None, STDOUT)
            one(name, args, args.json / f"{name}.json" if folder else args.json)
    except FgvrError as error:
        print(error, file=sys.stderr)
        return 3
    return 0


def one(name: str, args: argparse.Namespace, file: Path | None) -> None:
    about = machine()
    show = (lambda line: print(line, file=sys.stderr, flush=True)) if file == STDOUT else partial(print, flush=True)
    show(f"## {name} --models {args.models} --repeat {args.repeat}")
    given = {} if args.size is None or name == "runtime" else {"size": args.size}
    report = importlib.import_module(f"benchmarks.{name}").measure(models=args.models, repeat=args.repeat, **given)
    show("\n".join(report.lines()))
    load = f"load {about['load'][0]:.1f} to {os.getloadavg()[0]:.1f}"
    show(f"{about['processor']} ({' '.join(about['flags'])}), {about['cores']} cores, {load}, torch {about['torch']}, {about['commit']}")
    if file is None:
        return
    figures = {"schema": 1, "benchmark": name, "models": args.models, "repeat": args.repeat, "machine": about, **report.figures()}
    if file == STDOUT:
        print(json.dumps(figures), flush=True)
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, json.dumps(figures, indent=1).encode())


if __name__ == "__main__":
    sys.exit(main())
