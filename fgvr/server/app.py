"""The application: what a session hands over, behind addresses. Making one starts no thread and loads no model."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST

from fgvr import __version__
from fgvr.runtime.monitor import watch
from fgvr.runtime.pool import ModelPool
from fgvr.server import admin, classify, events, health, http_errors, knowledge, openai
from fgvr.server.auth import READ
from fgvr.server.engine import InferenceEngine, engine_of
from fgvr.server.events import Broadcast
from fgvr.server.health import ReadinessProbe
from fgvr.server.http_errors import HttpError
from fgvr.server.knowledge import Classifier, Knowledge
from fgvr.server.metrics import Metrics
from fgvr.server.middleware import Middleware
from fgvr.server.schemas import Success, codes
from fgvr.server.settings import Settings, Tokens
from fgvr.types import ModelSpec, Prediction

_ABOUT = "One machine's shared models: OpenAI's API over them, the recognition pipeline, and the controls of their memory."


@dataclass(frozen=True)
class Server:
    """The application (`asgi` with its outermost layer) and what its process ends it by."""

    app: FastAPI
    asgi: Middleware
    engine: InferenceEngine
    broadcast: Broadcast
    classifier: Classifier

    def drain(self) -> None:
        """No new work; streams of events end, so that connections can. From a signal handler."""
        self.engine.draining = True
        self.broadcast.close()


def make_app(
    pool: ModelPool,
    specs: Mapping[str, ModelSpec],
    settings: Settings,
    tokens: Tokens,
    *,
    open_knowledge: Callable[[], Knowledge],
    to_row: Callable[[Prediction], dict[str, Any]],
    bundle: Mapping[str, Any] | None = None,
) -> Server:
    """Args:
    specs: the model of each role there is, registered with the pool.
    open_knowledge: called with the first classification and with each reload.
    bundle: how prompts are meant for the models lent here, for `models=remote`.
    """
    metrics, broadcast = Metrics(pool), Broadcast()
    engine = InferenceEngine(pool, specs, settings, metrics)
    alerts, sinks = [watch(member).alerts for member in pool.members], [metrics.on_alert, broadcast.on_alert]

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        unsubscribe = [pool.subscribe(metrics.on_event), pool.subscribe(broadcast.on_event)]
        for one in alerts:
            one.sinks = [*one.sinks, *sinks]
        try:
            yield
        finally:
            server.drain()
            engine.close()
            for one in alerts:
                one.sinks = [sink for sink in one.sinks if sink not in sinks]
            for end in unsubscribe:
                end()

    app = FastAPI(title="fgvr", version=__version__, description=_ABOUT, lifespan=lifespan, docs_url=None, redoc_url=None)
    classifier = Classifier(engine, open_knowledge, to_row)
    server = Server(app, Middleware(app, settings, metrics, engine.why_full), engine, broadcast, classifier)
    app.state.settings, app.state.tokens, app.state.bundle = settings, tokens, bundle
    app.state.warnings = [notice] if bundle and (notice := bundle.get("notice")) else []
    app.state.engine, app.state.broadcast, app.state.classifier = engine, broadcast, classifier
    app.state.readiness = ReadinessProbe(engine, lambda: classifier.is_starting)
    for part in (openai, classify, knowledge, admin, events, health):
        app.include_router(part.router)
    app.include_router(router)
    app.mount("/static", FILES)

    @app.get("/metrics", dependencies=READ, tags=["health"], response_class=Response, responses=_METRICS)
    def metrics_page(request: Request) -> Response:
        """For Prometheus."""
        return Response(engine_of(request).metrics.page(), media_type=CONTENT_TYPE_LATEST)

    http_errors.install(app)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return server


_METRICS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}, "description": "Figures"}, **codes(401)}


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document. FastAPI adds a 422 to whatever has parameters; here a wrong parameter is a 400."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        content = {"content": {"application/json": {"schema": {"type": "object"}}}}
        for operation in (one for operations in found["paths"].values() for one in operations.values()):
            if operation["responses"].pop("422", None) is not None:
                operation["responses"].setdefault("400", content | {"description": "A parameter is wrong; it is named"})
            if operation.get("requestBody"):
                operation["responses"].setdefault("413", content | {"description": "The body is larger than server.max_body"})
        app.openapi_schema = found
    return app.openapi_schema


# --- `GET /`: the server's page for people; its figures come by the addresses that others use, with their tokens ------------------

router = APIRouter(include_in_schema=False)
FILES = StaticFiles(packages=[("fgvr.server", "static")])


@router.get("/")
def page() -> HTMLResponse:
    return _static("index.html")


@router.get("/docs")
def docs() -> HTMLResponse:
    """Every address, read by the page itself from /openapi.json."""
    return _static("docs.html")


def _static(name: str) -> HTMLResponse:
    return HTMLResponse(resources.files("fgvr.server").joinpath("static", name).read_text("utf-8"))


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
