"""A TCP server in threads whose connections do what a test's script says: the odd peer that no real server is."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class Peer:
    """One connection, as the script sees it. Whatever fails because the client left ends the script quietly."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self.number = number
        """Counted from 0 in the order of connecting."""
        self._data = b""

    def read_head(self) -> Request | None:
        """The next request without its body; None when the client closed."""
        while b"\r\n\r\n" not in self._data:
            more = self.sock.recv(65536)
            if not more:
                return None
            self._data += more
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return Request(method, target, headers, b"")

    def read_request(self) -> Request | None:
        head = self.read_head()
        if head is None:
            return None
        length = int(head.headers["content-length"])
        parts, got = [self._data[:length]], len(self._data[:length])
        self._data = self._data[length:]
        while got < length:
            more = self.sock.recv(1 << 20)
            if not more:
                return None
            parts.append(more)
            got += len(more)
        return Request(head.method, head.target, head.headers, b"".join(parts))

    def answer(self, body: bytes = b"", status: int = 200, **headers: str) -> None:
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        self.raw(f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n{lines}\r\n".encode() + body)

    def raw(self, data: bytes) -> None:
        self.sock.sendall(data)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def wait_for_end(self) -> None:
        """Reads and drops until the client closes."""
        while self.sock.recv(65536):
            pass


class ScriptedServer:
    def __init__(self, script: Callable[[Peer], None]) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._socks: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self.connections = 0
        self.open_now = 0
        self.open_at_most = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # shutdown, because close does not wake a thread that is in accept or recv.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(Peer(sock, self.connections),))
                self.connections += 1
                self._socks.append(sock)
                self._threads.append(thread)
                thread.start()

    def _serve(self, peer: Peer) -> None:
        with self._lock:
            self.open_now += 1
            self.open_at_most = max(self.open_at_most, self.open_now)
        try:
            with peer.sock, contextlib.suppress(OSError):
                self._script(peer)
        finally:
            with self._lock:
                self.open_now -= 1
