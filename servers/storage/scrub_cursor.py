"""How far the scrub of one disk has come, and when it was through last; kept on the disk.

The file `scrub` is `POSITION STARTED COMPLETED`: the extent up to which the pass under way has
come (`-` at its beginning), when it began, and when the last complete pass ended (or the disk
was first scrubbed), in seconds since 1970. One thread at a time.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from servers.protocol.ids import ExtentId, extent_text, parse_extent_text

_TEXT = re.compile(r"(-|[0-9a-f]+-[0-9a-f]+) ([0-9]{1,12}) ([0-9]{1,12})\n", re.ASCII)


@dataclass(frozen=True, slots=True)
class Cursor:
    position: ExtentId | None
    started_s: int
    completed_s: int
    """Of the last complete pass; before the first, when the scrub of this disk began."""

    def at(self, position: ExtentId) -> Cursor:
        return replace(self, position=position)

    def completed(self, now_s: float) -> Cursor:
        return Cursor(None, int(now_s), int(now_s))


def load_cursor(path: Path, now_s: float) -> Cursor:
    """A new one where there is none that can be read. Raises OSError."""
    new = Cursor(None, int(now_s), int(now_s))
    try:
        match = _TEXT.fullmatch(path.read_text("ascii", "replace"))
        if match is None:
            return new
        position = None if match[1] == "-" else parse_extent_text(match[1])
    except (FileNotFoundError, ValueError):
        return new
    return Cursor(position, int(match[2]), int(match[3]))


def save_cursor(path: Path, cursor: Cursor) -> None:
    """Not synced: a position that is lost costs reading again. Raises OSError."""
    position = "-" if cursor.position is None else extent_text(cursor.position)
    beside = path.with_name(path.name + ".new")
    beside.write_text(f"{position} {cursor.started_s} {cursor.completed_s}\n", "ascii")
    os.replace(beside, path)
