"""`/api/v1/memory` and `/api/v1/models`: figures and levers of the pool. Knows nothing of what the models are used for."""

from __future__ import annotations

import asyncio
import math
from dataclasses import asdict, replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel

from fgvr.errors import OutOfBudget, RuntimeConflict
from fgvr.runtime import status_records
from fgvr.runtime.monitor import watch
from fgvr.runtime.policy import choose
from fgvr.runtime.pool import ModelPool
from fgvr.runtime.pressure import idle_models
from fgvr.server.auth import Shown, holds_token, may_change, may_read
from fgvr.server.bodies import JsonRoute
from fgvr.server.http_errors import HttpError, plan_record
from fgvr.server.schemas import CleanupRequest, codes
from fgvr.utils.text import format_bytes

router = APIRouter(prefix="/api/v1", route_class=JsonRoute, tags=["memory"])
READ, CHANGE = [Depends(may_read)], [Depends(may_change)]
Key = Annotated[str, Path(description="key (role-hash8) or role: mllm, encoder, joint", examples=["mllm"], max_length=80)]
LARGEST_GB = 1 << 20


class Success(BaseModel):
    """Every answer of `/api/v1`."""

    status: str = "success"
    data: Any


def success(data: Any) -> Success:
    return Success(data=data)


def pool_of(request: Request) -> ModelPool:
    return request.app.state.pool


_FIGURES = codes(401)


@router.get("/memory/stats", dependencies=READ, responses=_FIGURES)
def stats(request: Request) -> Success:
    """How much of the budget is in use; bytes, and the same as text."""
    pool = pool_of(request)
    return success(asdict(status_records.stats(pool, watch(pool))))


@router.get("/memory/pressure", dependencies=READ, responses=_FIGURES)
def pressure(request: Request) -> Success:
    """Whether memory is short, how much, and whom to drop, in order."""
    return success(asdict(status_records.pressure(watch(pool_of(request)))))


@router.get("/memory/models", dependencies=READ, responses=_FIGURES)
def models(request: Request) -> Success:
    """Each model: state, tier, bytes, leases, hits, loads, last use, pin."""
    pool = pool_of(request)
    return success([asdict(row) for row in status_records.models(pool, list(request.app.state.specs.values()))])


@router.get("/memory/system", dependencies=READ, responses=_FIGURES)
def system(request: Request, given: Shown) -> Success:
    """Main memory, swap, control group, devices, other processes of fgvr: with a token their command lines, else their names."""
    found = status_records.system(pool_of(request).device)
    if not holds_token(request, given):
        found = replace(found, processes=tuple(replace(p, command=p.name) for p in found.processes))
    return success(asdict(found))


@router.get("/memory/cache-stats", dependencies=READ, responses=_FIGURES)
@router.get("/query/model-cache-stats", dependencies=READ, responses=_FIGURES)
def cache_stats(request: Request) -> Success:
    """The pool as a cache: hits, misses, hit rate, evictions, seconds spent on loading again."""
    return success(asdict(request.app.state.metrics.cache_stats()))


@router.post("/memory/cleanup", dependencies=CHANGE, responses=codes(400, 401, 404, 409, 413))
def cleanup(request: Request, wish: CleanupRequest | None = None) -> Success:
    """Drops idle models and empties caches. With `models` these, and 409 if one is in use; with `target_bytes` until no more is in use."""
    pool, wish = pool_of(request), wish or CleanupRequest(models=None, target_bytes=None)
    if wish.models is not None and wish.target_bytes is not None:
        raise HttpError(400, "give models or target_bytes, not both", param="target_bytes", code="invalid_parameter")
    before = pool.status()
    if wish.models is not None:
        keys = [known(request, name) for name in wish.models]
        released = sum(pool.evict(key) for key in dict.fromkeys(keys))
        pool.device.empty_cache()
    elif wish.target_bytes is not None:
        released = _until(pool, wish.target_bytes)
    else:
        released = pool.cleanup()
    after = pool.status()
    there = {m.key for m in after if m.here}
    dropped = [m.key for m in before if m.here and m.key not in there]
    return success(
        {
            "released_bytes": released,
            "formatted_released": format_bytes(released),
            "dropped": dropped,
            "used": after.used,
            "limit": after.budget,
        }
    )


