"""Everything a server says no with: one exception, one table from our errors to HTTP, one body for each family of addresses."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from fgvr.errors import ConfigError, FgvrError, ImageError, LeaseTimeout, ModelLoadError, OutOfBudget, RuntimeConflict, WouldDeadlock
from fgvr.types import MemoryPlan
from fgvr.utils.failures import log_failure

log = logging.getLogger(__name__)
RETRY = 2  # seconds, where nothing better is known


class HttpError(Exception):
    """An answer that is no success. `param`: the parameter at fault."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry: int | None = None, plan: Any = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry, self.plan = status, message, param, code, retry, plan


_KINDS: tuple[tuple[type[FgvrError], int, str], ...] = (
    (OutOfBudget, 507, "out_of_budget"),
    (RuntimeConflict, 409, "busy"),
    (ImageError, 400, "unreadable_image"),
    (LeaseTimeout, 503, "no_memory_in_time"),
    (WouldDeadlock, 503, "would_deadlock"),
    (ModelLoadError, 503, "model_not_loaded"),
    (ConfigError, 400, "wrong_value"),
)


def to_http_error(error: BaseException) -> HttpError:
    """The HTTP form of an error; a bug of ours is a 500 that says nothing of the inside."""
    if isinstance(error, HttpError):
        return error
    for kind, status, code in _KINDS:
        if isinstance(error, kind):
            plan = plan_record(error.plan) if isinstance(error, OutOfBudget) else None
            return HttpError(status, str(error), code=code, retry=RETRY if status == 503 else None, plan=plan)
    if isinstance(error, FgvrError):
        return HttpError(503, str(error), code="unavailable", retry=RETRY)
    return HttpError(500, "internal error; the server's log has it", code="internal_error")


def plan_record(plan: MemoryPlan | None) -> dict[str, Any] | None:
    """A memory plan as JSON."""
    if plan is None:
        return None
    parts = [{"name": part.name, "bytes": part.bytes, "note": part.note} for part in plan.parts]
    return {"budget": plan.budget, "needed": plan.needed, "fits": plan.fits, "parts": parts, "advice": list(plan.advice), "text": str(plan)}


def answer(path: str, refusal: HttpError) -> JSONResponse:
    """As the address's family writes it: OpenAI's below /v1, ours elsewhere."""
    headers = {"Retry-After": str(refusal.retry)} if refusal.retry is not None else {}
    if refusal.status == 413:
        headers["Connection"] = "close"  # else the rest of the body would be read, if only to forget it
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body(path, refusal), refusal.status, headers)


def body(path: str, refusal: HttpError) -> dict[str, Any]:
    code = refusal.code or _CODES.get(refusal.status, "error")
    if path.startswith("/v1/"):
        kind = "invalid_request_error" if refusal.status < 500 else "server_error"
        error = {"message": refusal.message, "type": kind, "param": refusal.param, "code": code}
        return {"error": error | ({"plan": refusal.plan} if refusal.plan else {})}
    data: dict[str, Any] = {"message": refusal.message, "code": code}
    if refusal.param is not None:
        data["param"] = refusal.param
    if refusal.plan is not None:
        data["plan"] = refusal.plan
    return {"status": "error", "data": data}


_CODES = {
    400: "bad_request",
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    429: "busy",
    504: "timeout",
}


def install(app: FastAPI) -> None:
    """Every way out of a handler that is not an answer."""

    async def refused(request: Request, error: Exception) -> JSONResponse:
        found = to_http_error(error)
        if found.status == 500:
            log_failure(log, "%s %s failed", request.method, request.url.path)
        return answer(request.url.path, found)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return answer(request.url.path, invalid_request(error.errors()))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        found = answer(request.url.path, HttpError(error.status_code, str(error.detail)))
        found.headers.update(error.headers or {})
        return found

    app.add_exception_handler(HttpError, refused)
    app.add_exception_handler(FgvrError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, refused)


def invalid_request(errors: Any) -> HttpError:
    """The first thing that is wrong, in words; never the value itself, which may be a whole image."""
    first = errors[0]
    kind, place = first["type"], [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    if kind == "json_invalid":
        return HttpError(400, f"the body is no JSON: {first.get('ctx', {}).get('error', first['msg'])}", code="invalid_json")
    # Tags of unions stand in brackets (schemas.py); what a client wrote itself is cut and made printable.
    param = ".".join(part for part in place if not part.startswith("(")).encode("utf-8", "replace").decode()[:200] or None
    if kind == "extra_forbidden":
        return HttpError(400, f"{param} is not supported by this server; leave it out", param=param, code="unsupported_parameter")
    return HttpError(400, f"{param or 'body'}: {first['msg']}", param=param, code="invalid_parameter")
