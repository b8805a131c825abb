"""What a command says when it cannot do what it was asked."""

from __future__ import annotations

import re

from servers.protocol.errors import DcsError, Refused
from servers.protocol.names import escape


class Problem(DcsError):
    """The message is one clear line for the person at the terminal."""


def one_line(error: BaseException) -> str:
    """The error as one printable line."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{escape(_bytes(error.filename))}: " if error.filename is not None else ""
        text = where + error.strerror
    else:
        text = str(error) or type(error).__name__
    return re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in text)).strip()


def about(path: bytes, error: Refused) -> Refused:
    """The refusal with the path that it is about, in place of the verb."""
    return Refused(error.errno, escape(path))


def _bytes(name: str | bytes | int) -> bytes:
    return name if isinstance(name, bytes) else str(name).encode("utf-8", "surrogateescape")
