"""A Redis of its own for tests that ask functions directly: nothing is synced, everything is quick."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

START_SECONDS = 10.0


@contextmanager
def running_redis() -> Iterator[Any]:  # Any: redis-py types a reply as all that it could be
    """A client of a server that is gone, with all it held, afterwards."""
    with tempfile.TemporaryDirectory(prefix="dcs-redis-") as directory:
        path = Path(directory) / "redis.sock"
        words = f"--port 0 --unixsocket {path} --appendonly no --maxmemory-policy noeviction --dir {directory}"
        server = subprocess.Popen(["redis-server", *words.split(), "--save", ""], stdout=subprocess.DEVNULL)
        client = redis.Redis(unix_socket_path=str(path))
        try:
            _wait_until_it_answers(client)
            yield client
        finally:
            client.close()
            server.terminate()
            server.wait(START_SECONDS)


def _wait_until_it_answers(client: redis.Redis) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            client.ping()
        except redis.ConnectionError:
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.01)
        else:
            return
