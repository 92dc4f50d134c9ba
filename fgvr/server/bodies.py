"""JSON bodies, judged before they become objects: few values, few keys, no key twice, short lists.

Validation costs time and memory for each value. A body of a few MiB can hold millions, and while they are validated nobody is answered.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from fgvr.server.background import in_thread
from fgvr.server.http_errors import bad_request
from fgvr.server.settings import Settings

_LARGE = 1 << 16
_CHUNK = 1 << 20
_KEYS = 64  # of one object
_MARKS = tuple(b",[{")  # each begins a value
_MARKS_PER_ITEM = 32
_LISTS = {"messages": "max_messages"} | dict.fromkeys(("input", "continuations", "images", "texts", "names", "models"), "max_items")


async def check_json(data: bytes, settings: Settings) -> None:
    """Raises HttpError (400) for what is no JSON or has more in it than any request needs. A large body is read in a thread."""
    await in_thread(_check, data, settings) if len(data) > _LARGE else _check(data, settings)


def _check(data: bytes, settings: Settings) -> None:
    most = settings.max_prompt_chars + _MARKS_PER_ITEM * (settings.max_messages + settings.max_items)
    if _has_more_marks(data, most):
        raise bad_request(f"the body has too many values and commas: at most {most:,} in one request", code="too_many_values")
    try:
        found = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise bad_request(f"the body is no JSON: byte {error.start} is no UTF-8", code="invalid_json") from None
    except json.JSONDecodeError as error:
        message = f"the body is no JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        raise bad_request(message, code="invalid_json") from None
    except RecursionError:
        raise bad_request("the body is nested too deeply", code="invalid_json") from None
    except ValueError:  # an integer of thousands of digits
        raise bad_request("the body has a number with too many digits", code="invalid_json") from None
    for name, limit in _LISTS.items():
        value = found.get(name) if isinstance(found, dict) else None
        if isinstance(value, list) and len(value) > getattr(settings, limit):
            raise bad_request(f"{name}: {len(value):,} items, at most {getattr(settings, limit):,} (server.{limit})", name)


def _has_more_marks(data: bytes, most: int) -> bool:
    """Counted in the raw bytes, texts included: quick, and never too few."""
    values, seen = np.frombuffer(data, np.uint8), 0
    for start in range(0, len(values), _CHUNK):
        chunk = values[start : start + _CHUNK]
        seen += sum(int(np.count_nonzero(chunk == mark)) for mark in _MARKS)
        if seen > most:
            return True
    return False


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Readers of JSON differ in which of two equal keys they take; so neither is."""
    if len(pairs) > _KEYS:
        raise bad_request(f"an object of the body has {len(pairs):,} keys, at most {_KEYS}", code="too_many_values")
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1).encode("utf-8", "replace").decode()[:200]
        raise bad_request(f"{twice!r} stands twice in one object", twice, "invalid_json")
    return found
