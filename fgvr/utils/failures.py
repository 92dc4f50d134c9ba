"""Saying that something failed without keeping what it held."""

from __future__ import annotations

import logging
import traceback


def log_failure(log: logging.Logger, message: str, *args: object) -> None:
    """As `log.exception`, with the traceback as text.

    A handler may keep its records (Sentry, pytest, a notebook's list); one that holds the exception holds its frames, and with them a
    model that was on its way out.
    """
    log.error("%s\n%s", message % args, traceback.format_exc().rstrip(), stacklevel=2)
