"""Nothing is half loaded: the family of a folder before memory is taken, and every tensor of the model.

Imports no tensor library at import.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgvr.errors import ModelLoadError

if TYPE_CHECKING:
    import torch

_NAMED = 3  # tensors that a message names; the rest is counted


def family(config: Mapping[str, Any]) -> str:
    """What a config.json says it is, e.g. `Qwen2_5_VLForConditionalGeneration (qwen2_5_vl)`."""
    classes = config.get("architectures")
    named = ", ".join(map(str, classes)) if isinstance(classes, list) and classes else "an unnamed architecture"
    return f"{named} ({config.get('model_type', 'no model_type')})"


def require_family(folder: Path, config: Any, model_type: str, used: str, cure: str) -> None:
    """Raises ModelLoadError when the folder holds another kind of model than `used`, the class that would load it."""
    if not isinstance(config, Mapping):
        raise ModelLoadError(f"{folder / 'config.json'} is no configuration of a model (a JSON object); get the folder again")
    classes = config.get("architectures")
    if config.get("model_type") != model_type or (classes and used not in classes):
        raise ModelLoadError(f"{folder} holds {family(config)}, and is loaded as {used} ({model_type}) here, which would not fit.\n{cure}")


def refuse_incomplete(folder: Path, used: str, **faults: Iterable[Any]) -> None:
    """Raises ModelLoadError that names the tensors that are missing, unexpected or mismatched: the first few, and how many."""
    found = {kind: sorted(str(fault[0] if isinstance(fault, tuple) else fault) for fault in listed) for kind, listed in faults.items()}
    words = [f"{len(names):,} {kind} ({_some(names)})" for kind, names in found.items() if names]
    if words:
        raise ModelLoadError(
            f"{folder}: its tensors are not those of {used}: {'; '.join(words)}.\nIts weights and config.json do not belong together, "
            "or files were left out: get the folder again"
        )


def fill(module: torch.nn.Module, state: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Give a module on the meta device its tensors, all of them or none. Raises ModelLoadError."""
    expected = module.state_dict()
    wrong = [name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape]
    missing, unexpected = expected.keys() - state.keys(), state.keys() - expected.keys()
    refuse_incomplete(folder, type(module).__name__, missing=missing, unexpected=unexpected, mismatched=wrong)
    module.load_state_dict(dict(state), strict=True, assign=True)


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
