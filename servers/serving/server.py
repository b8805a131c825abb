"""Starting and stopping a server process: its socket, uvicorn, signals, logging.

The socket is bound before the app is made, so a taken port is noticed first and the app can
know its own address. SIGTERM and SIGINT finish the requests under way, run the app's
shutdown, and return from `serve`.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from servers.serving.access import Secret
from servers.serving.lane import Lane
from servers.serving.lane_protocol import lane_protocol
from servers.serving.memory import MemoryBudget

KEEP_ALIVE_SECONDS = 75
GRACEFUL_SECONDS = 25
BACKLOG = 1024


class CannotListen(Exception):
    """The address is taken or not ours; the message is one line for the operator."""


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes any free one. Raises CannotListen."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise CannotListen(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return bound


def address_of(bound: socket.socket) -> str:
    """host:port as others write it in a URL."""
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def configure_logging(level: str) -> None:
    """One line per record on stderr; libraries' chatter only when it is a warning. Raises ValueError."""
    if level.upper() not in logging.getLevelNamesMapping():
        raise ValueError(f"LOG_LEVEL={level}: debug, info, warning or error is wanted")
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for name in ("uvicorn", "uvicorn.error", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)


def serve(
    app: ASGIApp,
    lanes: Sequence[Lane],
    secret: Secret,
    bound: socket.socket,
    *,
    budget: MemoryBudget | None = None,
    port_file: Path | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT, then returns.

    When requests are taken, `listening on HOST:PORT` goes to stdout and the port to `port_file`.
    """
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=lane_protocol(lanes, secret, budget),
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
    )
    _Server(config, address_of(bound), port_file).run(sockets=[bound])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, address: str, port_file: Path | None) -> None:
        super().__init__(config)
        self._address = address
        self._port_file = port_file

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._port_file is not None:
            beside = self._port_file.with_name(self._port_file.name + ".new")
            beside.write_text(self._address.rpartition(":")[2] + "\n")
            beside.replace(self._port_file)
        print(f"listening on {self._address}", flush=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a signal that was obeyed is not raised again: stopping well is exit code 0."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
