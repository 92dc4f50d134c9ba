"""The command that builds the knowledge base a configuration means, for errors to name: its own words, as far as a base depends on them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

_OF_A_BASE = ("dataset", "models", "slow", "knowledge", "paths", "server", "store", "runtime", "experiment")  # first parts of keys


def building_command(words: Sequence[str], mode: str) -> str:
    """For a shell; its words make a configuration whose base has the same key and lies in the same place."""
    if mode == "discover":
        return "the same command without knowledge.build=never and knowledge.path"
    kept = [word for word in words if re.split(r"[.=/@]", word.lstrip("+~"))[0] in _OF_A_BASE and word != "knowledge.build=never"]
    return shlex.join(["python", "discovering.py", "mode=build_knowledge_base", *kept])
