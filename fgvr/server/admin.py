"""`/api/v1/memory` and `/api/v1/models`: figures and controls of the pool. Knows nothing of what the models are used for."""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request

from fgvr.errors import OutOfBudget, RuntimeConflict
from fgvr.runtime import status_records
from fgvr.runtime.monitor import tightest
from fgvr.runtime.policy import choose
from fgvr.runtime.pool import ModelPool
from fgvr.runtime.pressure import idle_models
from fgvr.server.auth import CHANGE, READ
from fgvr.server.engine import InferenceEngine, engine_of
from fgvr.server.http_errors import HttpError, bad_request, plan_record
from fgvr.server.schemas import CleanupRequest, Success, codes
from fgvr.types import MemoryPlan
from fgvr.utils.text import format_bytes

router = APIRouter(prefix="/api/v1", tags=["memory"])
Key = Annotated[str, Path(description="key (role-hash8) or role: mllm, encoder, joint", examples=["mllm"], max_length=80)]
Gibibytes = Annotated[float, Query(gt=0, le=1 << 20, allow_inf_nan=False, description="the budget in GiB", examples=[18])]
_FIGURES = codes(401)


def pool_of(request: Request) -> ModelPool:
    return engine_of(request).pool


@router.get("/memory/stats", dependencies=READ, responses=_FIGURES)
def stats(request: Request) -> Success:
    """How much of the budget is in use; bytes, and the same as text."""
    pool = pool_of(request)
    return Success(data=status_records.stats(pool, tightest(pool)))


@router.get("/memory/pressure", dependencies=READ, responses=_FIGURES)
def pressure(request: Request) -> Success:
    """Whether memory is short, how much, and whom to drop, in order."""
    return Success(data=tightest(pool_of(request)).pressure())


@router.get("/memory/models", dependencies=READ, responses=_FIGURES)
def models(request: Request) -> Success:
    """Each model: state, tier, bytes, leases, hits, loads, last use, pin."""
    return Success(data=status_records.models(pool_of(request), list(engine_of(request).specs.values())))


@router.get("/memory/system", dependencies=READ, responses=_FIGURES)
def system(request: Request) -> Success:
    """Main memory, swap, control group, devices."""
    return Success(data=status_records.system(pool_of(request)))


@router.get("/memory/cache-stats", dependencies=READ, responses=_FIGURES)
@router.get("/query/model-cache-stats", dependencies=READ, responses=_FIGURES)
def cache_stats(request: Request) -> Success:
    """The pool as a cache: hits, misses, hit rate, evictions, seconds spent on loading again."""
    return Success(data=engine_of(request).metrics.cache_stats())


@router.post("/memory/cleanup", dependencies=CHANGE, responses=codes(400, 401, 404, 409, 413))
def cleanup(request: Request, wish: CleanupRequest | None = None) -> Success:
    """Drops idle models and empties caches. With `models` these, and 409 if one is in use; with `target_bytes` until no more is in use."""
    pool, wish = pool_of(request), wish or CleanupRequest(models=None, target_bytes=None)
    if wish.models is not None and wish.target_bytes is not None:
        raise bad_request("give models or target_bytes, not both", "target_bytes")
    before = pool.status()
    if wish.models is not None:
        keys = [_key(request, name) for name in wish.models]
        released = sum(pool.evict(key) for key in dict.fromkeys(keys))
        _empty_caches(pool)
    elif wish.target_bytes is not None:
        released = _evict_until(pool, wish.target_bytes)
    else:
        released = pool.cleanup()
    after = pool.status()
    left = {m.key for m in after if m.here}
    data = {"released_bytes": released, "formatted_released": format_bytes(released), "used": after.used, "limit": after.budget}
    return Success(data=data | {"dropped": [m.key for m in before if m.here and m.key not in left]})


def _evict_until(pool: ModelPool, target: int) -> int:
    """By the pool's policy, one after the other."""
    released = 0
    status = pool.status()
    for key in choose(pool.settings.policy, idle_models(status.models), max(0, status.used - target)):
        try:
            released += pool.evict(key)
        except RuntimeConflict:  # leased since we looked: the next one may do
            continue
    _empty_caches(pool)
    return released


def _empty_caches(pool: ModelPool) -> None:
    for member in pool.members:
        member.device.empty_cache()


@router.post("/memory/limit", dependencies=CHANGE, responses=codes(400, 401, 409))
def limit(request: Request, limit_gb: Gibibytes) -> Success:
    """Sets the budget of each device, live: idle models go until it holds. 409 with the plan when what is leased, pinned or
    needed by requests that are being served is more."""

    def refusal(message: str, why: str, plan: MemoryPlan | None) -> HttpError:
        return HttpError(409, message, param="limit_gb", code=f"below_what_is_{why}", plan=plan_record(plan))

    pool, nbytes = pool_of(request), round(limit_gb * 2**30)
    if nbytes <= 1:
        raise bad_request("limit_gb: too small to be meant", "limit_gb")
    for role in engine_of(request).busy_roles():  # also what waits for its batch, and holds no lease at this moment
        plan = replace(pool.plan(role), budget=nbytes)
        if not plan.fits:
            raise refusal(f"requests for {role} are being served and need {format_bytes(plan.needed)}\n{plan}", "in_use", plan)
    try:
        pool.set_budget(nbytes)
    except OutOfBudget as error:
        raise refusal(str(error), "leased", error.plan) from None
    status = pool.status()
    return Success(data={"memory_limit": status.budget, "formatted_limit": format_bytes(status.budget), "used": status.used})


def _load(engine: InferenceEngine, key: str) -> None:
    for member in engine.pool.members:
        with member.lease(key, work=0, timeout=engine.settings.deadline):
            pass


def _reset(engine: InferenceEngine, key: str) -> None:
    if any(m.leases for m in engine.pool.status() if m.key == key):
        raise RuntimeConflict(f"{key} is leased and cannot be reset now")
    engine.pool.reset(key)


def _add_control(name: str, act: Callable[[InferenceEngine, str], int | None], about: str, *refusals: int) -> None:
    def pull(request: Request, key: Key) -> Success:
        engine, found = engine_of(request), _key(request, key)
        released = act(engine, found)
        row, *_ = status_records.models(engine.pool, [spec for spec in engine.specs.values() if spec.key == found])
        return Success(data=row | ({} if released is None else {"released_bytes": released}))

    path = f"/models/{{key}}/{name}"
    router.add_api_route(path, pull, methods=["POST"], name=name, description=about, dependencies=CHANGE, responses=codes(401, *refusals))


_add_control("load", _load, "Brings it in, on each device, if need be in others' place.", 404, 503, 507)
_add_control("evict", lambda engine, key: engine.pool.evict(key), "Drops it; 409 while it is leased or pinned.", 404, 409)
_add_control("pin", lambda engine, key: engine.pool.pin(key), "Never evicted under pressure from now on.", 404, 409)
_add_control("unpin", lambda engine, key: engine.pool.unpin(key), "Takes every pin on it back.", 404, 409)
_add_control("reset", _reset, "Forgets a failed load and batch sizes learned when memory ran out; 409 while it is leased.", 404, 409)


def _key(request: Request, name: str) -> str:
    """A key this server lends by, from a key or role. Raises HttpError (404)."""
    for role, spec in engine_of(request).specs.items():
        if name in (role, spec.key):
            return spec.key
    raise HttpError(404, f"no model {name[:80]!r}", param="key", code="model_not_found")
