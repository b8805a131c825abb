"""The files that are open in this mount: what their handles share.

Called by the file system. An open inode lives from its first open to its last release, and
longer while it holds data that could not be stored. Its attributes here are newer than the
cache's: sizes and times of writes that are not committed are laid over them.
"""

from __future__ import annotations

import math

from fusefs.vfs.chunk_map import ChunkMap
from fusefs.vfs.file_reader import FileReader
from fusefs.vfs.file_writer import FileWriter
from servers.protocol.ids import InodeNumber, SessionNumber
from servers.protocol.naming_api import Attributes


class OpenInode:
    __slots__ = (
        "attributes",
        "handles",
        "ino",
        "is_stored_later",
        "kept_until",
        "map",
        "plain_xattrs",
        "reader",
        "writer",
        "written_back_at",
        "written_in",
        "written_over",
    )

    def __init__(self, attributes: Attributes, chunks: ChunkMap, reader: FileReader, writer: FileWriter) -> None:
        self.ino: InodeNumber = attributes.ino
        self.attributes = attributes
        """As last committed, by anybody."""
        self.handles = 0
        self.is_stored_later = False
        """A task of its own tries again and again to store what its handles left, until `kept_until`."""
        self.kept_until = 0.0
        self.written_back_at = -math.inf
        """When what is written was last stored unasked, or could not be."""
        self.written_in = SessionNumber(0)
        """The session in which what is not committed was begun, or committed last."""
        self.written_over = 0
        """The data version that it was begun on: see `OpenFiles._commit`."""
        self.plain_xattrs = 0
        """Of so many extended attributes none gave a capability."""
        self.map = chunks
        self.reader = reader
        self.writer = writer

    def learn(self, attributes: Attributes) -> None:
        """Attributes from the metadata; older ones than what is known are not taken."""
        if attributes.age >= self.attributes.age:
            self.attributes = attributes

    @property
    def size(self) -> int:
        """In bytes, with what this mount has written and not committed."""
        return max(self.attributes.size, self.writer.end)

    @property
    def changed_ns(self) -> int:
        """When content or attributes changed last."""
        return max(self.attributes.mtime_ns, self.attributes.ctime_ns, self.writer.mtime_ns)

    def shown(self) -> Attributes:
        """The attributes as stat(2) must show them in this mount."""
        writer, known = self.writer, self.attributes
        if not writer.is_dirty:
            return known
        is_newest = writer.mtime_ns > known.ctime_ns  # What utimensat(2) set into the future ends with a write.
        return known._replace(
            size=self.size,
            stored_bytes=min(self.size, known.stored_bytes + writer.bytes),
            mtime_ns=writer.mtime_ns if is_newest else max(known.mtime_ns, writer.mtime_ns),
            ctime_ns=max(known.ctime_ns, writer.mtime_ns),
        )
