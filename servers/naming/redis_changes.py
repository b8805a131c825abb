"""Changes that are answered once a replica has them too.

    changes in  ──▶  one pipeline: FCALL, FCALL, ..., HGET seq, WAIT  ──▶  replies out

Called by the store where Redis has replicas; knows commands, not what they do. A short WAIT means
that nobody knows yet whether the changes stay: they are answered with TryAgain, and whoever asks
again by op id gets their first results once a replica has caught up. Replies that no replica
stands behind are shown to nobody.

Redis takes nothing from a connection while it waits on it for replicas. So one group is on its way
at a time, and what comes meanwhile goes together in the next: a group commit.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from servers.naming.redis_connection import Asked, Command, Connection
from servers.protocol.errors import TryAgain

REPLICAS_MIN = 1
WAIT_MILLISECONDS = 1000
GROUP_MAX = 512
"""Commands that go together at most."""


class ReplicatedChanges:
    def __init__(self, connection: Connection, volume_key: bytes, on_seq: Callable[[int], None]) -> None:
        """`on_seq` is told the volume's latest change that a replica certainly has."""
        self.connection = connection
        self._seq_of_volume: Command = ("HGET", volume_key, "seq")
        self._on_seq = on_seq
        self._queue: deque[tuple[Asked, Sequence[Command]]] = deque()
        self._is_under_way = False
        self.short_waits = 0

    def ask(self, commands: Sequence[Command]) -> Asked:
        """At least one command, on its way or soon."""
        asked = Asked(len(commands))
        self._queue.append((asked, commands))
        if not self._is_under_way:
            self._send()
        return asked

    async def send(self, *command: bytes | str | int) -> Any:
        """The command's reply. Raises TryAgain while no replica has what it did, and what Redis refuses."""
        asked = self.ask([command])
        await asked.wait()
        answer = asked.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _send(self) -> None:
        group: list[tuple[Asked, Sequence[Command]]] = []
        commands: list[Command] = []
        while self._queue and len(commands) < GROUP_MAX:
            asked, more = self._queue.popleft()
            group.append((asked, more))
            commands += more
        wait: Command = ("WAIT", REPLICAS_MIN, WAIT_MILLISECONDS)
        sent = self.connection.ask([*commands, self._seq_of_volume, wait])
        self._is_under_way = True
        sent.then(lambda: self._came([asked for asked, _ in group], sent.answers))

    def _came(self, group: list[Asked], answers: list[Any]) -> None:
        *answers, seq, replicas = answers
        is_kept = isinstance(replicas, int) and replicas >= REPLICAS_MIN
        if is_kept and isinstance(seq, bytes):
            self._on_seq(int(seq))
        if not is_kept:
            self.short_waits += 1
        at = 0
        for asked in group:
            for answer in answers[at : at + asked.count]:
                is_known = is_kept or isinstance(answer, Exception)
                asked.add(answer if is_known else TryAgain("no replica of Redis has it yet"))
            at += asked.count
        self._is_under_way = False
        if self._queue:  # Not at once: on a connection that has ended each group would end within the one before it.
            asyncio.get_running_loop().call_soon(self._send_if_free)

    def _send_if_free(self) -> None:
        if self._queue and not self._is_under_way:
            self._send()
