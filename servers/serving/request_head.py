"""The head of a request: its line and headers, parsed strictly.

What could be read in two ways is refused, not guessed at: two lengths, folded lines, spaces
before a colon, transfer codings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from servers.protocol.seal import SEAL_DIGITS, SEAL_HEADER, request_sum

HEADS_KEPT = 256
KNOWN_HEAD_BYTES_MAX = 1024
"""What sends no secret may fill the memory for heads, too."""
_SEAL_START = f"\r\n{SEAL_HEADER}: ".encode()
_SEAL_BYTES = len(_SEAL_START) + SEAL_DIGITS + len(b"\r\n\r\n")
_REQUEST_LINE = re.compile(r"([A-Z]+) (/[!-~]*) HTTP/1\.([01])\r\n")
_HEADER = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([^\r\n\0]*)\r\n")


class Refusal(Exception):
    def __init__(self, status: int, detail: str) -> None:
        self.status = status
        self.detail = detail
        super().__init__(detail)


@dataclass(frozen=True, slots=True)
class Head:
    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    keep_alive: bool
    sum: int
    """`servers.protocol.seal.request_sum` of it."""

    def content_length(self, needed: bool) -> int:
        """Raises Refusal; a PUT or POST without a length is refused when one is needed, and empty otherwise."""
        if "transfer-encoding" in self.headers:
            raise Refusal(411, "send a Content-Length; no Transfer-Encoding is taken here")
        text = self.headers.get("content-length")
        if text is None:
            if needed and self.method in ("PUT", "POST"):
                raise Refusal(411, "a Content-Length is needed")
            return 0
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise Refusal(400, f"not a Content-Length: {text[:40]!r}")
        return int(text)


def parse_head(data: bytes) -> Head:
    """The head of a request, which ends with its empty line. Raises Refusal."""
    text = data.decode("latin-1")
    line = _REQUEST_LINE.match(text)
    if line is None:
        raise Refusal(400, "not an HTTP/1.1 request line")
    headers: dict[str, str] = {}
    at, end = line.end(), len(text) - 2
    while at < end:
        match = _HEADER.match(text, at)
        if match is None:
            raise Refusal(400, f"not a header: {text[at : at + 40]!r}")
        name, value = match[1].lower(), match[2].strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
        at = match.end()
    path, _, query = line[2].partition("?")
    connection = headers.get("connection", "").lower()
    keep_alive = "close" not in connection if line[3] == "1" else "keep-alive" in connection
    target = f"{path}?{query}" if query else path
    return Head(line[1], path, query, headers, keep_alive, request_sum(line[1], target, headers))


_parse_known_head = lru_cache(HEADS_KEPT)(parse_head)


def parse_sealed_head(data: bytes, *, known: bool) -> tuple[Head, str]:
    """The head and its seal, "" where it has none. `known`: many requests have this head, but for the seal. Raises
    Refusal."""
    if not (known and len(data) <= KNOWN_HEAD_BYTES_MAX and data.startswith(_SEAL_START, -_SEAL_BYTES)):
        head = parse_head(data)
        return head, head.headers.get(SEAL_HEADER, "")
    head = _parse_known_head(data[:-_SEAL_BYTES] + b"\r\n\r\n")
    seal = data[len(_SEAL_START) - _SEAL_BYTES : -4].decode("latin-1")
    return head, f"{head.headers[SEAL_HEADER]}, {seal}" if SEAL_HEADER in head.headers else seal
