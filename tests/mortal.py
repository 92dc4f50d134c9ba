"""Fake models for tests of workers: an encoder that kills its process, and files that differ from one process to another."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fgvr.errors import ModelLoadError
from fgvr.runtime.loaders.fake import FakeEncoder, FakeLoader


class MortalEncoder(FakeEncoder):
    """Dies in the middle of its work as often as the file FGVR_DEATHS says."""

    calls = 0

    def encode(self, images: Sequence[Any]) -> np.ndarray:
        type(self).calls += 1
        deaths = Path(os.environ.get("FGVR_DEATHS", "/nowhere"))
        if type(self).calls > 2 and deaths.exists() and (left := int(deaths.read_text() or 0)):
            deaths.write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(images)


class MortalLoader(FakeLoader):
    def __init__(self, **hooks: Any) -> None:
        super().__init__(**hooks)
        self.kinds["encoder"] = MortalEncoder

    def fingerprint(self, spec: Any) -> str:
        if spec.source == "elsewhere" and "FGVR_OTHER_FILES" not in os.environ:
            raise ModelLoadError("elsewhere is not on this machine")
        return "mortal" + os.environ.get("FGVR_OTHER_FILES", "")
