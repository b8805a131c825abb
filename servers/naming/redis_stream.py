"""The stream of changes that a Redis sends to its replicas: where it may end. Pure.

The stream is commands in RESP. Those of one function call are a transaction, MULTI to EXEC: it ends only between two.
"""

from __future__ import annotations

import hiredis

from servers.protocol.errors import DcsError


class NotAStream(DcsError):
    """What follows is not what a Redis sends to its replicas."""


class ChangeStream:
    """`feed` it all, in any pieces; `take` is what of it was not taken before, up to the end of a transaction."""

    def __init__(self) -> None:
        self._commands = hiredis.Reader()
        self._buffer = bytearray()
        self._at = 0
        self._whole = 0
        self._in_transaction = False

    def feed(self, data: bytes) -> None:
        """Raises NotAStream."""
        self._buffer += data
        self._commands.feed(data)
        try:
            while (command := self._commands.gets()) is not False:
                if not isinstance(command, list) or not command:
                    raise NotAStream(f"{command!r} in place of a command")
                self._at += len(hiredis.pack_command(tuple(command)))
                verb = command[0].upper()
                self._in_transaction = verb == b"MULTI" or (self._in_transaction and verb != b"EXEC")
                if not self._in_transaction:
                    self._whole = self._at
        except hiredis.ProtocolError as error:
            raise NotAStream(str(error)) from error

    def take(self) -> bytes:
        taken = bytes(self._buffer[: self._whole])
        del self._buffer[: self._whole]
        self._at -= self._whole
        self._whole = 0
        return taken
