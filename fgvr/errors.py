"""Every error a user can meet, each with its cure in the message.

FgvrError                      exit code 3 from the command line
├── ConfigError                exit code 2: a wrong mode, group, key or value; lists the valid ones
├── DatasetError               missing or empty folder, class without images, unreadable manifest
│   └── ImageError             one image that cannot be decoded; names the file
├── LeakError                  a test image that helped to build the base; lists them (`.offenders`)
├── KnowledgeError             a base that is absent, of another schema, or of other models
├── StoreError                 a cache or journal that cannot be read or written
├── ModelLoadError             files missing or broken; says which, where looked for, how to get them
├── OutOfBudget                can never fit the budget; carries the plan (`.plan`)
├── WouldDeadlock              a nested lease that would wait for others while holding
├── LeaseTimeout               waited longer than `runtime.lease_timeout`
├── RuntimeConflict            a living pool was asked to change device, allocator or dtype
├── UnreadableReply            an MLLM answer that is none of the candidates
└── RemoteError                the other side of `models=remote` failed
"""

import logging
import traceback
from collections.abc import Iterator, Sequence
from typing import Any


class FgvrError(Exception):
    """Root of all errors of this package."""


class ConfigError(FgvrError):
    """A wrong mode, group, key or value."""


class DatasetError(FgvrError):
    """A dataset that is missing, empty or inconsistent."""


class ImageError(DatasetError):
    """One image that cannot be decoded."""


class LeakError(FgvrError):
    """Test images that helped to build the knowledge base."""

    def __init__(self, message: str, offenders: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.offenders = tuple(offenders)  # data.leaks.Overlap, all of them; the message names some


class KnowledgeError(FgvrError):
    """A knowledge base that is absent, incomplete, of another schema or of other models."""


class StoreError(FgvrError):
    """A cache or journal that cannot be read or written."""


class ModelLoadError(FgvrError):
    """Model files that are missing or broken."""


class OutOfBudget(FgvrError):
    """What is asked for can never fit; nothing was evicted."""

    def __init__(self, message: str, plan: Any = None) -> None:
        super().__init__(message)
        self.plan = plan  # types.MemoryPlan, where there is one


class WouldDeadlock(FgvrError):
    """A nested lease would have to wait for others' leases."""


class LeaseTimeout(FgvrError):
    """No capacity within the lease timeout."""


class RuntimeConflict(FgvrError):
    """A living pool cannot change its device, allocator or dtype; a model that was written to, or has no plain bytes, cannot be moved."""


class UnreadableReply(FgvrError):
    """An answer that is none of the candidates."""


class RemoteError(FgvrError):
    """A remote engine failed or lacks a capability."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status  # the HTTP status it answered with; None: it did not answer


def causes(error: BaseException | None, *, meanwhile: bool = True) -> Iterator[BaseException]:
    """The error, what it was raised from (`meanwhile`: or what was being handled when it was raised), and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (error.__context__ if meanwhile else None)


def log_failure(log: logging.Logger, message: str, *args: object) -> None:
    """As `log.exception`, with the traceback as text.

    A handler may keep its records (Sentry, pytest, a notebook's list); one that holds the exception holds its frames, and with them a
    model that was on its way out.
    """
    log.error("%s\n%s", message % args, traceback.format_exc().rstrip(), stacklevel=2)
