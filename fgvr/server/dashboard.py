"""`GET /`: the server's page for people. Static files only; all figures come to it by the addresses that others use, with their tokens."""

from __future__ import annotations

from importlib import resources

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from fgvr.server.auth import READ
from fgvr.server.http_errors import HttpError
from fgvr.server.schemas import Success

router = APIRouter(include_in_schema=False)
FILES = StaticFiles(packages=[("fgvr.server", "static")])


@router.get("/")
def page() -> HTMLResponse:
    return HTMLResponse(resources.files("fgvr.server").joinpath("static", "index.html").read_text("utf-8"))


@router.get("/favicon.ico")
def favicon() -> Response:
    """None; the page names none, but browsers ask."""
    return Response(status_code=204)


@router.get("/api/v1/bundle", dependencies=READ)
def bundle(request: Request) -> Success:
    """What `models=remote` asks first: how prompts are meant for the models lent here. 404: this server was not told."""
    if request.app.state.bundle is None:
        raise HttpError(404, "this server says nothing of its models", code="not_found")
    return Success(data=request.app.state.bundle)
