"""The head of an HTTP/1.1 answer, for the transports of our own. No I/O."""

from __future__ import annotations

from collections.abc import Mapping


def parse_head(head: bytes) -> tuple[int, dict[str, str], bool]:
    """Status, headers, and whether the server keeps the connection. Raises ConnectionError."""
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdecimal():
        raise ConnectionError(f"not an HTTP answer: {first[:40]!r}")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return int(rest[:3]), headers, version != "HTTP/1.0" and headers.get("connection", "").lower() != "close"


def body_length(method: str, status: int, headers: Mapping[str, str], bytes_max: int) -> int:
    """Raises ConnectionError for a body that is longer, or whose length is not told: no server of ours sends one."""
    if method == "HEAD" or status in (204, 304):
        return 0
    text = headers.get("content-length", "")
    if not (text.isascii() and text.isdecimal()) or len(text) > 12:
        raise ConnectionError(f"the answer ({status}) does not tell its length")
    if int(text) > bytes_max:
        raise ConnectionError(f"the answer has {text} bytes; at most {bytes_max} are taken")
    return int(text)
