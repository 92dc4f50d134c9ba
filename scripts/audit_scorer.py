"""Of a dataset's own wrong answers, how many would a text protocol call right? See fgvr/evaluation/scoring_protocols.py.

    python scripts/audit_scorer.py FILE ...

A FILE is JSON of `{list: [name, ...]}` or `[name, ...]`, or text with one class name a line. Ends with 2 or 3 for an error.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fgvr.errors import ConfigError, DatasetError, FgvrError
from fgvr.evaluation import scoring_protocols
from fgvr.evaluation.scoring_protocols import accepted_wrong

SHOWN = ("sare_fuzzy@0.3", "sare_fuzzy@0.5", "text_inclusion")


def read_names(file: Path) -> dict[str, list[str]]:
    """List name -> class names, from JSON (`{list: [name, ...]}` or `[name, ...]`) or text with one name a line."""
    try:
        text = file.read_text(encoding="utf-8")
        body = json.loads(text) if file.suffix == ".json" else [line.strip() for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file} cannot be read as a class list: {error}") from error
    lists = {file.stem: body} if isinstance(body, list) else body
    if not isinstance(lists, dict):
        raise DatasetError(f"{file} is no class list: write {{list: [name, ...]}}")
    found = {str(name): names for name, names in lists.items() if isinstance(names, list) and all(isinstance(n, str) for n in names)}
    if not found:
        raise DatasetError(f"{file} holds no list of names")
    return found


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--protocols", nargs="+", default=list(SHOWN), metavar="PROTOCOL")
    parser.add_argument("--lists", nargs="+", metavar="LIST", help="only these lists of the files")
    args = parser.parse_args(words)
    try:
        chosen = [scoring_protocols.get(name) for name in args.protocols]
        lists = {name: names for file in args.files for name, names in read_names(file).items()}
        if args.lists and (unknown := sorted(set(args.lists) - set(lists))):
            raise ConfigError(f"no list {', '.join(unknown)}; there are {', '.join(sorted(lists))}")
        width = max(len(name) for name in lists)
        sys.stdout.write(f"share of ordered wrong pairs accepted: {', '.join(map(str, chosen))}\n")
        for name in args.lists or lists:
            shares = [f"{accepted_wrong(lists[name], one):.3f}" for one in chosen]
            sys.stdout.write(f"{name:<{width}}  {len(lists[name]):>4} classes  {'  '.join(shares)}\n")
    except FgvrError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, ConfigError) else 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
