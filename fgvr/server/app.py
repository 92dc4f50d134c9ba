"""The application: what a session hands over, behind addresses. Making one starts no thread and loads no model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST

from fgvr import __version__
from fgvr.runtime.monitor import watch
from fgvr.runtime.pool import ModelPool
from fgvr.server import admin, classify, events, health, http_errors, openai
from fgvr.server.classify import Classifier, Recognizes
from fgvr.server.decoding import DECODERS
from fgvr.server.engine import InferenceEngine
from fgvr.server.events import Broadcast
from fgvr.server.health import ReadinessProbe
from fgvr.server.metrics import Metrics
from fgvr.server.middleware import Middleware, route_template
from fgvr.server.settings import Settings, Tokens
from fgvr.types import ModelSpec, Prediction


def make_app(
    pool: ModelPool,
    specs: Mapping[str, ModelSpec],
    settings: Settings,
    tokens: Tokens,
    *,
    build_recognizer: Callable[[], Recognizes],
    to_row: Callable[[Prediction], dict[str, Any]],
) -> Server:
    """Args: specs: the model of each role, registered with the pool. build_recognizer: called once, with the first classification."""
    metrics, broadcast = Metrics(pool), Broadcast()
    engine = InferenceEngine(pool, specs, settings, metrics)
    metrics.attach(engine)
    alerts = watch(pool).alerts

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        ends = [pool.subscribe(metrics.hear), pool.subscribe(broadcast.hear)]
        alerts.sinks = [*alerts.sinks, metrics.alert, broadcast.alert]
        try:
            yield
        finally:
            engine.draining = True
            broadcast.close()
            DECODERS.close()
            engine.close()
            alerts.sinks = [sink for sink in alerts.sinks if sink not in (metrics.alert, broadcast.alert)]
            for end in ends:
                end()

    app = FastAPI(title="fgvr", version=__version__, description=_ABOUT, lifespan=living, docs_url=None, redoc_url=None)
    state = app.state
    state.pool, state.specs, state.settings, state.tokens = pool, dict(specs), settings, tokens
    state.metrics, state.broadcast, state.engine = metrics, broadcast, engine
    state.classifier = Classifier(engine, build_recognizer, to_row)
    state.readiness = ReadinessProbe(pool, specs[settings.health_model], engine, lambda: state.classifier.making)
    for part in (openai, classify, admin, events, health):
        app.include_router(part.router)
    if find_spec("fgvr.server.dashboard") is not None:
        from fgvr.server import dashboard  # type: ignore[attr-defined]

        app.include_router(dashboard.router)

    @app.get("/metrics", dependencies=admin.READ, tags=["health"], response_class=Response, responses=_METRICS)
    def metrics_page(request: Request) -> Response:
        """For Prometheus."""
        return Response(request.app.state.metrics.page(), media_type=CONTENT_TYPE_LATEST)

    http_errors.install(app)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return Server(app, Middleware(app, settings, metrics, route_template, engine.full), engine, broadcast)


class Server:
    """The application and what its process ends it by."""

    def __init__(self, app: FastAPI, asgi: Middleware, engine: InferenceEngine, broadcast: Broadcast) -> None:
        self.app, self.asgi, self.engine, self.broadcast = app, asgi, engine, broadcast

    def drain(self) -> None:
        """No new work; streams of events end, so that connections can. From a signal handler."""
        self.engine.draining = True
        self.broadcast.close()


_ABOUT = "One machine's shared models: OpenAI's API over them, the recognition pipeline, and the levers of their memory."
_METRICS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}, "description": "Figures"}, **admin.codes(401)}


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document. FastAPI adds a 422 to whatever has parameters; here a wrong parameter is a 400."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for operations in found["paths"].values():
            for operation in operations.values():
                if operation["responses"].pop("422", None) is not None:
                    operation["responses"].setdefault("400", _refusal("A parameter is wrong; it is named"))
                if operation.get("requestBody"):
                    operation["responses"].setdefault("413", _refusal("The body is larger than server.max_body"))
        app.openapi_schema = found
    return app.openapi_schema


def _refusal(text: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": {"type": "object"}}}}
