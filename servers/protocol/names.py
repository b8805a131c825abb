r"""Names are bytes; this is their lossless text form for JSON, terminals and logs.

Valid UTF-8 stays readable; a backslash is `\\`, and every byte that is not UTF-8 or belongs
to a control or unprintable character is `\xNN`. `unescape(escape(name)) == name` for all bytes.
"""

from __future__ import annotations

import re

from servers.protocol.limits import NAME_BYTES_MAX, PATH_BYTES_MAX

_ESCAPE = re.compile(r"\\(\\|x[0-9a-fA-F]{2})|\\")


def escape(name: bytes) -> str:
    out: list[str] = []
    for character in name.decode("utf-8", "surrogateescape"):
        if character == "\\":
            out.append("\\\\")
        elif character.isprintable():
            out.append(character)
        else:
            out.extend(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
    return "".join(out)


def unescape(text: str) -> bytes:
    """The name behind its text form. Raises ValueError for a backslash that starts no escape."""

    def one(match: re.Match[str]) -> str:
        body = match[1]
        if body is None:
            raise ValueError(f"lone backslash in {text[:80]!r}: write \\\\ for a backslash")
        return "\\" if body == "\\" else bytes([int(body[1:], 16)]).decode("latin-1").translate(_LATIN_TO_RAW)

    return _ESCAPE.sub(one, text).encode("utf-8", "surrogateescape")


# Escaped bytes travel through str as the surrogates that encode("surrogateescape") turns back into
# single bytes; bytes below 0x80 have none and stand for themselves.
_LATIN_TO_RAW = {byte: 0xDC00 + byte for byte in range(0x80, 0x100)}


def check_name(name: bytes) -> str | None:
    """Why the name cannot be a directory entry, or None when it can."""
    if not name or name in (b".", b".."):
        return "a name cannot be empty, . or .."
    if b"/" in name or b"\0" in name:
        return "a name cannot hold / or NUL"
    if len(name) > NAME_BYTES_MAX:
        return f"a name has at most {NAME_BYTES_MAX} bytes"
    return None


def split_path(path: bytes) -> list[bytes]:
    """The names along a path from the root; a leading slash and doubled slashes mean nothing.

    Raises ValueError for `.` and `..`, which only a kernel can resolve, and for what no name can be.
    """
    if len(path) > PATH_BYTES_MAX:
        raise ValueError(f"a path has at most {PATH_BYTES_MAX} bytes")
    parts = [part for part in path.split(b"/") if part]
    for part in parts:
        problem = check_name(part)
        if problem is not None:
            raise ValueError(f"{escape(part)}: {problem}")
    return parts
