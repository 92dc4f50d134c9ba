"""Proxies and certificates from the environment: obeyed, or refused by the name of the variable; never a traceback."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fgvr.cli import main
from fgvr.errors import ConfigError, RemoteError
from fgvr.runtime.loaders import remote
from fgvr.runtime.pool import close_shared
from fgvr.types import ModelSpec
from fgvr.utils.network import CERTIFICATES, route_to
from fgvr.utils.service import Service

HOST = "engine.example"  # never looked up: a route is found out before
VARIABLES = [name for scheme in ("http", "https", "all", "no") for name in (f"{scheme}_proxy", f"{scheme.upper()}_PROXY")]
USELESS = ["socks5://127.0.0.1:9", "ftp://127.0.0.1:9", "http://", "http://127.0.0.1:port", "http://127.0.0.1:99999", "http://[::1", "a b"]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (*VARIABLES, *CERTIFICATES, "FGVR_API_KEY", "FGVR_TOKEN", "FGVR_ADMIN_TOKEN", "ADMIN_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    close_shared()
    yield
    remote.LOADER.close()
    close_shared()


def engine(address: str = f"http://{HOST}/v1", patience: float = 0.0) -> ModelSpec:
    return ModelSpec("mllm", "remote", f"{address}#q", patience=patience)


@pytest.mark.parametrize("variable", ["ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"])
@pytest.mark.parametrize("value", USELESS)
def test_a_proxy_that_cannot_work_is_named(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    for ask in (lambda: remote.LOADER.check(engine()), lambda: Service.at(f"http://{HOST}").get("/api/v1/bundle")):
        with pytest.raises(ConfigError, match=rf"^{variable}=.*NO_PROXY={HOST}"):
            ask()


def test_the_command_line_says_so_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    words = ["models=fake", "models/mllm=remote", f"models.mllm.source='http://{HOST}/v1#q'", "slow=reason", f"paths.home={tmp_path}"]
    assert main(["mode=evaluate", "trigger=always", "dataset.genera=[2,2]", *words]) == 2
    assert "error: ALL_PROXY=socks5://127.0.0.1:9 is a SOCKS proxy" in capsys.readouterr().err
    assert main(["mode=memory", f"server.url=http://{HOST}:8000", f"paths.home={tmp_path}"]) == 2
    assert "ALL_PROXY" in capsys.readouterr().err


def test_the_other_schemes_proxy_plays_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "nonsense://x")
    assert route_to(f"http://{HOST}").proxy is None
    with pytest.raises(ConfigError, match="HTTPS_PROXY=nonsense"):
        route_to(f"https://{HOST}")
    monkeypatch.setenv("ALL_PROXY", "http://far:3128")
    assert route_to(f"http://{HOST}").proxy == "http://far:3128"
    monkeypatch.setenv("HTTP_PROXY", "near:3128")
    assert route_to(f"http://{HOST}").proxy == "http://near:3128", "the scheme's own comes first, and http:// may be left out"


def test_a_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "ftp://me:s3cret@far:21")
    with pytest.raises(ConfigError, match=r"ALL_PROXY=ftp://\*\*\*@far:21") as caught:
        route_to(f"http://{HOST}")
    assert "s3cret" not in str(caught.value)


@contextmanager
def elsewhere() -> Iterator[str]:
    """A server at an address of this machine that is not loopback's usual one; what it answers is no engine's."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"data": [{"id": "q"}], "status": "success"}'
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Silence."""

    server = ThreadingHTTPServer(("127.0.0.2", 0), Handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.2:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def reachable() -> bool:
    """macOS has no 127.0.0.2."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.2", 0))
        except OSError:
            return False
    return True


@pytest.mark.skipif(not reachable(), reason="this machine has one loopback address only")
@pytest.mark.parametrize("exempt", ["127.0.0.2", "*", "x.example, 127.0.0.2"])
def test_no_proxy_is_obeyed(exempt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with elsewhere() as address:
        with pytest.raises(ConfigError, match="ALL_PROXY"):
            remote.LOADER.check(engine(f"{address}/v1"))
        monkeypatch.setenv("NO_PROXY", exempt)
        remote.LOADER.check(engine(f"{address}/v1"))
        assert Service.at(address).get("/") == [{"id": "q"}]


@pytest.mark.skipif(not reachable(), reason="this machine has one loopback address only")
def test_a_proxy_that_is_not_there_is_named_with_the_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with pytest.raises(RemoteError, match="through the proxy of HTTP_PROXY"):
        remote.LOADER.check(engine("http://127.0.0.2:1/v1"))
    with pytest.raises(RemoteError, match="through the proxy of HTTP_PROXY"):
        Service.at("http://127.0.0.2:1").get("/")


@pytest.mark.parametrize("variable", CERTIFICATES)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_certificates_that_are_not_there_are_named(variable: str, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "nowhere"))
    for ask in (lambda: remote.LOADER.check(engine(f"{scheme}://{HOST}/v1")), lambda: Service.at(f"{scheme}://{HOST}").get("/")):
        with pytest.raises(ConfigError, match=f"^{variable}=.*nowhere: there is no such"):
            ask()


@pytest.mark.parametrize("variable", [name for name in CERTIFICATES if name != "SSL_CERT_DIR"])
def test_a_file_without_certificates_is_named(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.pem").write_text("no certificate")
    monkeypatch.setenv(variable, str(tmp_path / "empty.pem"))
    for ask in (lambda: remote.LOADER.check(engine(f"https://{HOST}/v1")), lambda: Service.at(f"https://{HOST}").get("/")):
        with pytest.raises(ConfigError, match=f"^{variable}=.*holds no certificates"):
            ask()


def test_loopback_is_reached_without_any_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "nonsense")
    monkeypatch.setenv("SSL_CERT_FILE", "nowhere")
    for host in ("127.0.0.1", "localhost", "[::1]"):
        assert route_to(f"http://{host}:8000").proxy is None


@pytest.mark.parametrize("value", ["schlüssel", "two\nlines", "space "])
def test_a_key_that_no_header_can_carry_is_named_and_not_shown(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGVR_API_KEY", value)
    with pytest.raises(ConfigError, match="^FGVR_API_KEY holds") as caught:
        remote.LOADER.check(engine("http://127.0.0.1:9/v1"))
    assert value not in str(caught.value)
    monkeypatch.setenv("FGVR_TOKEN", value)
    with pytest.raises(ConfigError, match="^FGVR_TOKEN holds"):
        Service.at("http://127.0.0.1:9")


@pytest.mark.parametrize("address", ["http://host:99999", "http://host:port", "http://:8000", "ftp://host"])
def test_an_address_that_is_none_is_a_configuration_error(address: str) -> None:
    with pytest.raises(ConfigError):
        Service.at(address)
    with pytest.raises(ConfigError):
        remote.LOADER.check(engine(f"{address}/v1"))
