"""A running server asked over HTTP for JSON, with the standard library alone: it is imported in milliseconds.

Redirects are not followed (the token would go with them), and loopback is asked without a proxy.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, OpenerDirector, ProxyHandler, Request, build_opener

from fgvr.errors import ConfigError, RemoteError
from fgvr.utils.network import Route, header_value, port_is_valid, route_to

TOKENS = ("FGVR_ADMIN_TOKEN", "ADMIN_TOKEN", "FGVR_TOKEN")  # the first that is set; what may change things may read, too
QUOTED = 200  # characters of an answer that is shown


class NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Service:
    """`url`: of the server's root. Every failure is a RemoteError that names it."""

    url: str
    token: str | None = None
    timeout: float = 30.0  # seconds without a byte

    @classmethod
    def at(cls, url: str, token: str | None = None) -> "Service":
        """Raises ConfigError for what is no http address. The token comes from the environment when none is given."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_valid(url):
            raise ConfigError(f"{url!r} is no server's address; write one like http://127.0.0.1:8000")
        path = parts.path.rstrip("/").removesuffix("/v1")  # an OpenAI base address names the same server
        return cls(f"{parts.scheme}://{parts.netloc}{path}", token or token_from_environment())

    def get(self, path: str, **query: Any) -> Any:
        return self._json(self._request("GET", path, query))

    def post(self, path: str, body: Any = None, **query: Any) -> Any:
        return self._json(self._request("POST", path, query, body))

    def events(self, path: str) -> Iterator[dict[str, Any]]:
        """The JSON data of server-sent events, as they come, until the other side ends the stream."""
        with self._open(self._request("GET", path, {})) as answer:
            for line in answer:
                if line.startswith(b"data:") and (text := line[5:].decode("utf-8", "replace").strip()):
                    yield json.loads(text)

    def _request(self, method: str, path: str, query: Mapping[str, Any], body: Any = None) -> Request:
        asked = {name: value for name, value in query.items() if value is not None}
        address = f"{self.url}/{path.lstrip('/')}" + (f"?{urlencode(asked)}" if asked else "")
        data = None if body is None else json.dumps(body).encode()
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if data else {})
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        return Request(address, data=data, method=method, headers=headers)

    def _json(self, request: Request) -> Any:
        with self._open(request) as answer:
            try:
                content = answer.read()
            except (HTTPException, OSError) as error:
                raise RemoteError(f"{request.full_url} broke off its answer ({error})") from error
        try:
            found = json.loads(content)
        except ValueError as error:
            words = f"{request.full_url} answered no JSON: {excerpt(content)}; is it a server of fgvr?"
            raise RemoteError(words, answer.status) from error
        return found["data"] if isinstance(found, dict) and found.keys() >= {"status", "data"} else found

    def _open(self, request: Request) -> HTTPResponse:
        route = route_to(self.url, socks=False)
        try:
            return _opener(self.url, route).open(request, timeout=self.timeout)
        except HTTPError as error:
            with error:
                words = f"{self.url} refused {request.selector} ({error.code}): {reason(error.read())}{_cure(error.code)}"
                raise RemoteError(words, error.code) from None
        except (URLError, HTTPException, OSError) as error:
            why = error.reason if isinstance(error, URLError) else error
            raise RemoteError(f"no server answers at {self.url}{route} ({why}); start one with: fgvr serve") from error


def token_from_environment(names: Sequence[str] = TOKENS) -> str | None:
    return next((header_value(name, os.environ[name]) for name in names if os.environ.get(name)), None)


def excerpt(content: bytes | str) -> str:
    """The beginning of an answer, for people."""
    text = content.decode("utf-8", "replace") if isinstance(content, bytes) else content
    return repr(text[:QUOTED]) + ("..." if len(text) > QUOTED else "") if text else "nothing"


def reason(content: bytes) -> str:
    """What an error's body says, in whichever of the usual forms."""
    try:
        body = json.loads(content)
    except ValueError:
        return content.decode("utf-8", "replace")[:QUOTED] or "no reason given"
    while isinstance(body, dict):  # {"error": {"message": ...}}, {"status": "error", "data": {"message": ...}}, {"detail": ...}
        body = next((body[key] for key in ("error", "message", "detail", "data") if body.get(key)), str(body))
    return body if isinstance(body, str) else json.dumps(body)


def _cure(code: int) -> str:
    return f"; set {TOKENS[0]} to the token that the server showed when it started" if code in (401, 403) else ""


def _opener(url: str, route: Route) -> OpenerDirector:
    proxies = {scheme: route.proxy for scheme in ("http", "https")} if route.proxy else {}
    secured = [HTTPSHandler(context=route.certificates())] if url.startswith("https") else []  # reading certificates takes a while
    return build_opener(NoRedirects, ProxyHandler(proxies), *secured)
