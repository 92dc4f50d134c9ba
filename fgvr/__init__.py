"""Fine-grained visual recognition without training: look fast, and think slowly only when unsure.

Names are fetched when first used, so `import fgvr` costs nothing: no numpy, torch or hydra until a name needs them.
Type checkers read `__init__.pyi`.
"""

# pyright: reportUnsupportedDunderAll=false

import os
from importlib import import_module
from typing import Any

__version__ = "0.2.0"

__all__ = [
    # functions
    "load_config", "build_knowledge_base", "build_recognizer", "evaluate", "fit", "discover", "shared_pool",
    # records
    "Sample", "Candidate", "FastResult", "Decision", "SlowResult", "Prediction",
    "Experience", "Manifest", "ModelSpec", "ModelStatus", "MemoryPlan", "Report",
    # errors
    "FgvrError", "ConfigError", "DatasetError", "ImageError", "LeakError", "KnowledgeError", "StoreError", "ModelLoadError",
    "OutOfBudget", "WouldDeadlock", "LeaseTimeout", "RuntimeConflict", "UnreadableReply", "RemoteError",
    "__version__",
]  # fmt: skip

# Read when numpy is imported. Its threads wait 2^26 turns (20 ms) of a busy loop for the next matrix product, and ours come rarely: a
# quarter of a sweep's processor time went there. After 2^16 they sleep.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "16")

_HOMES = ("errors", "types", "api")  # cheapest first


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in _HOMES:
            module = import_module(f"fgvr.{home}")
            if hasattr(module, name):
                globals()[name] = getattr(module, name)
                return globals()[name]
    raise AttributeError(f"module 'fgvr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
