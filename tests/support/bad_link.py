"""A TCP connection on the way to a server that is slow, drips, breaks, or flips bits.

    with BadLink(node.address, wire.host, random.Random(seed)) as link, wire.divert(node.address, link.address):
        link.trouble = Trouble(flips=0.05)

Two threads for each connection. What is troubled counts at once, for connections that are there too.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

PIECE_BYTES = 16 * 1024
RESET_AT_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Trouble:
    delay_seconds: float = 0.0
    """Of every piece, in each direction."""
    answer_bytes_per_second: float = 0.0
    """0 is no limit."""
    flips: float = 0.0
    """The share of pieces, in each direction, of which one bit is changed."""
    resets: float = 0.0
    """The share of pieces that are not passed on: the connection is reset instead."""


class BadLink:
    def __init__(self, server: str, host: str, chance: random.Random) -> None:
        self.trouble = Trouble()
        self.flipped = self.reset = self.dripped = 0
        """How often each has happened."""
        self.answered_bytes = 0
        """Of the server's answers, as they came from it."""
        name, _, port = server.rpartition(":")
        self._server = (name, int(port))
        self._chance = chance
        self._listener = socket.create_server((host, 0))
        self.address = f"{host}:{self._listener.getsockname()[1]}"
        self._ends: set[socket.socket] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.trouble = Trouble()
        with self._lock:
            for end in (self._listener, *self._ends):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)  # Wakes who waits for it; close alone does not.
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._server, 5)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        with self._lock:
            self._ends |= {client, server}
        answers = threading.Thread(target=self._pass_on, args=(server, client, True), daemon=True)
        answers.start()
        self._pass_on(client, server, False)
        answers.join()
        with self._lock:
            self._ends -= {client, server}
        client.close()
        server.close()

    def _pass_on(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        try:
            while data := source.recv(PIECE_BYTES):
                trouble = self.trouble
                self.answered_bytes += len(data) * is_answer
                time.sleep(trouble.delay_seconds)
                if self._chance.random() < trouble.resets:
                    self.reset += 1
                    source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
                    sink.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
                    break
                if self._chance.random() < trouble.flips:
                    data = self._with_a_flip(data)
                if is_answer and trouble.answer_bytes_per_second:
                    self._drip(data, sink)
                else:
                    sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _with_a_flip(self, data: bytes) -> bytes:
        self.flipped += 1
        changed = bytearray(data)
        changed[self._chance.randrange(len(data))] ^= 1 << self._chance.randrange(8)
        return bytes(changed)

    def _drip(self, data: bytes, sink: socket.socket) -> None:
        for at in range(len(data)):
            rate = self.trouble.answer_bytes_per_second
            if not rate:
                sink.sendall(data[at:])
                return
            sink.sendall(data[at : at + 1])
            self.dripped += 1
            time.sleep(1 / rate)
