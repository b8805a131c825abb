"""A volume in a test's Redis, and its functions as plain calls.

volume = Volume(client, "v1")
session = volume.session()
directory = session.mkdir(1, b"d").ino
assert session.errno("mkdir", parent=1, name=b"d") == errno.EEXIST
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import msgpack

from servers.naming.keyspace import prefix
from servers.naming.namespace import Library, library
from servers.protocol.errors import Refused
from servers.protocol.geometry import Segment
from servers.protocol.ids import ExtentId, NodeNumber, SessionNumber, extent_id
from servers.protocol.naming_api import (
    Attributes,
    pack_arguments,
    pack_nodes,
    pack_segments,
    unpack_attributes,
    unpack_segments,
)

UUID = "0123456789abcdef0123456789abcdef"
NODES = (NodeNumber(1), NodeNumber(2), NodeNumber(3))


class Volume:
    """`changed_limits`: names of `servers.protocol.limits` that are smaller here."""

    def __init__(self, client: Any, name: str, *, chunk_size: int = 1024, **changed_limits: int) -> None:
        self.client = client
        self.key = prefix(name)
        self.library: Library = library(**changed_limits)
        client.function_load(self.library.text, replace=True)
        self.uuid = ""
        self.settings = {
            "make": True, "uuid": UUID, "chunk_size": chunk_size, "replicas": 3, "uid": 0, "gid": 0, "seq": 0,
            "outage_ms": 3_600_000, "lease_ms": 60_000, "orphan_grace_ms": 0, "condemned_grace_ms": 0,
        }  # fmt: skip
        self.call("volume_open", **self.settings)
        self.uuid = UUID

    def raw(self, verb: str, session: int, n: int, arguments: bytes, uuid: str | None = None) -> bytes:
        reply: bytes = self.client.fcall(
            self.library.function(verb).decode(),
            1,
            self.key,
            session,
            n,
            arguments,
            self.uuid if uuid is None else uuid,
        )
        return reply

    def reply(self, verb: str, session: int = 0, n: int = 0, /, **arguments: Any) -> list[Any]:
        """The errno and the results."""
        fields: list[Any] = msgpack.unpackb(
            self.raw(verb, session, n, pack_arguments(arguments)), raw=True, strict_map_key=False
        )
        return fields

    def call(self, verb: str, session: int = 0, n: int = 0, /, **arguments: Any) -> list[Any]:
        """The results. Raises Refused."""
        fields = self.reply(verb, session, n, **arguments)
        if fields[0] != 0:
            raise Refused(fields[0], verb)
        return fields[1:]

    def errno(self, verb: str, /, **arguments: Any) -> int:
        """Of a read or of internal work."""
        return int(self.reply(verb, **arguments)[0])

    def session(self) -> Session:
        number, _ = self.call("session_open", host="here", what="a test")
        return Session(self, SessionNumber(number))

    def attributes(self, ino: int) -> Attributes:
        return unpack_attributes(ino, self.call("getattr", ino=ino)[0])

    def names(self, ino: int = 1) -> list[bytes]:
        return [row[0] for row in self.listing(ino)]

    def listing(self, ino: int, after: int = 0, count: int = 1024) -> list[tuple[bytes, int, int, bytes]]:
        """name, cookie, inode, attributes."""
        _, _, *flat = self.call("readdir", ino=ino, after=after, count=count)
        return [tuple(flat[i : i + 4]) for i in range(0, len(flat), 4)]

    def chunks(self, ino: int) -> dict[int, list[Segment]]:
        """The whole map, as Redis holds it."""
        rows = self.client.hgetall(f"{self.key}:m:{ino}")
        return {int(index): unpack_segments(blob) for index, blob in sorted(rows.items(), key=lambda row: int(row[0]))}

    def status(self) -> dict[str, Any]:
        return {name.decode(): value for name, value in self.call("status")[0].items()}

    def reclaim(self) -> None:
        """Everything that is due comes back, as the background jobs have it."""
        time.sleep(0.002)  # An orphan that was open is looked at again a millisecond later.
        while any(self.call("reap", count=256)):
            pass

    def condemned(self) -> set[ExtentId]:
        return {ExtentId(e) for e in self.call("condemned", count=100_000)[::2]}


class Session:
    """Mutations with op ids of their own."""

    def __init__(self, volume: Volume, number: SessionNumber) -> None:
        self.volume = volume
        self.number = number
        self._counter = itertools.count(1)
        self.n = 0

    def next_n(self) -> int:
        self.n += 1
        return self.n

    def reply(self, verb: str, /, **arguments: Any) -> list[Any]:
        return self.volume.reply(verb, self.number, self.next_n(), **arguments)

    def call(self, verb: str, /, **arguments: Any) -> list[Any]:
        """The results. Raises Refused. Sent twice, as a retry would be: the second changes nothing."""
        n, packed = self.next_n(), pack_arguments(arguments)
        first = self.volume.raw(verb, self.number, n, packed)
        seq = self.volume.status()["seq"]
        again = self.volume.raw(verb, self.number, n, packed)
        assert again == first, f"{verb} sent twice gets another reply"
        assert self.volume.status()["seq"] == seq, f"{verb} sent twice changes something again"
        fields: list[Any] = msgpack.unpackb(first, raw=True, strict_map_key=False)
        if fields[0] != 0:
            raise Refused(fields[0], verb)
        return fields[1:]

    def errno(self, verb: str, /, **arguments: Any) -> int:
        """0 when it was done."""
        try:
            self.call(verb, **arguments)
        except Refused as error:
            return error.errno
        return 0

    def _made(self, verb: str, **arguments: Any) -> Attributes:
        ino, blob, *_ = self.call(verb, **arguments)
        return unpack_attributes(ino, blob)

    def create(self, parent: int, name: bytes, mode: int = 0o644) -> Attributes:
        """A new file that this session has open."""
        made = self._made("create", parent=parent, name=name, mode=mode, uid=1, gid=2)
        self.call("open", ino=made.ino, chunks=0)
        return made

    def closed(self, parent: int, name: bytes) -> Attributes:
        """A new file that nobody has open."""
        return self._made("create", parent=parent, name=name, mode=0o644, uid=1, gid=2)

    def mkdir(self, parent: int, name: bytes, mode: int = 0o755) -> Attributes:
        return self._made("mkdir", parent=parent, name=name, mode=mode, uid=1, gid=2)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int = 0) -> Attributes:
        return self._made("mknod", parent=parent, name=name, mode=mode, rdev=rdev, uid=1, gid=2)

    def symlink(self, parent: int, name: bytes, target: bytes) -> Attributes:
        return self._made("symlink", parent=parent, name=name, target=target, uid=1, gid=2)

    def link(self, ino: int, parent: int, name: bytes) -> Attributes:
        return unpack_attributes(ino, self.call("link", ino=ino, parent=parent, name=name)[0])

    def unlink(self, parent: int, name: bytes) -> Attributes:
        return self._made("unlink", parent=parent, name=name)

    def rmdir(self, parent: int, name: bytes) -> None:
        self.call("rmdir", parent=parent, name=name)

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> int:
        """The inode that was replaced, or 0."""
        replaced: int = self.call(
            "rename", parent=parent, name=name, new_parent=new_parent, new_name=new_name, flags=flags
        )[2]
        return replaced

    def setattr(self, ino: int, **changes: Any) -> Attributes:
        while True:
            blob, more = self.call("setattr", ino=ino, **changes)
            if not more:
                return unpack_attributes(ino, blob)

    def new_extent(self) -> ExtentId:
        return extent_id(self.number, next(self._counter))

    def segment(self, offset: int, length: int, nodes: Sequence[NodeNumber] = NODES) -> Segment:
        """A part of a chunk that shows a new extent."""
        return Segment(offset, self.new_extent(), 0, length, tuple(nodes))

    def commit(self, ino: int, chunks: dict[int, list[Segment]], *, end: int | None = None, **more: Any) -> Attributes:
        """`end`: by default where the last segment ends."""
        size = self.volume.attributes(ino).chunk_size
        last = max((index * size + s.end for index, segments in chunks.items() for s in segments), default=0)
        flat = [part for index, segments in sorted(chunks.items()) for part in (index, pack_segments(segments))]
        blob, *_ = self.call("commit", ino=ino, chunks=flat, end=last if end is None else end, synced=True, **more)
        return unpack_attributes(ino, blob)

    def append(self, ino: int, *extents: tuple[ExtentId, int], nodes: Sequence[NodeNumber] = NODES) -> int:
        """The offset that they went to."""
        flat = [part for extent, length in extents for part in (extent, length, pack_nodes(nodes))]
        offset: int = self.call("commit", ino=ino, chunks=[], end=0, synced=True, append=flat)[1]
        return offset
