"""The function library that is the file system's rules, as one text to load into Redis.

Each file below `lua/` holds a subject; `common.lua` and `chunks.lua` come first. The library's
version is the hash of its text, and part of every function's name: naming servers of two
versions work beside each other on one Redis, each with its own.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from servers.protocol import limits

_FIRST = ("common.lua", "chunks.lua", "open.lua", "repair.lua")


@dataclass(frozen=True)
class Library:
    version: str
    text: str
    reads: frozenset[str]
    """The verbs that write nothing."""

    @property
    def name(self) -> str:
        return f"dcs_{self.version}"

    def function(self, verb: str) -> bytes:
        return f"{verb}_{self.version}".encode()


@cache
def library(**changed_limits: int) -> Library:
    """The library; a test may make a limit small by its name in `servers.protocol.limits`."""
    folder = files("servers.naming") / "lua"
    rest = sorted(f.name for f in folder.iterdir() if f.name.endswith(".lua") and f.name not in _FIRST)
    text = "\n".join((folder / name).read_text(encoding="utf-8") for name in (*_FIRST, *rest))
    known = {**vars(limits), **changed_limits}
    text = re.sub(r"@([A-Z_]+_(?:MAX|MIN|WINDOW))@", lambda m: str(known[m[1]]), text)
    version = hashlib.sha256(text.encode()).hexdigest()[:12]
    reads = frozenset(re.findall(r"^read\('(\w+)'", text, re.MULTILINE))
    return Library(version, f"#!lua name=dcs_{version}\n" + text.replace("@VERSION@", version), reads)
