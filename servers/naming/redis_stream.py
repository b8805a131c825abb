"""The stream of changes that a Redis sends to its replicas: where it may be cut, and how far it goes. Pure.

The stream is commands in RESP. Those of one function call are a transaction, MULTI to EXEC: it is cut only
between two. How far it goes is told by what is written to the volume's change counter.
"""

from __future__ import annotations

from servers.protocol.errors import DcsError

WIPING = frozenset({b"FLUSHALL", b"FLUSHDB", b"SWAPDB"})
LOOKED_AT_BYTES_MAX = 256
"""Longer arguments are not looked at: neither a command nor a key of ours."""


class NotAStream(DcsError):
    """What follows is not what a Redis sends to its replicas."""


class ChangeStream:
    """`feed` it all, in any pieces; `take` is what of it was not taken before, up to the end of a transaction."""

    def __init__(self, key: bytes, reached: int) -> None:
        """`key`: of the volume, without what follows it. `reached`: a change that came before this stream."""
        self._volume = key + b":volume"
        self._buffer = bytearray()
        self._at = 0
        self._whole = 0
        self._seen = reached
        self._in_transaction = False
        self.reached = reached
        """The latest change in what was taken or can be."""
        self.is_over = False
        """The volume was deleted: nothing of that, or after it, is taken."""

    @property
    def whole_bytes(self) -> int:
        """So many could be taken."""
        return self._whole

    def feed(self, data: bytes) -> None:
        """Raises NotAStream."""
        self._buffer += data
        while not self.is_over:
            command = self._next()
            if command is None:
                return
            self._see(command)

    def take(self) -> bytes:
        taken = bytes(self._buffer[: self._whole])
        del self._buffer[: self._whole]
        self._at -= self._whole
        self._whole = 0
        return taken

    def _see(self, command: list[bytes]) -> None:
        verb = command[0].upper() if command else b""
        if verb in WIPING or (verb in (b"DEL", b"UNLINK", b"RENAME") and self._volume in command):
            self.is_over = True
            return
        if verb == b"HSET" and command[1] == self._volume and b"seq" in (fields := command[2::2]):
            self._seen = int(command[3 + 2 * fields.index(b"seq")])
        self._in_transaction = verb == b"MULTI" or (self._in_transaction and verb != b"EXEC")
        if not self._in_transaction:
            self._whole, self.reached = self._at, self._seen

    def _next(self) -> list[bytes] | None:
        """The next command, without its long arguments; None when it is not all there. Moves on behind it."""
        buffer, at = self._buffer, self._at
        end = buffer.find(b"\r\n", at)
        if end < 0:
            return None
        words: list[bytes] = []
        for _ in range(_count(buffer[at:end], b"*")):
            at = end + 2
            end = buffer.find(b"\r\n", at)
            if end < 0:
                return None
            size = _count(buffer[at:end], b"$")
            at = end + 2
            end = at + size
            if end + 2 > len(buffer):
                return None
            words.append(bytes(buffer[at:end]) if size <= LOOKED_AT_BYTES_MAX else b"")
        self._at = end + 2
        return words


def _count(line: bytes | bytearray, mark: bytes) -> int:
    digits = bytes(line).lstrip(b"\n")  # Empty lines: Redis is alive.
    if digits[:1] != mark or not digits[1:].isdigit():
        raise NotAStream(f"{digits[:40]!r} in place of {mark!r} and a number")
    return int(digits[1:])
