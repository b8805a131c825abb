"""What mounts and the naming server say to each other: `POST /v1/ops`.

A request is msgpack `[session, [[verb, n, arguments], ...]]`, the answer `[reply, ...]` in the
same order. `arguments` and `reply` are themselves packed, so that the naming server passes
them between the mount and the function in Redis without looking inside:

    arguments   a map with the verb's keys (bytes keys on the way back, str keys on the way in)
    reply       `[errno, result, ...]`; errno 0 is success. None where nobody could be asked in time.

`n` numbers the mutations of a session, 1 upwards; a mutation sent twice takes effect once and
gets its first reply again. Reads have n = 0. What each verb takes and gives stands in its
file below `servers/naming/lua/`.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgpack

from servers.protocol.geometry import Segment
from servers.protocol.ids import ExtentId, InodeNumber, NodeNumber, SessionNumber

OPS_PATH = "/v1/ops"
NODES_PATH = "/v1/nodes"
DAMAGE_PATH = "/v1/damage"
HEALED_PATH = "/v1/extents/healed"
HEARTBEAT_PATH = "/v1/heartbeat"
DEADLINE_HEADER = "dcs-deadline-ms"

READS = frozenset(
    {"lookup", "getattr", "look", "readdir", "readlink", "locate", "getxattr", "listxattr", "statfs", "resolve"}
)
MUTATIONS = frozenset(
    {
        "open", "opens", "release", "create", "mknod", "mkdir", "symlink", "link", "unlink", "rmdir", "rename",
        "setattr", "accessed", "commit", "setxattr", "removexattr", "stub", "publish", "restore",
    }
)  # fmt: skip
SESSION_VERBS = frozenset({"session_open", "session_renew", "session_close"})
"""Session verbs travel alone: session_open names no session yet."""
MOUNT_VERBS = READS | MUTATIONS | SESSION_VERBS

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
REPLICAS_ATTRIBUTE = b"user.dcs.replicas"
CHUNK_SIZE_ATTRIBUTE = b"user.dcs.chunk_size"
"""Extended attributes of every file and directory, as decimal text: how it, or what is made in it, is stored."""
XATTR_CREATE = 1
XATTR_REPLACE = 2


class Attributes(NamedTuple):
    """An inode as stat(2) shows it, and what a mount needs besides. Times are nanoseconds since 1970. A tuple, because
    each change makes two, and a frozen dataclass of so many fields takes four times as long to make."""

    ino: InodeNumber
    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    rdev: int
    chunk_size: int
    stored_bytes: int
    """Bytes that extents hold for it; the rest of `size` is holes."""
    data_version: int
    """The seq of the last change of its content; equal versions have equal content."""
    xattrs: int
    unsynced_s: int
    """When, in seconds since 1970, content was last committed that was not on stable storage; 0 for never."""
    target: bytes
    """A symlink's target."""
    replicas: int
    parent: InodeNumber
    """A directory's parent; 0 for all else."""

    @property
    def age(self) -> tuple[int, int]:
        """Of two sightings of an inode the higher is the newer. Storing what was written moves no ctime."""
        return self.ctime_ns, self.data_version

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)


NS = 1_000_000_000


def unpack_attributes(ino: int, blob: bytes) -> Attributes:
    """The inode's value in Redis, as `servers/naming/lua/common.lua` lays it out."""
    (mode, uid, gid, nlink, size, a_s, a_n, m_s, m_n, c_s, c_n, rdev, chunk, stored, version, xattrs, unsynced, target,
     replicas, parent) = msgpack.unpackb(blob, raw=True)  # fmt: skip
    return Attributes(
        InodeNumber(ino), mode, uid, gid, nlink, size, a_s * NS + a_n, m_s * NS + m_n, c_s * NS + c_n, rdev, chunk,
        stored, version, xattrs, unsynced, target, replicas, InodeNumber(parent),
    )  # fmt: skip


def pack_time(nanoseconds: int) -> list[int]:
    """Seconds and nanoseconds apart: together they would not be exact in Redis's Lua."""
    return [nanoseconds // NS, nanoseconds % NS]


def pack_nodes(nodes: Sequence[NodeNumber]) -> bytes:
    return b"".join(node.to_bytes(2, "big") for node in nodes)


def unpack_nodes(packed: bytes) -> tuple[NodeNumber, ...]:
    return tuple(NodeNumber(int.from_bytes(packed[i : i + 2], "big")) for i in range(0, len(packed), 2))


def pack_segments(segments: Sequence[Segment]) -> list[int | bytes]:
    """A chunk's segments as the flat list that chunk maps are made of."""
    flat: list[int | bytes] = []
    for s in segments:
        flat += (s.offset, s.extent, s.extent_offset, s.length, pack_nodes(s.nodes))
    return flat


def unpack_segments(blob: bytes) -> list[Segment]:
    flat = msgpack.unpackb(blob, raw=True)
    return [
        Segment(flat[i], ExtentId(flat[i + 1]), flat[i + 2], flat[i + 3], unpack_nodes(flat[i + 4]))
        for i in range(0, len(flat), 5)
    ]


@dataclass(frozen=True, slots=True)
class Operation:
    verb: str
    n: int
    arguments: bytes


def operation(verb: str, n: int, /, **arguments: Any) -> Operation:  # Any: msgpack takes what msgpack takes
    return Operation(verb, n, pack_arguments(arguments))


def pack_arguments(arguments: Mapping[str, Any]) -> bytes:
    """For a function in Redis, whose msgpack is older than the type for bytes: they go as strings."""
    packed: bytes = msgpack.packb(arguments, use_bin_type=False)
    return packed


def pack_batch(session: SessionNumber, operations: Sequence[Operation]) -> bytes:
    packed: bytes = msgpack.packb([session, [(o.verb, o.n, o.arguments) for o in operations]])
    return packed


def unpack_batch(body: bytes) -> tuple[SessionNumber, list[Operation]]:
    """Raises ValueError for anything but a batch of known verbs."""
    try:
        session, rows = msgpack.unpackb(body)
        operations = [Operation(verb, n, arguments) for verb, n, arguments in rows]
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"not a batch of operations: {error}") from error
    if not _is_number(session):
        raise ValueError(f"not a session: {str(session)[:40]!r}")
    for o in operations:
        is_known = isinstance(o.verb, str) and o.verb in MOUNT_VERBS
        if not is_known or not _is_number(o.n) or not isinstance(o.arguments, bytes):
            raise ValueError(f"not an operation: {str(o.verb)[:40]!r}")
        if (o.verb in MUTATIONS) != (o.n > 0):
            raise ValueError(f"{o.verb}: only mutations are numbered, and all of them are")
    return SessionNumber(session), operations


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value <= 2**53


def pack_replies(replies: Sequence[bytes | None]) -> bytes:
    packed: bytes = msgpack.packb(replies)
    return packed


def unpack_replies(body: bytes) -> list[bytes | None]:
    replies: list[bytes | None] = msgpack.unpackb(body)
    return replies
