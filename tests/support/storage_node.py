"""One storage node as a real process, and the plainest HTTP client there is to talk to it."""

from __future__ import annotations

import itertools
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from servers.client.http import no_tls
from servers.protocol.checksum import block_sums
from servers.protocol.storage_api import ExtentHeader
from tests.support.cluster import Node
from tests.support.processes import base_environment, free_port, is_healthy, wait_for

SECRET = "secret-of-one-node"
AUTHORIZATION = f"Bearer {SECRET}"


def header_of(body: bytes) -> ExtentHeader:
    return ExtentHeader("volume-1", 7, 3, 1_700_000_000_123_456_789, b"na\xffme", block_sums([body]))


class StorageNode(Node):
    def __init__(self, directory: Path, **settings: str) -> None:
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.data_dir = directory / "data"
        self.disks = [self.data_dir]
        """What a test that gives DATA_DIR itself says here."""
        environment = {
            **base_environment(), "PORT": str(port), "DATA_DIR": str(self.data_dir), "NAMING_URL": "",
            "DCS_SECRET": SECRET, **settings,
        }  # fmt: skip
        command = [sys.executable, "-m", "servers.storage"]
        super().__init__("node", command, environment, directory / "node.log", lambda: is_healthy(self.address))
        self.http = httpx.Client(
            base_url=f"http://{self.address}",
            headers={"authorization": AUTHORIZATION},
            trust_env=False,
            verify=no_tls(),
            timeout=30,
        )

    def wait_killed(self) -> None:
        wait_for(lambda: not self.is_running, "the injected SIGKILL has struck")

    def put(self, extent: str, body: bytes, *, sync: bool = False, header: ExtentHeader | None = None) -> int:
        headers = {"dcs-extent": (header or header_of(body)).pack()}
        target = f"/v1/extents/{extent}" + ("?sync=1" if sync else "")
        return self.http.put(target, content=body, headers=headers).status_code

    def get(self, extent: str, **headers: str) -> httpx.Response:
        return self.http.get(f"/v1/extents/{extent}", headers=headers)

    def delete(self, extent: str) -> None:
        """Its file is gone from the disk; the node was not asked."""
        for path in self.data_dir.glob(f"extents/*/{extent}"):
            path.unlink()

    def inventory(self, limit: int = 1024) -> list[tuple[str, int]]:
        """The complete listing, page by page."""
        rows: list[tuple[str, int]] = []
        after: str | None = None
        while True:
            params: dict[str, Any] = {"limit": limit, **({"after": after} if after else {})}
            page = self.http.get("/v1/inventory", params=params).json()
            rows += [(row["id"], row["length"]) for row in page["extents"]]
            after = page["next"]
            if after is None:
                return rows

    def statistics(self) -> dict[str, int]:
        statistics: dict[str, int] = self.http.get("/v1/space").json()["statistics"]
        return statistics

    def temporary_files(self) -> list[Path]:
        return [path for path in (self.data_dir / "tmp").rglob("*") if not path.is_dir()]

    def close(self) -> None:
        self.http.close()
        if self.is_running:
            self.stop()


@dataclass(frozen=True)
class RawReply:
    status: int
    headers: dict[str, str]
    body: bytes


class RawConnection:
    """A socket that sends exactly what it is told, in the pieces it is told."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.socket.sendall(piece)

    def reply(self, *, head_only: bool = False) -> RawReply:
        while b"\r\n\r\n" not in self._buffer:
            self._receive()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        line, *rows = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (row.partition(":") for row in rows)}
        length = 0 if head_only else int(headers.get("content-length", "0"))
        while len(self._buffer) < length:
            self._receive()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return RawReply(int(line.split()[1]), headers, body)

    def is_closed(self) -> bool:
        """Waits for the other side to close."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _receive(self) -> None:
        piece = self.socket.recv(1 << 20)
        if not piece:
            raise ConnectionError("closed by the server")
        self._buffer += piece


def raw_request(method: str, target: str, body: bytes = b"", *more: str, secret: str = SECRET) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: node", f"Authorization: Bearer {secret}", *more]
    if body or method in ("PUT", "POST"):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def chopped(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    """The data in pieces that end at these places."""
    places = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places)]
