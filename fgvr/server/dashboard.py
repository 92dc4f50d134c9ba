"""`GET /`: the server's page for people. Static files only; all figures come to it by the addresses that others use, with their tokens."""

from __future__ import annotations

from importlib import resources
from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from fgvr.server.auth import may_read
from fgvr.server.http_errors import HttpError

router = APIRouter(include_in_schema=False)
FILES = {
    "index.html": "text/html; charset=utf-8",
    "dashboard.css": "text/css; charset=utf-8",
    **dict.fromkeys(
        ("main.js", "api.js", "chart.js", "models.js", "traffic.js", "events.js", "classify.js"), "text/javascript; charset=utf-8"
    ),
}


@router.get("/")
def page() -> Response:
    return _file("index.html")


@router.get("/static/{name}")
def static(name: str) -> Response:
    if name not in FILES:  # a list, so that no name can lead anywhere else
        raise HttpError(404, "no such file", code="not_found")
    return _file(name)


@router.get("/favicon.ico")
def favicon() -> Response:
    """None; the page names none, but browsers ask."""
    return Response(status_code=204)


@router.get("/api/v1/bundle", dependencies=[Depends(may_read)])
def bundle(request: Request) -> dict[str, Any]:
    """What `models=remote` asks first: how prompts are meant for the models lent here. 404: this server was not told."""
    traits = getattr(request.app.state, "bundle", None)
    if traits is None:
        raise HttpError(404, "this server says nothing of its models", code="not_found")
    return {"status": "success", "data": traits}


def _file(name: str) -> Response:
    content = resources.files("fgvr.server").joinpath("static", name).read_bytes()
    return Response(content, media_type=FILES[name], headers={"Cache-Control": "no-cache"})
