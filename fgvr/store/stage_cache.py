"""Results of the stages of a long job, one file each. A stage that is done is read; another is computed and written."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fgvr.utils.files import read_json, short_hash, write_json

log = logging.getLogger(__name__)


class StageCache:
    """`folder/<name>.json` for each stage. A stage is done if its file was made from `inputs` and from the same earlier results."""

    def __init__(self, folder: Path, inputs: Any) -> None:
        """Args: inputs: JSON values on which the first stage depends; a later stage also depends on all earlier results."""
        self._folder, self._inputs = folder, inputs
        self.computed: list[str] = []  # names of the stages that this process has computed

    def __call__(self, name: str, compute: Callable[[], Any]) -> Any:
        """The stage's result, plain JSON values. Stages are called in their order."""
        file, inputs = self._folder / f"{name}.json", short_hash([name, self._inputs])
        found = read_json(file) if file.exists() else {}
        if found.get("of") != inputs:
            write_json(file, {"of": inputs, "result": compute()})
            self.computed.append(name)
            found = read_json(file)  # as a later run will see it
        else:
            log.info("%s is done: %s", name, file)
        self._inputs = [inputs, found["result"]]
        return found["result"]
