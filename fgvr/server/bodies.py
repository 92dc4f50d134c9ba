"""JSON bodies, judged before they become objects: few values, few keys, no key twice, short lists.

Validation costs time and memory for each value. A body of a few MiB can hold millions, and while they are validated nobody is answered.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from fgvr.server.http_errors import HttpError
from fgvr.server.settings import Settings

_ASIDE = 1 << 16  # bytes; a larger body is parsed in a thread
_CHUNK = 1 << 20
_KEYS = 64  # of one object
_MARKS = tuple(b",[{")  # each begins a value
_MARKS_PER_ITEM = 32
_LISTS = {"messages": "max_messages"} | dict.fromkeys(("input", "continuations", "images", "texts", "names", "models"), "max_items")


class JsonRoute(APIRoute):
    """Parses what its handler takes as JSON by `read_json`, so that FastAPI finds it parsed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            if self.body_field is None or not _is_json(request) or not await request.body():
                return await handle(request)
            parsed = _Parsed(request.scope, request.receive)
            parsed.content = await request.body()
            parsed.found = await read_json(request, request.app.state.settings)
            return await handle(parsed)

        return handler


class _Parsed(Request):
    content: bytes
    found: Any

    async def body(self) -> bytes:
        return self.content

    async def json(self) -> Any:
        return self.found


async def read_json(request: Request, settings: Settings) -> Any:
    """The body. Raises HttpError (400) for what is no JSON or has more in it than any request needs."""
    data = await request.body()
    return await asyncio.to_thread(parse, data, settings) if len(data) > _ASIDE else parse(data, settings)


def parse(data: bytes, settings: Settings) -> Any:
    """As `read_json`."""
    most = settings.max_prompt_chars + _MARKS_PER_ITEM * (settings.max_messages + settings.max_items)
    if _more_marks(data, most):
        raise HttpError(400, f"the body has too many values and commas: at most {most:,} in one request", code="too_many_values")
    try:
        found = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise HttpError(400, f"the body is no JSON: byte {error.start} is no UTF-8", code="invalid_json") from None
    except json.JSONDecodeError as error:
        message = f"the body is no JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        raise HttpError(400, message, code="invalid_json") from None
    except RecursionError:
        raise HttpError(400, "the body is nested too deeply", code="invalid_json") from None
    except ValueError:  # an integer of thousands of digits
        raise HttpError(400, "the body has a number with too many digits", code="invalid_json") from None
    for name, limit in _LISTS.items():
        value = found.get(name) if isinstance(found, dict) else None
        if isinstance(value, list) and len(value) > getattr(settings, limit):
            message = f"{name}: {len(value):,} items, at most {getattr(settings, limit):,} (server.{limit})"
            raise HttpError(400, message, param=name, code="invalid_parameter")
    return found


def _more_marks(data: bytes, most: int) -> bool:
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
        raise HttpError(400, f"an object of the body has {len(pairs):,} keys, at most {_KEYS}", code="too_many_values")
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1).encode("utf-8", "replace").decode()[:200]
        raise HttpError(400, f"{twice!r} stands twice in one object", param=twice, code="invalid_json")
    return found


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
