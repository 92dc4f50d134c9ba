"""Reading rows that other programs wrote: every wrong value is named, with what to write instead."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgvr.errors import StoreError


class WrongRow(Exception):
    """What is wrong with one row."""


@dataclass(frozen=True, slots=True)
class Row:
    place: str  # "line 7 (row 3)"
    body: Any


def rows_of(text: str, key: str, values: Sequence[Any], start: int = 0) -> list[Row]:
    """The values of the first list of that name after `start`, each with the line it begins in."""
    decoder, at = json.JSONDecoder(), text.index("[", text.index(f'"{key}"', start)) + 1
    rows: list[Row] = []
    for number, value in enumerate(values, 1):
        while text[at] in " \t\r\n,":
            at += 1
        rows.append(Row(f"line {text.count(chr(10), 0, at) + 1} (row {number})", value))
        _, at = decoder.raw_decode(text, at)
    return rows


def required(row: Mapping[str, Any], key: str) -> Any:
    if key not in row:
        raise WrongRow(f"{key} is missing")
    return row[key]


def class_name(row: Mapping[str, Any], key: str, what: str = "a class name in quotes") -> str:
    if not isinstance(value := required(row, key), str) or not value.strip():
        raise WrongRow(f"{key} is {shown(value)}; write {what}")
    return value


def said_name(row: Mapping[str, Any], key: str) -> str:
    """A name, or "" for null: nothing was said."""
    return "" if required(row, key) in (None, "") else class_name(row, key)


def share(row: Mapping[str, Any], key: str, usual: float | None = None) -> float:
    """A number from 0 to 1; null, or absent where there is a usual one, is 0."""
    value = required(row, key) if usual is None else row.get(key)
    if value is None:
        return usual or 0.0
    if not is_number(value) or not -1e-6 <= value <= 1 + 1e-6:
        raise WrongRow(f"{key} is {shown(value)}; write a number from 0 to 1, such as 0.98")
    return float(value)


def part(row: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object, empty for null."""
    if not isinstance(value := required(row, key) or {}, dict):
        raise WrongRow(f"{key} is {shown(value)}, not an object")
    return value


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror or error})") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise StoreError(f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8") from error
    if not text.strip():
        raise StoreError(f"{path} is empty")
    return text


def read_json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise StoreError(f"{place} cannot be read as JSON: {error}; rows of one line each belong in a file named .jsonl") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets within brackets
        raise StoreError(f"{place} cannot be read as JSON: {error}") from error
