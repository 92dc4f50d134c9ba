"""No model: a configuration without an MLLM or a joint encoder (`models/mllm=none`). Whoever asks it gets an error with the cure."""

from __future__ import annotations

from typing import NoReturn

from fgvr.errors import ModelLoadError
from fgvr.runtime.devices.base import Device
from fgvr.runtime.loaders.base import Loader
from fgvr.types import ModelSpec


class NoneLoader(Loader):
    """It weighs nothing and answers nothing."""

    def check(self, spec: ModelSpec) -> None:
        raise ModelLoadError(
            f"this configuration has no {spec.role} (models/{spec.role}=none): choose one, such as models/{spec.role}=tiny"
        )

    def estimate(self, spec: ModelSpec) -> int:
        return 0

    def fingerprint(self, spec: ModelSpec) -> str:
        return "none"

    def load(self, spec: ModelSpec, device: Device) -> NoReturn:
        self.check(spec)
        raise AssertionError("unreachable: a model that is not there has been checked")


LOADER = NoneLoader()
