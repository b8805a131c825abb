"""The head of a request: its line and headers, parsed strictly.

What could be read in two ways is refused, not guessed at: two lengths, folded lines, spaces
before a colon, transfer codings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

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

    @property
    def target(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path

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
    return Head(line[1], path, query, headers, keep_alive)
