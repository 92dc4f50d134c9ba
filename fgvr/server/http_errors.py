"""Every answer that is no success: one exception, one table from our errors to HTTP, one body for each family of addresses."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from fgvr.errors import (
    ConfigError,
    FgvrError,
    ImageError,
    LeaseTimeout,
    ModelLoadError,
    OutOfBudget,
    RuntimeConflict,
    WouldDeadlock,
    log_failure,
)
from fgvr.types import MemoryPlan

log = logging.getLogger(__name__)
RETRY = 2  # seconds, where nothing better is known


class HttpError(Exception):
    """`param`: the parameter at fault; `retry`: seconds until a client may ask again; `plan`: a memory plan as JSON."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry: int | None = None, plan: Any = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry, self.plan = status, message, param, code, retry, plan


def bad_request(message: str, param: str | None = None, code: str = "invalid_parameter") -> HttpError:
    return HttpError(400, message, param=param, code=code)


def stopping() -> HttpError:
    return HttpError(503, "the server is stopping", code="draining", retry=5)


_KINDS: tuple[tuple[type[FgvrError], int, str], ...] = (
    (OutOfBudget, 507, "out_of_budget"),
    (RuntimeConflict, 409, "busy"),
    (ImageError, 400, "unreadable_image"),
    (LeaseTimeout, 503, "no_memory_in_time"),
    (WouldDeadlock, 503, "would_deadlock"),
    (ModelLoadError, 503, "model_not_loaded"),
    (ConfigError, 400, "wrong_value"),
    (FgvrError, 503, "unavailable"),
)
_CODES = {
    400: "bad_request",
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    429: "busy",
    504: "timeout",
}


def to_http_error(error: BaseException) -> HttpError:
    """A bug of ours is a 500 that says nothing of the inside."""
    if isinstance(error, HttpError):
        return error
    for kind, status, code in _KINDS:
        if isinstance(error, kind):
            plan = plan_record(error.plan) if isinstance(error, OutOfBudget) else None
            return HttpError(status, str(error), code=code, retry=RETRY if status == 503 else None, plan=plan)
    return HttpError(500, "internal error; the server's log has it", code="internal_error")


def plan_record(plan: MemoryPlan | None) -> dict[str, Any] | None:
    """A memory plan as JSON."""
    if plan is None:
        return None
    parts = [{"name": part.name, "bytes": part.bytes, "note": part.note} for part in plan.parts]
    return {"budget": plan.budget, "needed": plan.needed, "fits": plan.fits, "parts": parts, "advice": list(plan.advice), "text": str(plan)}


def answer(path: str, error: HttpError) -> JSONResponse:
    """As the address's family writes it: OpenAI's below /v1, ours elsewhere."""
    headers = {"Retry-After": str(error.retry)} if error.retry is not None else {}
    if error.status == 413:
        headers["Connection"] = "close"  # else the rest of the body would be read, if only to forget it
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body(path, error), error.status, headers)


def body(path: str, error: HttpError) -> dict[str, Any]:
    found: dict[str, Any] = {"message": error.message, "code": error.code or _CODES.get(error.status, "error")}
    if error.plan is not None:
        found["plan"] = error.plan
    if path.startswith("/v1/"):
        kind = "invalid_request_error" if error.status < 500 else "server_error"
        return {"error": found | {"type": kind, "param": error.param}}
    return {"status": "error", "data": found | ({"param": error.param} if error.param is not None else {})}


def install(app: FastAPI) -> None:
    """Every way out of a handler that is not an answer."""

    async def respond(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, RequestValidationError):
            return answer(request.url.path, invalid_request(error.errors()))
        if isinstance(error, HTTPException):
            found = answer(request.url.path, HttpError(error.status_code, str(error.detail)))
            found.headers.update(error.headers or {})
            return found
        told = to_http_error(error)
        if told.status == 500:
            log_failure(log, "%s %s failed", request.method, request.url.path)
        return answer(request.url.path, told)

    for kind in (HttpError, FgvrError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, respond)


def invalid_request(errors: Any) -> HttpError:
    """The first thing that is wrong, in words; never the value itself, which may be a whole image."""
    first = errors[0]
    kind, place = first["type"], [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    if kind == "json_invalid":
        return bad_request(f"the body is no JSON: {first.get('ctx', {}).get('error', first['msg'])}", code="invalid_json")
    # Tags of unions stand in brackets (schemas.py); what a client wrote itself is cut and made printable.
    param = ".".join(part for part in place if not part.startswith("(")).encode("utf-8", "replace").decode()[:200] or None
    if kind == "extra_forbidden":
        return bad_request(f"{param} is not supported by this server; leave it out", param, "unsupported_parameter")
    return bad_request(f"{param or 'body'}: {first['msg']}", param)
