"""A wire between a naming server and Redis that a test can hold: requests arrive, replies wait."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

PIECE_BYTES = 65536


class RedisProxy:
    """Listens on `port` and passes everything on to `redis_port`, until replies are held."""

    def __init__(self, port: int, redis_port: int) -> None:
        self._redis_port = redis_port
        self._listener = socket.create_server(("127.0.0.1", port))
        self._may_answer = threading.Event()
        self._may_answer.set()
        self._ends: list[socket.socket] = []
        self.held_bytes = 0
        """Of replies that came while they were held."""
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.answer()
        for end in (self._listener, *self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._accepting.join(5)

    def hold_replies(self) -> None:
        self.held_bytes = 0
        self._may_answer.clear()

    def answer(self) -> None:
        self._may_answer.set()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._redis_port))
            except OSError:
                return
            self._ends += [client, server]
            for source, sink, is_reply in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pass_on, args=(source, sink, is_reply), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, is_reply: bool) -> None:
        try:
            while data := source.recv(PIECE_BYTES):
                if is_reply and not self._may_answer.is_set():
                    self.held_bytes += len(data)
                    self._may_answer.wait()
                sink.sendall(data)
        except OSError:
            pass  # The test ended one of them.
        finally:
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_WR)
