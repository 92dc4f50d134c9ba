"""How an address is reached: through which proxy, with which certificates. Read from the usual variables, and checked before use.

Imports nothing beyond the standard library. A variable that cannot work is a ConfigError that names it.
"""

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from fgvr.errors import ConfigError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")  # the first that is set counts
_SOCKS = ("socks4", "socks4a", "socks5", "socks5h")


@dataclass(frozen=True, slots=True)
class Route:
    """`proxy`: its URL; None = straight. `variable`: what named it. `certificates`: how a TLS connection is verified."""

    proxy: str | None = None
    variable: str = ""
    certificates: Callable[[], ssl.SSLContext] = ssl.create_default_context

    def __str__(self) -> str:
        return f" through the proxy of {self.variable}" if self.proxy else ""


def route_to(address: str, *, socks: bool = True) -> Route:
    """Loopback is reached straight; other hosts as HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY say.

    Args: socks: whether the client that asks can use a SOCKS proxy at all.

    Raises ConfigError: a proxy or certificate variable that cannot work, by its name.
    """
    parts = urlsplit(address)
    host = parts.hostname or ""
    if host in LOOPBACK:
        return Route()
    certificates = _certificates()
    settings = getproxies()
    scheme = next((name for name in (parts.scheme, "all") if settings.get(name)), None)
    if scheme is None or proxy_bypass(parts.netloc.rpartition("@")[2]) or proxy_bypass(host):
        return Route(certificates=certificates)
    value = settings[scheme]
    variable = _variable(scheme, value)
    proxy = value if "://" in value else f"http://{value}"
    if wrong := _wrong(proxy, socks):
        raise ConfigError(f"{variable}={_hidden(value)} {wrong}. Mend or unset it, or set NO_PROXY={host} to reach {host} without a proxy")
    return Route(proxy, variable, certificates)


def port_is_valid(address: str) -> bool:
    """Whether the port of an address, if there is one, is a number from 1 to 65535."""
    try:
        return urlsplit(address).port != 0
    except ValueError:
        return False


def header_value(variable: str, value: str) -> str:
    """A secret as an HTTP header can carry it. Raises ConfigError, which does not show the secret."""
    if not value.isascii() or not value.isprintable() or value != value.strip():
        raise ConfigError(f"{variable} holds a character that no HTTP header can carry (a space, a line break or an accent?): set it anew")
    return value


def _wrong(proxy: str, socks: bool) -> str:
    """Why this proxy cannot be used; "" when it can."""
    try:
        parts = urlsplit(proxy)
    except ValueError as error:
        return f"is no address of a proxy ({error})"
    if parts.scheme in _SOCKS:
        if not socks:
            return "is a SOCKS proxy, which is not supported here: an HTTP proxy is needed"
        if find_spec("socksio") is None:
            return "is a SOCKS proxy, which needs the socksio package (pip install socksio)"
    elif parts.scheme not in ("http", "https"):
        return f"is no address of a proxy: {parts.scheme}:// is not http, https or socks5"
    if not parts.hostname or " " in parts.netloc or not port_is_valid(proxy):
        return "is no address of a proxy: write it like http://host:3128"
    return ""


def _certificates() -> Callable[[], ssl.SSLContext]:
    """The certificate variables, each looked at; the first that is set is used."""
    given = [(name, Path(os.environ[name])) for name in CERTIFICATES if os.environ.get(name)]
    for name, path in given:
        there = path.is_dir() if name == "SSL_CERT_DIR" else path.exists()
        if not there:
            kind = "folder" if name == "SSL_CERT_DIR" else "file"
            raise ConfigError(f"{name}={path}: there is no such {kind} of certificates. Mend the path, or unset {name}")
    if not given:
        return ssl.create_default_context
    name, path = given[0]

    def context() -> ssl.SSLContext:
        try:
            return ssl.create_default_context(capath=str(path)) if path.is_dir() else ssl.create_default_context(cafile=str(path))
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(f"{name}={path}: holds no certificates that can be read ({error}). Mend the file, or unset {name}") from None

    return context


def _variable(scheme: str, value: str) -> str:
    """As it is spelled in this environment; a desktop's settings have no variable."""
    names = (f"{scheme}_proxy", f"{scheme}_PROXY".upper())
    return next((name for name in names if os.environ.get(name) == value), f"the system's proxy for {scheme}")


def _hidden(value: str) -> str:
    """Without user and password."""
    before, at, place = value.rpartition("@")
    scheme, slashes, _ = before.partition("://")
    return (f"{scheme}{slashes}***@{place}" if slashes else f"***@{place}") if at else value
