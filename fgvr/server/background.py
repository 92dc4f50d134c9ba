"""Threads beside the loop: a daemon for what may outlive a stop, a pool for what requests wait for."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")
_THREADS = ThreadPoolExecutor(4096, thread_name_prefix="fgvr-request")
"""They fetch pictures, and wait for the processes that decode (decode_pool.py). As many as there can be requests: were there fewer, the
request that others wait for could be the one that gets none."""


async def in_thread(call: Callable[..., T], *args: Any, **options: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(_THREADS, partial(call, *args, **options))


def in_daemon(call: Callable[[], T], name: str) -> Future[T]:
    """In a daemon thread: it does not keep a process that ends. Whoever stops waiting for it stops only that."""
    found: Future[T] = Future()
    found.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result = call()
        except Exception as error:  # whoever waits is told
            found.set_exception(error)
        else:
            found.set_result(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return found


async def result_of(future: Future[T], timeout: float) -> T:
    """Raises TimeoutError; the thread goes on."""
    return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), timeout)
