"""The disk tier of the CPU: a model that takes turns leaves its weights, as it computes with them, in one flat scratch file.

Bringing it back maps that file and points every parameter and buffer into it: no tokenizer, skeleton, reading or cast of types, and no
second copy in main memory, since the pages are the system's own cache. The weights are only read; what is written to them by mistake
goes to private pages, and such a model is not parked again. The file has no name: it goes with its last reference, or with the process.
"""

from __future__ import annotations

import logging
import mmap
import shutil
import sys
import tempfile
import weakref
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

import psutil

from fgvr.errors import RuntimeConflict
from fgvr.runtime.loaders.flat_layout import layout, plain_bytes, refuse_written
from fgvr.utils.text import format_bytes

if TYPE_CHECKING:
    import torch

    from fgvr.runtime.devices.base import Device

log = logging.getLogger(__name__)


class FlatFile:
    """loaders.base.Movable for the CPU. One thread at a time, never during a forward pass: the pool sees to it."""

    host_nbytes = host_needed = 0  # what is in the file is charged to nobody's memory

    def __init__(self, module: torch.nn.Module, folder: Path) -> None:
        """Raises RuntimeConflict for tensors without plain bytes."""
        self._module, self._folder = module, folder
        self._slots, regions, self._length = layout(module)
        # What is between the tensors, under 128 bytes each, is no weight: the size is the same before and after, as estimated.
        self.nbytes = sum(region.end - region.begin for region in regions)
        self._file: IO[bytes] | None = None
        self._left: list[weakref.ref[torch.UntypedStorage]] = []  # what lay under the tensors when they last left
        self._note_versions()
        self.parked, self.cached = False, True

    @property
    def kept(self) -> int:
        """Bytes of weights that have left and that somebody still holds a tensor of."""
        return sum(storage.nbytes() for reference in self._left if (storage := reference()) is not None)

    def prepare(self) -> int:
        return 0

    def park(self) -> int:
        """Bytes freed: `nbytes` less `kept`. Raises RuntimeConflict for written weights or a full disk, or OSError."""
        if self.parked:
            return 0
        refuse_written(self._module, self._slots, self._versions)
        if self._file is None:
            self._file = self._written()
        storages = {slot.tensor.untyped_storage().data_ptr(): weakref.ref(slot.tensor.untyped_storage()) for slot in self._slots}
        self._left = [*(r for r in self._left if r() is not None), *storages.values()]
        try:
            self._empty()
        except BaseException:  # interrupted: some would be there and some not
            self._empty()
            raise
        finally:
            self.parked = True
        return max(0, self.nbytes - self.kept)

    def restore(self, device: Device) -> int:
        """Bytes mapped; they come into memory with the first forward pass."""
        import torch

        if not self.parked or self._file is None:
            return 0
        view = mmap.mmap(self._file.fileno(), self._length, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        buffer = torch.frombuffer(view, dtype=torch.uint8)  # the mapping ends with its last tensor
        try:
            for slot in self._slots:
                slot.tensor.data = slot.view(buffer)
        except BaseException:
            self._empty()
            raise
        self._note_versions()
        self.parked, self.cached = False, False
        return self.nbytes

    def _empty(self) -> None:
        import torch

        nothing = {slot.tensor.dtype: torch.empty(0, dtype=slot.tensor.dtype) for slot in self._slots}
        for slot in self._slots:
            slot.tensor.data = nothing[slot.tensor.dtype]

    def _written(self) -> IO[bytes]:
        free = shutil.disk_usage(self._folder).free
        if free < 2 * self.nbytes:
            raise RuntimeConflict(f"{self._folder} has {format_bytes(free)} free, too little beside {format_bytes(self.nbytes)} of weights")
        file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (lives as long as this model)
        try:
            self._slots, regions, self._length = layout(self._module)
            for region in regions:
                file.seek(region.offset)
                file.write(plain_bytes(region).numpy().data)
            file.truncate(self._length)
            file.flush()
        except BaseException:
            file.close()
            raise
        weakref.finalize(self, file.close)
        return file

    def _note_versions(self) -> None:
        self._versions = [slot.tensor._version for slot in self._slots]


@lru_cache
def usable(folder: Path) -> bool:
    """Whether a scratch file can be made there, and on a disk: one in memory would save nothing. Private mappings are POSIX."""
    if sys.platform == "win32":
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        log.warning("no scratch files in %s (%s): models that take turns are loaded again each time", folder, error)
        return False
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    place = next((p for p in (folder.resolve(), *folder.resolve().parents) if p in mounts), None)
    return place is None or mounts[place] not in ("tmpfs", "ramfs")