def _until(pool: ModelPool, target: int) -> int:
    """By the pool's policy, one after the other."""
    released = 0
    status = pool.status()
    for key in choose(pool.settings.policy, idle_models(status.models), max(0, status.used - target)):
        try:
            released += pool.evict(key)
        except RuntimeConflict:  # leased since we looked: the next one may do
            continue
    pool.device.empty_cache()
    return released


@router.post("/memory/limit", dependencies=CHANGE, responses=codes(400, 401, 409))
def limit(
    request: Request,
    limit_gb: Annotated[float, Query(gt=0, le=LARGEST_GB, allow_inf_nan=False, description="the budget in GiB", examples=[18])],
) -> Success:
    """Sets the budget, live: idle models go until it holds. 409 with the plan when what is leased, pinned or
    needed by requests that are being served is more."""
    pool = pool_of(request)
    if not math.isfinite(limit_gb) or (nbytes := round(limit_gb * 2**30)) <= 1:
        raise HttpError(400, "limit_gb: too small to be meant", param="limit_gb", code="invalid_parameter")
    for role in request.app.state.engine.busy_roles():  # also what waits for its batch, and holds no lease at this moment
        plan = replace(pool.plan(role), budget=nbytes)
        if not plan.fits:
            message = f"requests for {role} are being served and need {format_bytes(plan.needed)}\n{plan}"
            raise HttpError(409, message, param="limit_gb", code="below_what_is_in_use", plan=plan_record(plan))
    try:
        pool.set_budget(nbytes)
    except OutOfBudget as refused:
        raise HttpError(409, str(refused), param="limit_gb", code="below_what_is_leased", plan=plan_record(refused.plan)) from None
    status = pool.status()
    return success({"memory_limit": status.budget, "formatted_limit": format_bytes(status.budget), "used": status.used})


_LEVER = codes(401, 404, 409)


def known(request: Request, name: str) -> str:
    """A key this server lends by, from a key or role. Raises HttpError (404)."""
    for role, spec in request.app.state.specs.items():
        if name in (role, spec.key):
            return spec.key
    raise HttpError(404, f"no model {name[:80]!r}", param="key", code="model_not_found")


def _row(request: Request, key: str) -> Success:
    pool = pool_of(request)
    (row,) = status_records.models(pool, [spec for spec in request.app.state.specs.values() if spec.key == key])
    return success(asdict(row))


@router.post("/models/{key}/load", dependencies=CHANGE, responses=codes(401, 404, 503, 507))
async def load(request: Request, key: Key) -> Success:
    """Brings it in, if need be in others' place."""
    pool, name = pool_of(request), known(request, key)

    def borrow() -> None:
        with pool.lease(name, work=0, timeout=request.app.state.settings.deadline):
            pass

    await asyncio.to_thread(borrow)
    return await asyncio.to_thread(_row, request, name)


@router.post("/models/{key}/evict", dependencies=CHANGE, responses=_LEVER)
def evict(request: Request, key: Key) -> Success:
    """Drops it; 409 while it is leased or pinned."""
    name = known(request, key)
    released = pool_of(request).evict(name)
    return success({**_row(request, name).data, "released_bytes": released})


@router.post("/models/{key}/pin", dependencies=CHANGE, responses=_LEVER)
def pin(request: Request, key: Key) -> Success:
    """Never evicted under pressure from now on."""
    name = known(request, key)
    pool_of(request).pin(name)
    return _row(request, name)


@router.post("/models/{key}/unpin", dependencies=CHANGE, responses=_LEVER)
def unpin(request: Request, key: Key) -> Success:
    """Takes every pin on it back."""
    name = known(request, key)
    pool_of(request).unpin(name)
    return _row(request, name)


@router.post("/models/{key}/reset", dependencies=CHANGE, responses=_LEVER)
def reset(request: Request, key: Key) -> Success:
    """Forgets a failed load and batch sizes learned when memory ran out; 409 while it is leased."""
    name = known(request, key)
    pool = pool_of(request)
    if any(m.leases for m in pool.status() if m.key == name):
        raise RuntimeConflict(f"{name} is leased and cannot be reset now")
    pool.reset(name)
    return _row(request, name)
