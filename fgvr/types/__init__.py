"""Every noun of the project, as frozen records. No behaviour beyond derived properties and how a record prints itself.

Arrays are numpy float32. Class identity is always the class *id*, a string; names are for people.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgvr.types.memory import ROLES, DeviceUse, Finding, MemoryPlan, ModelSpec, ModelStatus, PlanPart
    from fgvr.types.recognition import (
        UNKNOWN,
        Abstention,
        Asked,
        Candidate,
        Category,
        Choice,
        Cost,
        Decision,
        FastResult,
        Figures,
        History,
        Picture,
        Prediction,
        Reply,
        Sample,
        Scores,
        SlowResult,
    )
    from fgvr.types.results import Experience, Manifest, Report

__all__ = [
    "ROLES", "UNKNOWN", "Abstention", "Asked", "Candidate", "Category", "Choice", "Cost", "Decision", "DeviceUse", "Experience",
    "FastResult", "Figures", "Finding", "History", "Manifest", "MemoryPlan", "ModelSpec", "ModelStatus", "Picture", "PlanPart",
    "Prediction", "Reply", "Report", "Sample", "Scores", "SlowResult",
]  # fmt: skip

_MODULES = ("memory", "recognition", "results")


def __getattr__(name: str) -> Any:
    """A record, from its module when it is first asked for: a plan needs those of memory alone."""
    if name in __all__:
        for module in (import_module(f"{__name__}.{module}") for module in _MODULES):
            if hasattr(module, name):
                globals()[name] = getattr(module, name)
                return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
