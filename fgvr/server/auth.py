"""Who may do what. Tokens come as `Authorization: Bearer ...` and are compared in constant time, by their digests: no length shows.

Coroutines: what is a plain function would cost each request a thread.
"""

import hashlib
import hmac
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from fgvr.server.http_errors import HttpError
from fgvr.server.settings import Tokens

_READER = HTTPBearer(auto_error=False, scheme_name="token", description="FGVR_TOKEN, where the server has one")
_ADMIN = HTTPBearer(auto_error=False, scheme_name="admin token", description="FGVR_ADMIN_TOKEN, or the one shown at start")
ReaderToken = Annotated[HTTPAuthorizationCredentials | None, Security(_READER)]
AdminToken = Annotated[HTTPAuthorizationCredentials | None, Security(_ADMIN)]


async def may_read(request: Request, given: ReaderToken) -> None:
    """Everybody, unless a token is set."""
    tokens: Tokens = request.app.state.tokens
    if tokens.reader is not None:
        _check(given, tokens.reader, tokens.admin)


async def may_change(request: Request, given: AdminToken) -> None:
    """Holders of the admin token."""
    _check(given, request.app.state.tokens.admin)


READ, CHANGE = [Depends(may_read)], [Depends(may_change)]


def _check(given: HTTPAuthorizationCredentials | None, *accepted: str) -> None:
    if given is None:
        raise HttpError(401, "this needs a token: Authorization: Bearer TOKEN", code="no_token")
    shown = _digest(given.credentials)
    if not any([hmac.compare_digest(shown, _digest(token)) for token in accepted]):  # a list: all of them, whichever fits
        raise HttpError(401, "this token does not open this", code="wrong_token")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
