"""The ids of the cluster and their text forms.

An extent id is 16 bytes: the number of the session that made it and a counter of that
session, both big-endian, so an id is never used twice and tells who made it. As text, in
URLs and file names, it is two hexadecimal numbers: `2a-1f`.
"""

from __future__ import annotations

import re
from typing import NewType

ExtentId = NewType("ExtentId", bytes)
SessionNumber = NewType("SessionNumber", int)
InodeNumber = NewType("InodeNumber", int)
NodeNumber = NewType("NodeNumber", int)
"""A storage node's short number in chunk maps; its identity is the uuid on its disk."""

ROOT_INODE = InodeNumber(1)
TRASH_INODE = InodeNumber(2**53)
"""The directory that shows removed files: larger than any inode's number can be. See lua/trash.lua."""
TRASH_NAME = b".trash"
"""Its name in the root directory, which no listing has."""
EXTENT_ID_BYTES = 16

_EXTENT_TEXT = re.compile(r"(0|[1-9a-f][0-9a-f]{0,15})-(0|[1-9a-f][0-9a-f]{0,15})", re.ASCII)


def extent_id(session: SessionNumber, counter: int) -> ExtentId:
    return ExtentId(session.to_bytes(8, "big") + counter.to_bytes(8, "big"))


def extent_session(extent: ExtentId) -> SessionNumber:
    """The session that made the extent."""
    return SessionNumber(int.from_bytes(extent[:8], "big"))


def extent_text(extent: ExtentId) -> str:
    return f"{int.from_bytes(extent[:8], 'big'):x}-{int.from_bytes(extent[8:], 'big'):x}"


def parse_extent_text(text: str) -> ExtentId:
    """The id behind its text form. Raises ValueError for anything but the canonical form."""
    match = _EXTENT_TEXT.fullmatch(text)
    if match is None:
        raise ValueError(f"not an extent id: {text[:40]!r}; it looks like 2a-1f")
    return extent_id(SessionNumber(int(match[1], 16)), int(match[2], 16))
