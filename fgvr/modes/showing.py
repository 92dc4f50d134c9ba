"""Results on stdout: for people, or one JSON line. Each mode registers how its own records look."""

import json
import sys
from functools import singledispatch
from typing import Any

from fgvr.errors import FgvrError


@singledispatch
def to_json(result: Any) -> Any:
    """What one JSON line has to say."""
    raise FgvrError(f"nothing to show for {type(result).__name__}")


@singledispatch
def to_text(result: Any) -> list[Any]:
    """Tables and lines, for rich's console."""
    raise FgvrError(f"nothing to show for {type(result).__name__}")


@singledispatch
def complaint(result: Any) -> str:
    """What makes the command fail although it has a result; "" where nothing does."""
    return ""


def show(result: Any, *, as_json: bool) -> None:
    """The result on stdout. Raises FgvrError afterwards, where the result is that something is to be mended."""
    if result is None:  # a server has said all it had to say
        return
    if as_json:
        text = json.dumps(to_json(result), ensure_ascii=False, default=str)
        sys.stdout.write(text.encode("utf-8", "backslashreplace").decode() + "\n")
    else:
        from fgvr.utils.logging import stdout_console

        console = stdout_console(width=120)
        for part in to_text(result):
            console.print(part)
    if wrong := complaint(result):
        raise FgvrError(wrong)
