"""Nothing is half loaded: the family of a folder before memory is taken, and every tensor of the model.

Imports no tensor library at import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgvr.errors import ModelLoadError
from fgvr.runtime.loaders.files import first

if TYPE_CHECKING:
    import torch


def family(config: Mapping[str, Any]) -> str:
    """What a config.json says it is, e.g. `Qwen2_5_VLForConditionalGeneration (qwen2_5_vl)`."""
    classes = config.get("architectures")
    named = ", ".join(map(str, classes)) if isinstance(classes, list) and classes else "an unnamed architecture"
    return f"{named} ({config.get('model_type', 'no model_type')})"


def refuse_incomplete(folder: Path, used: str, **faults: Iterable[Any]) -> None:
    """Raises ModelLoadError that names the tensors that are missing, unexpected or mismatched: the first few, and how many."""
    found = {kind: sorted(str(fault[0] if isinstance(fault, tuple) else fault) for fault in listed) for kind, listed in faults.items()}
    words = [f"{len(names):,} {kind} ({first(names)})" for kind, names in found.items() if names]
    if words:
        raise ModelLoadError(
            f"{folder}: its tensors are not those of {used}: {'; '.join(words)}.\nIts weights and config.json do not belong together, "
            "or files were left out: get the folder again"
        )


def assemble(
    skeleton: Callable[[], torch.nn.Module],
    folder: Path,
    shards: Iterable[Path],
    dtype: str,
    **computed: Callable[[torch.Tensor], torch.Tensor],
) -> torch.nn.Module:
    """A module with the tensors of its files, all of them or none: built on the meta device, so nothing is initialised or copied.

    Args:
        computed: by the last part of their names, buffers that every file may lack, and how they are made from a buffer of their shape.

    Raises:
        ModelLoadError: files and skeleton do not belong together.
    """
    import torch
    from safetensors.torch import load_file

    from fgvr.runtime.loaders.tensors import torch_dtype

    with torch.device("meta"):
        module = skeleton()
    tensors = {name: tensor for file in shards for name, tensor in load_file(file).items() if name.rpartition(".")[2] not in computed}
    state = {name: tensor.to(torch_dtype(dtype)) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    fill(module, state, folder)
    for name, buffer in list(module.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        if leaf in computed:
            made = computed[leaf](buffer)
            module.get_submodule(owner).register_buffer(
                leaf, made.to(torch_dtype(dtype)) if buffer.is_floating_point() else made, persistent=False
            )
        elif buffer.is_meta:
            raise ModelLoadError(f"{folder}: {name} is in neither the file nor our rules; please report this model")
    return module


def fill(module: torch.nn.Module, state: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Give a module on the meta device its tensors, all of them or none. Raises ModelLoadError."""
    expected = module.state_dict()
    wrong = [name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape]
    missing, unexpected = expected.keys() - state.keys(), state.keys() - expected.keys()
    refuse_incomplete(folder, type(module).__name__, missing=missing, unexpected=unexpected, mismatched=wrong)
    module.load_state_dict(dict(state), strict=True, assign=True)


def causal_mask(like: torch.Tensor) -> torch.Tensor:
    """Of a text tower: no token sees those after it."""
    import torch

    return torch.full(like.shape, float("-inf")).triu_(1)


def positions(like: torch.Tensor) -> torch.Tensor:
    """0, 1, 2, ... along the last axis."""
    import torch

    return torch.arange(like.shape[-1]).expand(like.shape).clone()
