"""Running a command's coroutine: its connection, signals that end it in good order, and its one error.

Ctrl-C, SIGTERM and SIGHUP cancel the coroutine, so that its `finally`s run: sessions are closed
and temporary files removed. The exit status is then 128 plus the signal, as a shell has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from servers.admin.access import find_access
from servers.admin.connection import Connection

T = TypeVar("T")

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(naming_urls: str | None, work: Callable[[Connection], Awaitable[T]]) -> T:
    """What `work` returns. Raises the first error it raised, out of any group of errors."""
    access = find_access(naming_urls, os.environ)

    async def connected() -> T:
        connection = Connection(access)
        try:
            return await work(connection)
        finally:
            await connection.close()

    try:
        return asyncio.run(_until_signalled(connected()))
    except BaseExceptionGroup as group:
        raise first_of(group) from group


async def _until_signalled(work: Coroutine[Any, Any, T]) -> T:
    task, loop = asyncio.ensure_future(work), asyncio.get_running_loop()
    came: list[int] = []

    def end(number: int) -> None:
        came.append(number)
        task.cancel()

    for number in ENDING:
        loop.add_signal_handler(number, end, number)
    try:
        return await task
    except asyncio.CancelledError:
        if came:
            sys.exit(128 + came[0])
        raise


def first_of(error: BaseException) -> BaseException:
    """The first error of a group, however deep."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """What `work` returns, run in a thread that nobody waits for at the end of the program.

    For reads and writes of pipes and terminals, which may block for ever: asyncio.to_thread
    would keep the program from ending.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # T itself may be None.

    def body() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:  # noqa: BLE001 - handed to whoever awaits, whatever it is
            error = raised
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody awaits any more.
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=body, daemon=True).start()
    return await future
