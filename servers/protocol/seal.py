"""Sums over a request and over its answer, so that what was damaged on the way is noticed by whoever gets it.

    dcs-seal: <CRC32C of the head><CRC32C of the body>      each 8 hexadecimal digits

TCP's own sum is 16 bits wide and made anew by every box on the way. Extents bring sums of their own, in the head, and
are not summed again: `--------` stands for their body. The head's sum is over what counts in it, so that a box that
adds headers does no harm; an answer's is over the request's seal too, so that it cannot be the answer to another one.

A client seals what it likes. A server that gets a request whose seal does not fit refuses it unread, 400 and without
a seal; one that fits gets a sealed answer, refusals too. So a client believes no unsealed answer of a server
that seals: it is as if none had come. Pure; no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from crc32c import crc32c

from servers.protocol.checksum import Buffer
from servers.protocol.naming_api import DEADLINE_HEADER
from servers.protocol.storage_api import EXTENT_HEADER, LENGTH_HEADER, NODE_HEADER, SUMS_HEADER

SEAL_HEADER = "dcs-seal"
SEAL_DIGITS = 16
DAMAGED = "the request was damaged on its way: send it again"
_HAS_ITS_OWN = "--------"
_REQUEST_HEADERS = ("authorization", "content-length", "range", DEADLINE_HEADER, EXTENT_HEADER, NODE_HEADER)
_ANSWER_HEADERS = ("content-range", LENGTH_HEADER, SUMS_HEADER, EXTENT_HEADER)


def request_sum(method: str, target: str, headers: Mapping[str, str]) -> int:
    """Over what counts in a head: the same for all requests that differ in their bodies alone. `headers` by their names
    in lower case, with authorization and content-length."""
    words = (method, target, *[headers.get(name, "") for name in _REQUEST_HEADERS], "")
    return crc32c("\n".join(words).encode("latin-1"))


def seal_request(method: str, target: str, headers: Mapping[str, str], body: Iterable[Buffer]) -> str:
    """`headers` as for `request_sum`."""
    return seal_of(request_sum(method, target, headers), None if has_sums(method, headers) else body)


def has_sums(method: str, headers: Mapping[str, str]) -> bool:
    """The request's body has sums of its own."""
    return method == "PUT" and EXTENT_HEADER in headers


def seal_of(sum_of_head: int, body: Iterable[Buffer] | None) -> str:
    """A body of None has sums of its own."""
    return _sealed(sum_of_head, _HAS_ITS_OWN if body is None else _body_sum(body))


def is_request_head_whole(seal: str, sum_of_request: int) -> bool:
    return seal == _sealed(sum_of_request, seal[8:])


def is_request_body_whole(seal: str, body: Buffer) -> bool:
    return seal[8:] in (_HAS_ITS_OWN, _body_sum((body,)))


def answer_words(status: int, headers: Mapping[str, str]) -> str:
    """What counts in an answer's head: the same for all that differ in their bodies alone."""
    return "\n".join(("", str(status), *[headers.get(name, "") for name in _ANSWER_HEADERS], ""))


def seal_answer(request_seal: str, status: int, headers: Mapping[str, str], body: Iterable[Buffer]) -> str:
    return seal_words(request_seal, answer_words(status, headers), None if SUMS_HEADER in headers else body)


def seal_words(request_seal: str, words: str, body: Iterable[Buffer] | None) -> str:
    """The seal of an answer of these words; a body of None has sums of its own."""
    return seal_of(crc32c((request_seal + words).encode("latin-1")), body)


def is_answer_whole(request_seal: str, status: int, headers: Mapping[str, str], body: Buffer) -> bool:
    return headers.get(SEAL_HEADER) == seal_answer(request_seal, status, headers, (body,))


def _sealed(sum_of_head: int, inner: str) -> str:
    return f"{crc32c(inner.encode('latin-1'), sum_of_head):08x}{inner}"


def _body_sum(body: Iterable[Buffer]) -> str:
    total = 0
    for piece in body:
        total = crc32c(piece, total)
    return f"{total:08x}"
