"""A TCP proxy before a server, which can lose an answer: the request was done, and nobody is told; or a request.

    with Proxy("127.0.0.1:8000") as proxy:
        proxy.lose_answer_to(b"mkdir", naming.kill)
        proxy.lose_request(b"rmdir", naming.kill)
        proxy.change_answers_to(b"GET /v1/", lambda answer: answer[:-1])

One thread for each connection. Where the server does not listen, connections are closed at once.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

PIECE_BYTES = 1 << 20


class Proxy:
    def __init__(self, server: str) -> None:
        host, _, port = server.rpartition(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._wanted: tuple[bytes, ...] = ()
        self._is_passed_on = True
        """What is wanted, though not its answer."""
        self._action: Callable[[], object] = lambda: None
        self.lost = threading.Event()
        """An answer or a request was lost as wanted."""
        self._changes: tuple[bytes, Callable[[bytes], bytes]] | None = None
        self.changed = 0
        """Answers, since it was said how."""
        self._lock = threading.Lock()
        self._socks: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def lose_answer_to(self, request: bytes, action: Callable[[], object], also: bytes = b"") -> None:
        """The answer to the next request that has these bytes, and `also` these, is not passed on, once; `action` is
        called instead."""
        self._lose((request, also), action, is_passed_on=True)

    def lose_request(self, request: bytes, action: Callable[[], object]) -> None:
        """The next request that has these bytes is not passed on, once; `action` is called instead."""
        self._lose((request,), action, is_passed_on=False)

    def change_answers_to(self, request: bytes, change: Callable[[bytes], bytes] | None) -> None:
        """What is passed on for the whole HTTP answer to each request that has these bytes; then the connection is
        closed. None: from here on they are passed on as they are."""
        with self._lock:
            self.changed = 0
            self._changes = (request, change) if change else None

    def _lose(self, wanted: tuple[bytes, ...], action: Callable[[], object], *, is_passed_on: bool) -> None:
        self.lost.clear()
        with self._lock:
            self._action, self._is_passed_on, self._wanted = action, is_passed_on, wanted

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sock in (self._listener, *self._socks):
            _end(sock)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _start(self, body: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=body, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._server, 5)
        except OSError:
            client.close()
            return
        self._socks |= {client, server}
        with client, server, contextlib.suppress(OSError):
            self._pump(client, server)
        self._socks -= {client, server}

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        request = b""
        while True:
            for sock in select.select([client, server], [], [])[0]:
                data = sock.recv(PIECE_BYTES)
                if not data:
                    return
                if sock is client:
                    request += data
                if self._is_wanted(request, is_answered=sock is server):
                    self._action()
                    self.lost.set()
                    return
                if sock is client:
                    server.sendall(data)
                    continue
                if change := self._change_of(request):
                    client.sendall(change(_whole_answer(data, server)))
                    self.changed += 1
                    return
                request = b""
                client.sendall(data)

    def _change_of(self, request: bytes) -> Callable[[bytes], bytes] | None:
        with self._lock:
            return self._changes[1] if self._changes and self._changes[0] in request else None

    def _is_wanted(self, request: bytes, *, is_answered: bool) -> bool:
        with self._lock:
            found = bool(self._wanted) and self._is_passed_on == is_answered
            found = found and all(part in request for part in self._wanted)
            if found:
                self._wanted = ()
            return found


def _whole_answer(data: bytes, server: socket.socket) -> bytes:
    """It begins with these bytes and tells its length."""
    while b"\r\n\r\n" not in data:
        data += server.recv(PIECE_BYTES)
    head, _, body = data.partition(b"\r\n\r\n")
    (length,) = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while len(body) < length:
        body += server.recv(PIECE_BYTES)
    return head + b"\r\n\r\n" + body


def _end(sock: socket.socket) -> None:
    """Wakes who waits for it; close alone does not."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
